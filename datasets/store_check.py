"""Everything that can be wrong with an episode store, found without opening it as one, and without writing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from embodied.datasets.durable_files import PARTIAL, WriterLock
from embodied.datasets.episode_layout import ArrayLayout, array_layouts, checksum_head
from embodied.datasets.episode_store import LOCK_NAME
from embodied.datasets.faults import Fault, not_finite
from embodied.datasets.manifest import MANIFEST_NAME, DroppedRow, EpisodeRow, Line, Manifest, read_lines
from embodied.datasets.store_folder import FORMAT, VERSION, NewerStore, abandoned_creations, read_attributes
from embodied.datasets.stored_statistics import STATISTICS_NAME, are_damaged
from embodied.datasets.time_arrays import TimeArrays
from embodied.errors import UserError
from embodied.types import TaskSpec

METADATA = "zarr.json"


class StoreCheck:
    """The check of one store. `faults` are those of its files and their sizes; `parts` reads every episode.

    An array that is missing or of another kind is one fault, which is not repeated for each episode.
    """

    format = FORMAT
    unit = "episodes"

    def __init__(self, path: Path, *, is_ours: bool = False) -> None:
        """
        Args:
            is_ours: the caller holds the writer's lock, and has written nothing.
        """
        self.path = path
        self.faults: list[Fault] = []
        self.writer = None if is_ours else WriterLock.holder(path / LOCK_NAME)  # its uncommitted rows are no fault
        self.manifest = Manifest.empty(path / MANIFEST_NAME)  # as far as its lines make sense
        self.rows: list[EpisodeRow] = []  # the kept episodes, those of lines that do not fit included
        self.arrays = TimeArrays(path, writable=False)
        self.layouts: dict[str, ArrayLayout] = {}
        self._missing: set[str] = set()  # keys of arrays that cannot be read at all
        self._spec = self._read_spec()
        if any(fault.kind == "version" for fault in self.faults):
            return
        self._check_manifest()
        if self._spec is not None:
            self._check_arrays(self._spec)
        if self.writer is None:
            self._check_leftovers()

    @property
    def total(self) -> int:
        """Parts to check."""
        return len(self.rows) if self.layouts else 0

    def parts(self) -> Iterator[list[Fault]]:
        """The faults of each episode, as it is read."""
        for row in self.rows if self.layouts else ():
            yield self._episode_faults(row)

    @property
    def episodes(self) -> int:
        return len(self.rows)

    def describe(self) -> str:
        """What was checked, in words."""
        bytes_kept = "every byte as it was committed"
        writing = f"; process {self.writer} is writing it, what it has not committed is left out" if self.writer else ""
        return f"{self.episodes} episodes, {self.manifest.steps} steps, {bytes_kept}{writing}"

    def _add(self, *arguments, **places) -> None:
        self.faults.append(Fault(*arguments, **places))

    def _read_spec(self) -> TaskSpec | None:
        try:
            attributes = read_attributes(self.path)
            return TaskSpec.from_json(attributes["spec"])
        except NewerStore as error:
            self._add("version", f"{error.found}, where this program knows {VERSION}", files=(METADATA,))
        except UserError as error:
            found = error.found if (self.path / METADATA).is_file() else "no such file"
            self._add("metadata", found, files=(METADATA,))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self._add("metadata", f"no spec of a task ({type(error).__name__}: {error})", files=(METADATA,))
        return None

    def _check_manifest(self) -> None:
        try:
            lines = read_lines(self.path / MANIFEST_NAME)
        except UserError as error:
            self._add("manifest", error.found, files=(MANIFEST_NAME,))
            return
        seeds: dict[int, int] = {}  # seed -> line
        for line in lines:
            if line.row is None:
                self._add_damaged_line(line)
                continue
            found, episode = self._line_faults(line.row, line.number, seeds), _episode_of(line.row)
            self.faults += [
                Fault("manifest", f"line {line.number} {words}", episode, files=(MANIFEST_NAME,)) for words in found
            ]
            # One that does not fit those before it may name rows that are sound, and the next is judged by it.
            if not isinstance(line.row, EpisodeRow) or line.row.end - line.row.start == line.row.length > 0:
                self.manifest.accept(line.row)
        self.rows = list(self.manifest.episodes)

    def _add_damaged_line(self, line: Line) -> None:
        if not line.is_torn:
            self._add("manifest", f"line {line.number} is not a manifest row", files=(MANIFEST_NAME,))
        elif self.writer is None:
            found = f"the last line, {line.number}, is torn: a write was interrupted"
            self._add("tail", found, files=(MANIFEST_NAME,))

    def _line_faults(self, row: EpisodeRow | DroppedRow, number: int, seeds: dict[int, int]) -> Iterator[str]:
        if misfit := self.manifest.misfit(row):
            yield misfit
        if isinstance(row, EpisodeRow) and row.id != row.proper_id:
            yield f"gives it seed {row.seed}"
        is_attempt = isinstance(row, EpisodeRow) or row.episode is None
        if is_attempt and (before := seeds.setdefault(row.seed, number)) != number:
            yield f"attempts seed {row.seed} again, after line {before}"

    def _check_arrays(self, spec: TaskSpec) -> None:
        sizes = {row.physics_size for row in self.rows}
        self.layouts = array_layouts(spec, self.rows[0].physics_size if self.rows else 0)
        if len(sizes) > 1:
            found = f"physics states of {', '.join(map(str, sorted(sizes)))} values"
            self._add("manifest", found, key="physics", files=(MANIFEST_NAME,))
        for key, layout in self.layouts.items():
            self._check_array(key, layout)
        for file in sorted((self.path / "data").rglob(METADATA)):
            key = str(file.parent.relative_to(self.path / "data"))
            # A group on the way to an array has its metadata, too.
            if not any(known == key or known.startswith(f"{key}/") or key == "." for known in self.layouts):
                found = f"an array that the spec of {spec.task} does not name"
                self._add("surplus", found, key=key, files=(f"data/{key}",))

    def _check_array(self, key: str, layout: ArrayLayout) -> None:
        file = f"data/{key}/{METADATA}"
        if not layout.row_bytes or not (self.rows or (self.path / file).exists()):
            return
        if misfit := self.arrays.misfit(layout):
            self._missing.add(key)
            self._add("metadata", misfit, key=key, files=(file,))
            return
        rows, committed = self.arrays.row_count(layout), self.manifest.end
        needed = max((row.end for row in self.rows), default=0)
        if rows < needed:
            self._add("length", f"{rows} rows, where the manifest commits {needed}", key=key, files=(file,))
        elif rows > committed and self.writer is None:
            found = f"{rows - committed} rows behind the {committed} that are committed"
            # A writer makes room by whole files, and cuts it to the last commit when it closes the store.
            is_closed = rows % self.arrays.shard_rows(layout) != 0
            lost = "; a writer had closed the store with them: the manifest has lost lines"
            self._add("manifest" if is_closed else "tail", found + lost * is_closed, key=key, files=(file,))
        for shard in sorted((self.path / "data" / key / "c").glob("[0-9]*")) if self.writer is None else ():
            if shard.name.isdigit() and int(shard.name) * self.arrays.shard_rows(layout) >= max(rows, committed):
                place = str(shard.relative_to(self.path))
                self._add("leftover", f"data behind the array's end, at row {rows}", key=key, files=(place,))

    def _check_leftovers(self) -> None:
        for file in sorted(self.path.rglob(f"*{PARTIAL}")):
            self._add("leftover", "a write that was interrupted", files=(str(file.relative_to(self.path)),))
        if are_damaged(self.path):
            self._add("leftover", "statistics that nobody can use, computed again on demand", files=(STATISTICS_NAME,))
        for folder in abandoned_creations(self.path):
            self._add("leftover", "a store that was being made here", files=(f"../{folder.name}",))

    def _episode_faults(self, row: EpisodeRow) -> list[Fault]:
        faults: list[Fault] = []
        whole = hashlib.sha256()
        success = None
        for key, layout in self.layouts.items():
            if key in self._missing:
                continue
            reading = _Reading(self, row, layout, whole)
            faults += reading.faults()
            if key == "success" and not reading.is_torn:
                success = np.concatenate(reading.kept)
        if not faults and not self._missing and whole.hexdigest() != row.checksum:
            where = "its line of the manifest or its arrays have changed" if row.checksums else _ONE_CHECKSUM
            faults.append(Fault("checksum", f"the checksum does not match: {where}", row.id))
        if not faults and success is not None:
            first = int(np.argmax(success)) + 1 if success.any() else None
            if (row.success, row.first_success) != (first is not None, first):
                found = f"its line says first success {row.first_success}, its array {first} (step, counted from 1)"
                faults.append(Fault("manifest", found, row.id, "success", (MANIFEST_NAME,)))
        return faults


def _episode_of(row: EpisodeRow | DroppedRow) -> str | None:
    return row.id if isinstance(row, EpisodeRow) else row.episode


_ONE_CHECKSUM = "one of its arrays has changed (a store of version 1 keeps one checksum for all of them)"


class _Reading:
    """One array of one episode, read file by file."""

    def __init__(self, check: StoreCheck, row: EpisodeRow, layout: ArrayLayout, whole) -> None:
        self._check, self._row, self._layout = check, row, layout
        self._own = hashlib.sha256()
        self._digests = (whole, self._own)
        self.kept: list[np.ndarray] = []  # of arrays of single values, what was read
        self.is_torn = False  # some of it could not be read

    def faults(self) -> list[Fault]:
        row, layout = self._row, self._layout
        self._digest(checksum_head(layout, (row.length, *layout.row_shape)))
        if not layout.row_bytes:
            return self._changed([])
        there = self._check.arrays.row_count(layout)
        if there < row.end:
            self.is_torn = True
            found = f"{max(there - row.start, 0)} of its {row.length} rows are there"
            return [Fault("length", found, row.id, layout.key)]
        faults, infinite, first = [], 0, ""
        for start, end in self._pieces():
            try:
                values = self._check.arrays.read(layout, start, end)
            except UserError as error:
                self.is_torn = True
                faults.append(self._unreadable(start, error.found))
                continue
            self._digest(np.ascontiguousarray(values).data)
            if not layout.row_shape:
                self.kept.append(values)
            if (bad := not_finite(values, start - row.start)) is not None:
                infinite, first = infinite + bad[0], first or bad[1]
        if infinite:
            found = first + (f" and {infinite - 1} more" if infinite > 1 else "")
            faults.append(Fault("not finite", found, row.id, layout.key, self._files()))
        return faults if self.is_torn else self._changed(faults)

    def _digest(self, data) -> None:
        for digest in self._digests:
            digest.update(data)

    def _pieces(self) -> Iterator[tuple[int, int]]:
        size = self._check.arrays.shard_rows(self._layout)
        for shard in range(self._row.start // size, -(-self._row.end // size)):
            yield max(self._row.start, shard * size), min(self._row.end, (shard + 1) * size)

    def _files(self) -> tuple[str, ...]:
        return tuple(self._check.arrays.shard_file(self._layout, start) for start, _ in self._pieces())

    def _unreadable(self, start: int, reason: str) -> Fault:
        file = self._check.arrays.shard_file(self._layout, start)
        place = self._check.path / file
        found = "no such file"
        if place.exists():
            found = f"{place.stat().st_size} bytes that cannot be decoded ({reason.partition('. ')[0]})"
        return Fault("unreadable", found, self._row.id, self._layout.key, (file,))

    def _changed(self, faults: list[Fault]) -> list[Fault]:
        expected = self._row.checksums.get(self._layout.key)
        if self._row.checksums and expected != self._own.hexdigest():
            found = "bytes that are not those that were committed"
            faults.append(Fault("checksum", found, self._row.id, self._layout.key, self._files()))
        return faults
