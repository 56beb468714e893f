"""The episode store: demonstrations and rollouts in one Zarr v3 group, committed an episode at a time.

    X/zarr.json         attributes: format, version, the task's spec, expected_episodes, provenance
    X/data/<key>        one array a key, all episodes one after another along the leading time axis
    X/manifest.jsonl    the truth: one line an attempt, written after the episode's rows are on the disk

Rows that no line of the manifest names are a writer's spare room, or left from a crash: they are ignored, and the next
commit overwrites them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import numpy as np

from embodied.catalog import nearest
from embodied.datasets.durable_files import WriterLock, disk_full_as_user_error, require_free_space
from embodied.datasets.episode_layout import (
    ArrayLayout,
    array_layouts,
    check_episode,
    checksum,
    checksums,
    episode_arrays,
    episode_from_arrays,
)
from embodied.datasets.manifest import MANIFEST_NAME, DroppedRow, EpisodeRow, Manifest, encode_json, encode_row
from embodied.datasets.store_folder import (
    COLLECT_REMEDY,
    create_folder,
    raise_version,
    read_attributes,
    unreadable_metadata,
)
from embodied.datasets.stored_statistics import load_statistics, save_statistics
from embodied.datasets.streaming_statistics import StreamingStatistics
from embodied.datasets.time_arrays import COPY_REMEDY, TimeArrays
from embodied.errors import UserError
from embodied.protocols import DemonstrationStore
from embodied.types import Episode, Json, Statistics, TaskSpec, json_differences

LOCK_NAME = "writer.lock"

log = logging.getLogger(__name__)


class EpisodeStore:
    """Episodes of one task on disk. Any number of readers, one writer; made by `create` or `open`."""

    def __init__(self, path: Path, attributes: Json, lock: WriterLock | None) -> None:
        self.path = path
        self.spec = TaskSpec.from_json(attributes["spec"])
        self.expected_episodes = int(attributes["expected_episodes"])
        self.provenance: Json = attributes["provenance"]
        self._attributes = attributes
        self._lock = lock
        self._arrays = TimeArrays(path, writable=lock is not None)
        self._manifest = Manifest(path / MANIFEST_NAME)
        self.ignored = self._inspect()  # what a crash left, in words; () for a clean store
        for remains in self.ignored:
            log.warning("%s: %s", path, remains)

    @classmethod
    def create(
        cls,
        path: str | Path,
        spec: TaskSpec,
        *,
        expected_episodes: int,
        provenance: Json,
        expected_bytes: int | None = None,
    ) -> EpisodeStore:
        """Make a store and open it for writing; or open the store of the same plan that is there, to go on with it.

        Args:
            expected_episodes: kept episodes of the finished store.
            provenance: what made the data; JSON values. To go on with a store, all but `code_version` must agree.
            expected_bytes: size of the finished store, to check the disk's free space before anything is made.

        Raises:
            UserError: something else is at `path`, or a store of another spec, plan or provenance; no disk space.
        """
        path = Path(path)
        provenance = json.loads(encode_json(provenance, f"the provenance of the store {path}"))
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            return cls._continue(path, spec, expected_episodes, provenance)
        if expected_bytes is not None:
            require_free_space(path, expected_bytes)
        attributes = {
            "spec": spec.to_json(),
            "expected_episodes": expected_episodes,
            "provenance": provenance,
        }
        with disk_full_as_user_error(path):
            create_folder(path, attributes)
        return cls.open(path, writable=True)

    @classmethod
    def _continue(cls, path: Path, spec: TaskSpec, expected_episodes: int, provenance: Json) -> EpisodeStore:
        store = cls.open(path, writable=True)
        try:
            check_specs(store, spec, exact=True)
            if store.expected_episodes != expected_episodes:
                raise UserError(
                    expected=f"a store planned for {expected_episodes} episodes at {path}",
                    found=f"one planned for {store.expected_episodes}",
                    remedy="ask for that number to go on with it, or name another folder",
                )
            differences = json_differences(*(_without_version(data) for data in (store.provenance, provenance)))
            if differences:
                raise UserError(
                    expected=f"a store made with these settings at {path}",
                    found="differences, the store's value first: " + "; ".join(differences),
                    remedy="ask for the store's settings to go on with it, or name another folder",
                )
        except UserError:
            store.close()
            raise
        return store

    @classmethod
    def open(cls, path: str | Path, *, writable: bool = False) -> EpisodeStore:
        """Open a store; what a crash left is ignored, logged and listed in `ignored`.

        Raises:
            UserError: nothing there, not a store, of a newer version, unreadable, shorter than its manifest says,
                or (writable) being written by another process.
        """
        path = Path(path)
        attributes = read_attributes(path)
        lock = WriterLock(path / LOCK_NAME) if writable else None
        try:
            return cls(path, attributes, lock)
        except Exception as error:
            if lock is not None:
                lock.release()
            if isinstance(error, (KeyError, TypeError, ValueError)):
                raise unreadable_metadata(path, f"{type(error).__name__}: {error}") from error
            raise

    def close(self) -> None:
        """Trim the arrays to their committed rows and let another writer in. A reader need not be closed."""
        if self._lock is None:
            return
        self._trim(self._layouts)
        self._lock.release()
        self._lock = None

    def __enter__(self) -> EpisodeStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def rows(self) -> tuple[EpisodeRow, ...]:
        """The kept episodes, in the order of their commits."""
        return tuple(self._manifest.episodes)

    @property
    def dropped(self) -> tuple[DroppedRow, ...]:
        return tuple(self._manifest.dropped)

    def __len__(self) -> int:
        return len(self._manifest.episodes)

    @property
    def is_complete(self) -> bool:
        return len(self) >= self.expected_episodes

    @property
    def total_steps(self) -> int:
        return self._manifest.steps

    @property
    def attempted_seeds(self) -> frozenset[int]:
        """Seeds of the kept and of the dropped episodes: those that a collection need not try again."""
        return frozenset(row.seed for row in (*self._manifest.episodes, *self._manifest.dropped))

    @property
    def episode_ends(self) -> np.ndarray:
        """Row after the last of each episode, cumulative: int64 [episodes]."""
        return np.cumsum([row.length for row in self._manifest.episodes], dtype=np.int64)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self._layouts)

    def commit(self, episode: Episode) -> EpisodeRow:
        """Add a whole episode; on return it is on the disk, and on any error or Ctrl-C the store is as it was.

        Raises:
            UserError: the episode does not fit the spec or is not finite, its seed was attempted before, the disk is
                full, or the store is open for reading only.
        """
        self._require_writable(episode.seed)
        check_episode(episode, self.spec, self._physics_size)
        layouts = array_layouts(self.spec, episode.physics.shape[1])
        arrays = episode_arrays(episode)
        row = EpisodeRow(
            id=EpisodeRow.make_id(episode.variant, episode.seed),
            start=self._manifest.end,
            end=self._manifest.end + episode.length,
            length=episode.length,
            seed=int(episode.seed),
            task=episode.task,
            variant=episode.variant,
            instruction=episode.instruction,
            success=episode.success_ever,
            first_success=episode.first_success,
            physics_size=episode.physics.shape[1],
            checksum=checksum(arrays, layouts),
            provenance=episode.provenance,
            checksums=checksums(arrays, layouts),
        )
        encode_row(row)  # provenance that is not JSON must fail before anything is written
        try:
            with disk_full_as_user_error(self.path):
                for key, layout in layouts.items():
                    self._arrays.write(layout, row.start, arrays[key])
                raise_version(self.path, self._attributes)
                self._manifest.append(row)
        except BaseException:
            self._trim(layouts)
            raise
        return row

    def drop(self, seed: int, reason: str, *, variant: str = "base", provenance: Json | None = None) -> DroppedRow:
        """Note an attempt that is not kept.

        Raises:
            UserError: as for `commit`.
        """
        self._require_writable(seed)
        row = DroppedRow(seed=int(seed), reason=reason, variant=variant, provenance=provenance or {})
        with disk_full_as_user_error(self.path):
            raise_version(self.path, self._attributes)
            self._manifest.append(row)
        return row

    def episode(self, index: int, *, verify: bool = False) -> Episode:
        """One episode by its place in `rows`.

        Args:
            verify: compare its bytes with the checksum in the manifest.

        Raises:
            IndexError: no such episode.
            UserError: damaged data.
        """
        row = self._manifest.episodes[index]
        arrays = {key: self._arrays.read(layout, row.start, row.end) for key, layout in self._layouts.items()}
        if verify and checksum(arrays, self._layouts) != row.checksum:
            raise UserError(
                expected=f"episode {row.id} intact in {self.path}",
                found="bytes that do not match the checksum in its manifest",
                remedy=COPY_REMEDY,
            )
        return episode_from_arrays(
            arrays,
            task=row.task,
            seed=row.seed,
            instruction=row.instruction,
            variant=row.variant,
            provenance=dict(row.provenance),
        )

    def read(self, key: str) -> np.ndarray:
        """A whole array in memory, up to the committed end: [total_steps ...]. Meant for low-dimensional data.

        Raises:
            UserError: an unknown key, or damaged data.
        """
        return self._read(self._layout(key), 0, self.total_steps)

    def read_rows(self, key: str, start: int, end: int) -> np.ndarray:
        """Rows `start` to `end` (exclusive) of an array, within the committed ones.

        Raises:
            UserError: an unknown key, or damaged data.
        """
        return self._read(self._layout(key), start, end)

    def read_at(self, key: str, rows: np.ndarray) -> np.ndarray:
        """The rows of an array at these places, within the committed ones (int64 [n], rising).

        Raises:
            UserError: an unknown key, or damaged data.
        """
        runs = np.array(self._manifest.runs, np.int64).reshape(-1, 2)
        ends = np.cumsum(runs[:, 1] - runs[:, 0])  # counted without what dropped episodes left between the runs
        return self._arrays.take(self._layout(key), rows + (runs[:, 1] - ends)[np.searchsorted(ends, rows, "right")])

    def statistics(self, keys: Iterable[str]) -> dict[str, Statistics]:
        """Minimum, maximum, mean and population deviation of each element, in one pass that holds one shard.

        A camera's are per colour channel, and count pixels; all others count steps. Those that `keep_statistics` has
        put into the store are taken from there.

        Raises:
            UserError: an unknown key, a store without episodes, or damaged data.
        """
        if not len(self):
            raise UserError(expected=f"at least one episode in {self.path}", found="none", remedy=COLLECT_REMEDY)
        kept = load_statistics(self.path, self.content_hash())
        layouts = [self._layout(key) for key in keys]
        return {layout.key: kept.get(layout.key) or self._computed_statistics(layout) for layout in layouts}

    def keep_statistics(self, keys: Iterable[str]) -> bool:
        """Put the statistics of these arrays into the store, unless they stand there; returns whether any was new.

        Raises:
            UserError: as for `statistics`, or another process writes the store, or it is not to be written.
        """
        content, wanted = self.content_hash(), list(keys)
        kept = load_statistics(self.path, content)
        if kept.keys() >= set(wanted):
            return False
        statistics = {**kept, **self.statistics(wanted)}
        lock = WriterLock(self.path / LOCK_NAME) if self._lock is None else None
        try:
            with disk_full_as_user_error(self.path):
                save_statistics(self.path, content, statistics)
        finally:
            if lock is not None:
                lock.release()
        return True

    def _computed_statistics(self, layout: ArrayLayout) -> Statistics:
        stream = StreamingStatistics()
        for start in range(0, self.total_steps, layout.shard_rows):
            block = self._read(layout, start, min(start + layout.shard_rows, self.total_steps))
            stream.add(block if block.ndim == 2 else block.reshape(-1, *layout.row_shape[-1:] or (1,)))
        return stream.result()

    def content_hash(self) -> str:
        """sha256 over what the episodes are, in their order; chunks, compression and provenance do not enter."""
        digest = hashlib.sha256()
        for row in self._manifest.episodes:
            digest.update(json.dumps([row.task, row.variant, row.seed, row.instruction, row.checksum]).encode())
        return digest.hexdigest()

    @property
    def _physics_size(self) -> int | None:
        return self._manifest.episodes[0].physics_size if self._manifest.episodes else None

    @property
    def _layouts(self) -> dict[str, ArrayLayout]:
        return array_layouts(self.spec, self._physics_size or 0)

    def _layout(self, key: str) -> ArrayLayout:
        if key not in self._layouts:
            remedy = nearest(key, self._layouts)
            raise UserError(expected=f"the name of an array of {self.path}", found=f"'{key}'", remedy=remedy)
        return self._layouts[key]

    def _read(self, layout: ArrayLayout, start: int, end: int) -> np.ndarray:
        """Rows of the kept episodes, counted without those that dropped episodes left between them."""
        parts, passed = [], 0  # rows of the runs so far
        for first, last in self._manifest.runs:
            begin, stop = max(start - passed, 0), min(end - passed, last - first)
            if begin < stop:
                parts.append(self._arrays.read(layout, first + begin, first + stop))
            passed += last - first
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else self._arrays.read(layout, 0, 0)

    def _inspect(self) -> tuple[str, ...]:
        """Compare the arrays with the manifest; returns what a crash left, in words."""
        longest = 0
        needed = self._manifest.runs[-1][1] if self._manifest.runs else 0
        for key, layout in self._layouts.items():
            rows = self._arrays.row_count(layout)
            if rows < needed and layout.row_bytes:
                raise UserError(
                    expected=f"{needed} rows of '{key}' in {self.path}, as its manifest says",
                    found=f"{rows}: the store is half-written or half-copied",
                    remedy=COPY_REMEDY,
                )
            longest = max(longest, rows)
        remains = []
        if self._manifest.torn:
            remains.append("the last line of the manifest is torn: ignored")
        if longest > self._manifest.end:
            remains.append(
                f"{longest - self._manifest.end} rows beyond the last committed episode "
                "(a writer was stopped before it closed the store, or is at work): ignored"
            )
        return tuple(remains)

    def _trim(self, layouts: dict[str, ArrayLayout]) -> None:
        """Cut off what is not committed. Whatever cannot be cut is beyond the manifest and ignored."""
        try:
            # First, and on the disk: no array may become shorter than the manifest there says.
            self._manifest.cut()
        except OSError as error:
            log.warning("%s: what follows the last episode is left: %s", self.path, error)
            return
        for layout in layouts.values():
            try:
                self._arrays.cut(layout, self._manifest.end)
            except OSError as error:
                log.warning("%s: rows of '%s' are left beyond the last episode: %s", self.path, layout.key, error)

    def _require_writable(self, seed: int) -> None:
        if self._lock is None:
            raise UserError(
                expected=f"{self.path} open for writing",
                found="a store open for reading",
                remedy="open it with writable=True",
            )
        if seed in self.attempted_seeds:
            raise UserError(
                expected=f"a seed that was not attempted yet for {self.path}",
                found=f"seed {seed} again",
                remedy="skip the seeds in `attempted_seeds`",
            )


def _without_version(provenance: Json) -> Json:
    """A newer program may go on with a store."""
    return {key: value for key, value in provenance.items() if key != "code_version"}


def check_specs(store: DemonstrationStore, spec: TaskSpec, *, exact: bool = False) -> None:
    """Raise a UserError that lists every difference between the store's spec and the task's.

    Args:
        exact: cameras that only the store has are a difference too; to read, they may be left alone.
    """
    wanted = {camera.name for camera in spec.cameras}
    cameras = tuple(camera for camera in store.spec.cameras if exact or camera.name in wanted)
    differences = dataclasses.replace(store.spec, cameras=cameras).differences(spec)
    if differences:
        raise UserError(
            expected=f"a store with the specs of task {spec.task} at {store.path}",
            found="differences, the store's value first: " + "; ".join(differences),
            remedy="collect a store with this task, or name the task that made it",
        )


def require_complete(store: DemonstrationStore, allow_partial: bool) -> None:
    """Raise a UserError if the store's collection did not finish, unless the user allows that."""
    if not store.is_complete and not allow_partial:
        raise UserError(
            expected=f"{store.expected_episodes} episodes in {store.path}",
            found=f"{len(store)} kept and {len(store.dropped)} dropped: its collection did not finish",
            remedy="run the same `embodied collect` again to finish it, or train on these with data.allow_partial=true",
        )
