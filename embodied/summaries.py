"""summary.json: what it always holds, its schemas, and what of it may differ between two equal runs.

Convention: two runs of the same command on one machine give the same summary, except under the keys `created`,
`machine` and `timings`. So every duration, rate or latency that a command measures belongs into an object called
`timings`, at the top or further down.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import psutil
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from referencing import Registry, Resource

from embodied.errors import UserError

Json = dict[str, Any]

NOT_REPEATED = ("created", "machine", "timings")
_BASE = "run.schema.json"


def without_timings(summary: Json) -> Json:
    """What two runs of the same command share of their summaries: no `created`, `machine`, `timings` at any depth."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(item) for key, item in value.items() if key not in NOT_REPEATED}
        return [strip(item) for item in value] if isinstance(value, list) else value

    return strip(summary)


def schema(command: str) -> Json:
    """The JSON Schema of the command's own keys.

    Raises:
        UserError: there is none.
    """
    file = resources.files("embodied.schemas") / f"{command}.schema.json"
    if not file.is_file():
        raise UserError(
            expected=f"a schema for the summary of '{command}'",
            found="none",
            remedy=f"the installation lacks embodied/schemas/{command}.schema.json; install it again",
        )
    return json.loads(file.read_text(encoding="utf-8"))


def has_schema(command: str) -> bool:
    """Whether this is the name of a command that writes summaries."""
    return (
        f"{command}.schema.json" != _BASE and (resources.files("embodied.schemas") / f"{command}.schema.json").is_file()
    )


def validate_summary(command: str, summary: Json) -> None:
    """Check a summary against what all summaries hold and against its command's schema.

    Raises:
        UserError: it does not fit; names the place.
    """
    base = schema("run")
    registry = Registry().with_resource(_BASE, Resource.from_contents(base))
    for part in (base, schema(command)):
        validator = Draft202012Validator(part, registry=registry)
        error = best_match(validator.iter_errors(summary))
        if error is not None:
            raise UserError(
                expected=f"a summary as embodied/schemas/{command}.schema.json describes it",
                found=f"at {error.json_path}: {_shorten(error.message)}",
                remedy="it was written by another version or damaged; run the command again with force=true",
            )


def read_summary(path: Path) -> Json:
    """A summary.json as it is, unchecked.

    Raises:
        UserError: no such file, or not a JSON object.
    """
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found = error.strerror if isinstance(error, OSError) else f"damaged JSON ({error})"
        raise UserError(
            expected=f"a readable {path}", found=str(found), remedy="let the run finish, or run it again"
        ) from error
    if not isinstance(summary, dict):
        raise UserError(expected=f"a JSON object in {path}", found=type(summary).__name__, remedy="run it again")
    return summary


@cache
def _fixed_machine() -> Json:
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": _version_of("torch"),
    }


def describe_machine() -> Json:
    """What this process runs on. The GPU is named only where the process uses torch, which is not imported for it."""
    return {**_fixed_machine(), "gpu": _gpu()}


def _gpu() -> str | None:
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version_of(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _shorten(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."
