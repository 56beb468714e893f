"""The manifest of a store: one JSON line an attempt, appended last. What it does not name does not exist."""

from __future__ import annotations

import errno
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from embodied.errors import UserError
from embodied.types import Json

MANIFEST_NAME = "manifest.jsonl"


@dataclass(frozen=True)
class EpisodeRow:
    """A committed episode: rows `start` to `end` (exclusive) of every array."""

    id: str
    start: int
    end: int
    length: int
    seed: int
    task: str
    variant: str
    instruction: str
    success: bool  # at any step
    first_success: int | None  # steps, counted from 1
    physics_size: int
    checksum: str  # sha256 over the arrays, see `episode_layout.checksum`
    provenance: Json = field(default_factory=dict)
    kept: bool = True


@dataclass(frozen=True)
class DroppedRow:
    """An attempt that was not kept, so that a collection which goes on does not try it again."""

    seed: int
    reason: str
    variant: str
    provenance: Json = field(default_factory=dict)
    kept: bool = False


class Manifest:
    """The rows on disk, read once and appended to."""

    def __init__(self, path: Path) -> None:
        """Read the manifest; a last line that a crash tore is left out, and overwritten by the next `append`.

        Raises:
            UserError: the file is missing, or a line other than the last is not a manifest row.
        """
        self.path = path
        self.episodes: list[EpisodeRow] = []
        self.dropped: list[DroppedRow] = []
        self.torn = False
        self._valid_bytes = 0
        lines = self._read().splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            row = _parse(line)
            if row is None and number < len(lines):
                raise self._unreadable(f"line {number}, which is not a manifest row")
            if row is None:
                self.torn = True
                return
            self._accept(row, number)
            self._valid_bytes += len(line)

    @property
    def end(self) -> int:
        """Rows of every array that are committed."""
        return self.episodes[-1].end if self.episodes else 0

    def append(self, row: EpisodeRow | DroppedRow) -> None:
        """Add a row and have it on the disk on return; if that fails or is interrupted, all stays as it was."""
        line = encode_row(row)
        rows: list[Any] = self.episodes if isinstance(row, EpisodeRow) else self.dropped
        count, valid_bytes = len(rows), self._valid_bytes
        # Unbuffered: a buffer that the disk had no room for would be written again when the file is closed.
        try:
            with self.path.open("r+b", buffering=0) as file:
                file.truncate(valid_bytes)
                file.seek(valid_bytes)
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            rows.append(row)
            self._valid_bytes = valid_bytes + len(line)
            self.torn = False
        except BaseException:  # Ctrl-C too: a line on the disk that memory does not know would outlive its rows
            del rows[count:]
            self._valid_bytes = valid_bytes
            with suppress(OSError):  # the cause matters more; the line goes with the next `append` or `cut`
                self.cut()
            raise

    def cut(self) -> None:
        """Take off the disk whatever follows the rows in memory.

        Raises:
            OSError: the file cannot be written.
        """
        with self.path.open("r+b", buffering=0) as file:
            file.truncate(self._valid_bytes)
            os.fsync(file.fileno())

    def _read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise self._unreadable(str(error.strerror)) from error

    def _accept(self, row: EpisodeRow | DroppedRow, number: int) -> None:
        if isinstance(row, DroppedRow):
            self.dropped.append(row)
            return
        if row.start != self.end or row.end != row.start + row.length or row.length < 1:
            raise self._unreadable(f"line {number} for rows {row.start} to {row.end}, where {self.end} should follow")
        self.episodes.append(row)

    def _unreadable(self, found: str) -> UserError:
        return UserError(
            expected=f"a readable manifest at {self.path}",
            found=found,
            remedy="copy the store again from where it came, or remove it and run `embodied collect`",
        )


def encode_row(row: EpisodeRow | DroppedRow) -> bytes:
    """One line of the manifest.

    Raises:
        UserError: the provenance is not JSON.
    """
    return encode_json(asdict(row), f"the provenance of seed {row.seed}") + b"\n"


def encode_json(data: Json, what: str) -> bytes:
    """JSON on one line.

    Raises:
        UserError: `what` (in words) holds something that JSON has no form for.
    """
    try:
        return json.dumps(data, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise UserError(
            expected=f"{what} as plain JSON values",
            found=str(error),
            remedy="give finite numbers, text, lists and dicts only",
        ) from error


def _parse(line: bytes) -> EpisodeRow | DroppedRow | None:
    # The new-line is written with the row: without it the row was not finished.
    if not line.endswith(b"\n"):
        return None
    try:
        data: dict[str, Any] = json.loads(line)
        return (EpisodeRow if data["kept"] else DroppedRow)(**data)
    except (ValueError, TypeError, KeyError):
        return None
