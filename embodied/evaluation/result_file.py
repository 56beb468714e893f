"""Results of episodes on disk, one JSON line each, so that an evaluation that was killed goes on."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embodied.errors import UserError
from embodied.types import Json

RESULTS = "episodes.jsonl"
VERSION = 2  # of a row's keys; stands in the file's first line
BASE = "base"  # the variant of a task as it is


@dataclass(frozen=True, order=True)
class EpisodeAddress:
    """Which episode of a task this is; the policy's seed follows from the start."""

    variant: str
    start: int  # start id


class ResultFile:
    """A header with the version, then one line an episode, on the disk before the next one counts."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[EpisodeAddress, Json]:
        """Rows by address, those without an error: an episode that could not be run is tried again.

        A last line that a crash tore is cut off, and its episode runs again.

        Raises:
            UserError: results of another version, or another line is damaged.
        """
        if not self._path.exists():
            return {}
        *lines, torn = self._path.read_bytes().split(b"\n")
        if torn:
            os.truncate(self._path, self._path.stat().st_size - len(torn))
        if not lines:
            return {}
        self._check_header(lines[0])
        rows = dict(self._row(number, line) for number, line in enumerate(lines[1:], 2))
        return {address: row for address, row in rows.items() if row["error"] is None}

    def append(self, row: Json) -> None:
        """One row; flushed to the disk."""
        empty = not self._path.exists() or not self._path.stat().st_size
        lines = [{"version": VERSION}, row] if empty else [row]
        with self._path.open("a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())

    def _check_header(self, line: bytes) -> None:
        try:
            header: Any = json.loads(line)
        except ValueError:
            header = None
        if not isinstance(header, dict):
            raise self._unreadable(1, "something else")
        # Before there was a header the first line was a result.
        version = header.get("version", 1)
        if version != VERSION:
            raise UserError(
                expected=f"results of version {VERSION} in {self._path}",
                found=f"version {version}",
                remedy="finish this run with the version of embodied that began it, or evaluate again with force=true",
            )

    def _row(self, number: int, line: bytes) -> tuple[EpisodeAddress, Json]:
        try:
            row = json.loads(line)
            row["error"]
            return EpisodeAddress(str(row["variant"]), int(row["start"])), row
        except (ValueError, LookupError, TypeError) as error:
            raise self._unreadable(number, f"something unreadable ({type(error).__name__}: {error})") from error

    def _unreadable(self, number: int, found: str) -> UserError:
        what = "the version" if number == 1 else "the result of an episode"
        return UserError(
            expected=f"{what} in line {number} of {self._path}",
            found=found,
            remedy="delete that line, then give the same command again: its episode runs again"
            if number > 1
            else "delete that file, then give the same command again: its episodes run again",
        )
