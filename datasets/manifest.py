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
    checksums: dict[str, str] = field(default_factory=dict)  # of each array, by key; none in stores of version 1
    kept: bool = True

    @staticmethod
    def make_id(variant: str, seed: int) -> str:
        return f"{variant}-{seed:08d}"

    @property
    def proper_id(self) -> str:
        """What `id` is, unless the line was damaged."""
        return self.make_id(self.variant, self.seed)


@dataclass(frozen=True)
class DroppedRow:
    """An attempt that was not kept, so that a collection which goes on does not try it again.

    With `episode` it takes an episode away that was committed in an earlier line, because it is damaged. The rows of
    that episode stay where they are, and nobody reads them any more.
    """

    seed: int
    reason: str
    variant: str
    provenance: Json = field(default_factory=dict)
    episode: str | None = None  # id of the episode that was committed
    next_start: int | None = None  # with `episode`: where the rows of the next commit begin, at the earliest
    kept: bool = False


@dataclass(frozen=True)
class Line:
    """One line of the file, whatever it holds."""

    number: int  # from 1
    size: int  # bytes
    row: EpisodeRow | DroppedRow | None  # None: not a manifest row
    is_torn: bool  # the last one, without the new-line that is written with the row


class Manifest:
    """The rows on disk, read once and appended to."""

    def __init__(self, path: Path) -> None:
        """Read the manifest; a last line that a crash tore is left out, and overwritten by the next `append`.

        Raises:
            UserError: the file is missing, or a line that was written whole is not a manifest row.
        """
        self._clear(path)
        for line in read_lines(path):
            if line.row is None and not line.is_torn:
                raise self._unreadable(f"line {line.number}, which is not a manifest row")
            if line.row is None:
                self.torn = True
                return
            if fault := self.misfit(line.row):
                raise self._unreadable(f"line {line.number} {fault}")
            self.accept(line.row)
            self._valid_bytes += line.size

    @classmethod
    def empty(cls, path: Path) -> Manifest:
        """Without rows, whatever the file holds."""
        manifest = cls.__new__(cls)
        manifest._clear(path)
        return manifest

    def _clear(self, path: Path) -> None:
        self.path = path
        self.episodes: list[EpisodeRow] = []  # the kept ones
        self.dropped: list[DroppedRow] = []
        self.end = 0  # where the rows of the next commit begin
        self.runs: list[tuple[int, int]] = []  # rows of the kept episodes, neighbours joined
        self.torn = False
        self._valid_bytes = 0

    @property
    def steps(self) -> int:
        """Of all kept episodes."""
        return sum(end - start for start, end in self.runs)

    def append(self, row: EpisodeRow | DroppedRow) -> None:
        """Add a row and have it on the disk on return; if that fails or is interrupted, all stays as it was."""
        line = encode_row(row)
        before = list(self.episodes), list(self.dropped), list(self.runs), self.end
        valid_bytes = self._valid_bytes
        # Unbuffered: a buffer that the disk had no room for would be written again when the file is closed.
        try:
            with self.path.open("r+b", buffering=0) as file:
                file.truncate(valid_bytes)
                file.seek(valid_bytes)
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            self.accept(row)
            self._valid_bytes = valid_bytes + len(line)
            self.torn = False
        except BaseException:  # Ctrl-C too: a line on the disk that memory does not know would outlive its rows
            self.episodes, self.dropped, self.runs, self.end = before
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

    def misfit(self, row: EpisodeRow | DroppedRow) -> str | None:
        """Why this row cannot follow those before it, in words; None if it can."""
        if isinstance(row, DroppedRow):
            if row.episode is not None and all(row.episode != episode.id for episode in self.episodes):
                return f"that drops episode {row.episode}, which no line before it commits"
            return None
        if row.length < 1:
            return f"for an episode of {row.length} steps ({row.id})"
        if row.start != self.end or row.end != row.start + row.length:
            return f"for rows {row.start} to {row.end}, where {self.end} should follow"
        return None

    def accept(self, row: EpisodeRow | DroppedRow) -> None:
        """Take in a row after those before it."""
        if isinstance(row, EpisodeRow):
            self.episodes.append(row)
            self.end = row.end
            _extend(self.runs, row)
            return
        self.dropped.append(row)
        if row.episode is not None:
            self.end = max(self.end, row.next_start or 0)
            self.episodes = [episode for episode in self.episodes if episode.id != row.episode]
            self.runs = []
            for episode in self.episodes:
                _extend(self.runs, episode)

    def _unreadable(self, found: str) -> UserError:
        return _unreadable(self.path, found)


def read_lines(path: Path) -> list[Line]:
    """Every line of a manifest, damaged ones too.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise _unreadable(path, str(error.strerror)) from error
    last = len(lines)
    return [
        Line(number, len(line), _parse(line), number == last and not line.endswith(b"\n"))
        for number, line in enumerate(lines, start=1)
    ]


def _extend(runs: list[tuple[int, int]], row: EpisodeRow) -> None:
    if runs and runs[-1][1] == row.start:
        runs[-1] = (runs[-1][0], row.end)
    else:
        runs.append((row.start, row.end))


def _unreadable(path: Path, found: str) -> UserError:
    return UserError(
        expected=f"a readable manifest at {path}",
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
