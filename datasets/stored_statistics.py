"""Statistics that stand in a store beside the data that they are of, so that nobody computes them twice.

    X/statistics.json    version, content_hash of the data, a checksum of its own, and the statistics by key

A file that is damaged, of another version or of other data is as good as none: it is computed again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from embodied.datasets.durable_files import replace_file
from embodied.types import Json, Statistics

STATISTICS_NAME = "statistics.json"
VERSION = 1  # another one when what is computed changes


def load_statistics(path: Path, content_hash: str) -> dict[str, Statistics]:
    """Those that stand in the store at `path` and are of this content, by key."""
    data = _read(path)
    if data is None or data["content_hash"] != content_hash:
        return {}
    return {key: Statistics.from_json(value) for key, value in data["statistics"].items()}


def save_statistics(path: Path, content_hash: str, statistics: dict[str, Statistics]) -> None:
    """Put them into the store at `path`, whole or not at all."""
    values = {key: value.to_json() for key, value in statistics.items()}
    data = {"version": VERSION, "content_hash": content_hash, "checksum": _checksum(values), "statistics": values}
    replace_file(path / STATISTICS_NAME, json.dumps(data, indent=1).encode(), root=path)


def are_damaged(path: Path) -> bool:
    """Whether a file of this version is there that nobody can use."""
    return (path / STATISTICS_NAME).exists() and _read(path) is None


def _read(path: Path) -> Json | None:
    try:
        data = json.loads((path / STATISTICS_NAME).read_bytes())
        whole = data["version"] == VERSION and data["checksum"] == _checksum(data["statistics"])
        return data if whole and isinstance(data["content_hash"], str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _checksum(values: Json) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
