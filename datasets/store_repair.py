"""Taking away from a store what was never committed, and, where that is asked for, its damaged episodes.

Every step is one change of the file system that is whole or absent, and leaves a store that can be opened: a repair
that was killed is finished by the next one. Bytes of committed rows are never written.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import embodied
from embodied.datasets.durable_files import WriterLock
from embodied.datasets.episode_layout import ArrayLayout
from embodied.datasets.episode_store import LOCK_NAME
from embodied.datasets.faults import Fault
from embodied.datasets.manifest import MANIFEST_NAME, DroppedRow, EpisodeRow, Manifest
from embodied.datasets.store_check import StoreCheck
from embodied.datasets.store_folder import raise_version, read_attributes
from embodied.datasets.time_arrays import TimeArrays
from embodied.errors import UserError

_COPY = "copy the store again from where it came, or remove it and run `embodied collect`"


class StoreRepair:
    """A repair of the store at `path`, which nobody else writes meanwhile.

        with StoreRepair(path) as repair:
            for done in repair.remove(faults): ...
            for done in repair.drop(faults): ...

    Raises:
        UserError: another process writes the store, or it is not to be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = WriterLock(path / LOCK_NAME)

    def __enter__(self) -> StoreRepair:
        return self

    def __exit__(self, *_) -> None:
        self._lock.release()

    def check(self) -> StoreCheck:
        """The check of this store, of which nobody is the writer but this repair."""
        return StoreCheck(self.path, is_ours=True)

    def remove(self, check: StoreCheck) -> Iterator[str]:
        """Take away what was never committed; yields each thing that was done, in words.

        Rows behind the manifest's end are left where a line of the manifest is damaged: it may have committed them.
        """
        blocking = _blocking(check)
        for fault in check.faults:
            if fault.kind == "leftover" and not (blocking and fault.key):
                yield self._remove_files(fault)
        tails = [fault for fault in check.faults if fault.kind == "tail"]
        if blocking or not tails:
            return
        manifest = Manifest(self.path / MANIFEST_NAME)
        # First, as in the store itself: no array may become shorter than the manifest on the disk says.
        manifest.cut()
        arrays = TimeArrays(self.path, writable=True)
        for fault in tails:
            if fault.key is not None:
                arrays.cut(check.layouts[fault.key], manifest.end)
            yield f"removed {fault}"

    def drop(self, check: StoreCheck, faults: Sequence[Fault]) -> Iterator[str]:
        """Drop the episodes that faults spoil, by a line of the manifest each; yields what was done, in words.

        Raises:
            UserError: the manifest itself is damaged, or no sound episode would be left.
        """
        reasons: dict[str, list[Fault]] = {}
        for fault in faults:
            if fault.spoils_episode and fault.episode is not None:
                reasons.setdefault(fault.episode, []).append(fault)
        if not reasons:
            return
        self._require_droppable(check, reasons)
        manifest = Manifest(self.path / MANIFEST_NAME)
        attributes = read_attributes(self.path)
        next_start = _next_start(TimeArrays(self.path, writable=False), check, manifest.end)
        for row in [row for row in manifest.episodes if row.id in reasons]:
            raise_version(self.path, attributes)
            manifest.append(_dropping(row, reasons[row.id], next_start))
            yield f"dropped episode {row.id} (seed {row.seed}, {row.length} steps): {_in_words(reasons[row.id])}"

    def _require_droppable(self, check: StoreCheck, reasons: dict[str, list[Fault]]) -> None:
        if blocking := _blocking(check):
            raise UserError(
                expected=f"a manifest and arrays in {self.path} that tell which episodes are sound",
                found=str(blocking[0]) + (f", and {len(blocking) - 1} more" if len(blocking) > 1 else ""),
                remedy=_COPY,
            )
        if all(row.id in reasons for row in check.rows):
            raise UserError(
                expected=f"a sound episode in {self.path} that would be left",
                found=f"none: all {len(check.rows)} are damaged",
                remedy=_COPY,
            )

    def _remove_files(self, fault: Fault) -> str:
        for name in fault.files:
            place = self.path / name
            if place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)
        return f"removed {fault}"


def _blocking(check: StoreCheck) -> list[Fault]:
    """Faults with which nobody can tell what was committed."""
    return [fault for fault in check.faults if fault.kind in ("manifest", "metadata", "version")]


def _dropping(row: EpisodeRow, faults: list[Fault], next_start: int) -> DroppedRow:
    return DroppedRow(
        seed=row.seed,
        reason=f"damaged: {_in_words(faults)}",
        variant=row.variant,
        provenance={"repaired_by": embodied.__version__},
        episode=row.id,
        next_start=next_start,
    )


def _in_words(faults: list[Fault]) -> str:
    return "; ".join(f"{fault.key or 'all arrays'}: {fault.found}" for fault in faults)


def _next_start(arrays: TimeArrays, check: StoreCheck, end: int) -> int:
    """Where the next commit may begin: at `end`, or behind files there that cannot be read, and so not be added to."""
    shards = {layout: arrays.shard_rows(layout) for layout in check.layouts.values() if layout.row_bytes}
    if all(_is_readable(arrays, layout, end - end % rows, end) for layout, rows in shards.items()):
        return end
    longest = max(shards.values())  # each is a power of two, so that all begin a new file there
    return -(-end // longest) * longest


def _is_readable(arrays: TimeArrays, layout: ArrayLayout, start: int, end: int) -> bool:
    try:
        return len(arrays.read(layout, start, end)) == end - start
    except UserError:
        return False
