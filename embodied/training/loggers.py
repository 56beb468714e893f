"""Where training figures go: JSON lines in the run directory, and trackers by name through Accelerate."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

from embodied.catalog import nearest
from embodied.errors import UserError

TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}  # name -> module it needs


def check_loggers(names: Sequence[str]) -> list[str]:
    """The Accelerate trackers among `names`.

    Raises:
        UserError: an unknown name, or a tracker whose package is not installed.
    """
    for name in names:
        if name != "jsonl" and name not in TRACKERS:
            known = ["jsonl", *TRACKERS]
            raise UserError(expected="known names in training.loggers", found=f"'{name}'", remedy=nearest(name, known))
        if name in TRACKERS and importlib.util.find_spec(TRACKERS[name]) is None:
            raise UserError(
                expected=f"the package '{TRACKERS[name]}' for training.loggers={name}",
                found="it is not installed",
                remedy=f"pip install {TRACKERS[name]}, or drop the logger",
            )
    return [name for name in names if name in TRACKERS]


class JsonLines:
    """A log with one JSON object a line, each with its step."""

    def __init__(self, path: Path, resumed_step: int) -> None:
        """Drop lines past `resumed_step`, whose steps will be trained again, and a last one that a crash tore.

        Raises:
            UserError: another line is damaged.
        """
        self._path = path
        *lines, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
        kept = [line + b"\n" for number, line in enumerate(lines, 1) if self._step(number, line) <= resumed_step]
        path.write_bytes(b"".join(kept))

    def _step(self, number: int, line: bytes) -> int:
        try:
            return int(json.loads(line)["step"])
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(
                expected=f"a JSON object with a step in line {number} of {self._path}",
                found=f"something unreadable ({type(error).__name__}: {error})",
                remedy="delete that line: only a log loses it, not the training",
            ) from error

    def write(self, step: int, figures: dict[str, float]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **figures}) + "\n")
