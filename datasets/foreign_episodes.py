"""Episodes in the formats of other programs: what every importer and every exporter says of its own.

An importer says which arrays its format holds and what each becomes here (`Column`), and reads one episode at a time;
`foreign_import` makes a store of that. An exporter asks which arrays to write (`exported_columns`).

A file that this program exported carries what the format has no place for, in a record of its own (`record_of`), so
that it comes back as the store it was.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from embodied.datasets.episode_layout import array_layouts
from embodied.errors import UserError
from embodied.protocols import DemonstrationStore
from embodied.types import Episode, Json, TaskSpec

RECORD = "embodied"  # under this name a foreign file keeps what `record_of` returns
_NAME = re.compile(r"[\w-][\w .-]*")
COPY_REMEDY = "copy it again from where it came"


@dataclass(frozen=True)
class Stated:
    """What the caller says of data that do not say it themselves."""

    spec: TaskSpec | None = None  # names, units and bounds; its state vectors and cameras choose among the file's
    task: str | None = None  # the name that the store carries, where no spec is given
    control_hz: float | None = None
    representation: Literal["absolute", "delta"] | None = None  # of the actions
    action: tuple[str, ...] = ()  # keys that side by side are the action, where none is called so
    success: str | None = None  # key of an array that is not 0 where the task has succeeded
    filter_key: str | None = None  # of robomimic's files: only the demonstrations that this mask lists


@dataclass(frozen=True)
class Column:
    """One array of a foreign file; a row is one control step."""

    key: str  # in the file
    dtype: np.dtype
    row_shape: tuple[int, ...]
    holds: str | None  # the store's key that it becomes: "state/<name>", "action", ...; None: it is left out
    elements: tuple[str, ...] = ()  # what the file calls each value of a row; () where it does not say

    @property
    def size(self) -> int:
        return math.prod(self.row_shape)

    def __str__(self) -> str:
        return f"{self.key} ({self.dtype.name} {['T', *self.row_shape]})".replace("'", "")


class ForeignEpisodes(Protocol):
    """A file, or folder, of episodes in another format, opened for reading."""

    path: Path
    format: str
    columns: tuple[Column, ...]
    lengths: tuple[int, ...]  # steps of each episode
    facts: Facts

    def label(self, index: int) -> str:
        """What an episode is called in the file."""
        ...

    def read(self, index: int, column: Column) -> np.ndarray:
        """One array of one episode: [length, *row_shape], in the file's type."""
        ...

    def details(self, index: int) -> Json:
        """Of one episode, as far as the file says: "seed", "variant", "instruction", "provenance"."""
        ...


@dataclass(frozen=True)
class Facts:
    """What a foreign file says beside its arrays."""

    task: str  # a name for the store's task
    control_hz: float | None = None
    representation: Literal["absolute", "delta"] | None = None
    provenance: Json = field(default_factory=dict)
    record: Json | None = None  # of this program's exporter
    left_out: tuple[str, ...] = ()  # what the file holds that is no `Column`, in words


def record_of(store: DemonstrationStore, columns: Sequence[Column]) -> Json:
    """What a foreign format has no place for, as JSON, but for the episodes (`details_of`)."""
    return {
        "spec": store.spec.to_json(),
        "expected_episodes": store.expected_episodes,
        "provenance": store.provenance,
        "arrays": {column.key: column.holds for column in columns},
    }


def details_of(episode: Episode) -> Json:
    """The same of one episode, as `ForeignEpisodes.details` returns it."""
    names = ("seed", "variant", "instruction", "provenance")
    return {name: getattr(episode, name) for name in names}


def exported_columns(
    store: DemonstrationStore, format: str, names: dict[str, str], required: Sequence[str] = ()
) -> list[Column]:
    """The arrays to write for a store: those of the file that it was imported from if that had the same format, else
    all that were recorded.

    Args:
        names: of the store's keys in the format; "state" and "image" give the start of those of each kind.
        required: keys that readers of the format count on, recorded or not.

    Raises:
        UserError: the store is empty.
    """
    if not len(store):
        raise UserError(expected=f"at least one episode in {store.path}", found="none", remedy="collect some first")
    layouts = array_layouts(store.spec, store.episode(0).physics.shape[1])
    source = store.provenance.get("source", {})
    if source.get("format") == format and source["holds_action"]:
        return [
            Column(key, np.dtype(array["dtype"]), tuple(array["row_shape"]), array["holds"])
            for key, array in source["arrays"].items()
        ]
    columns: list[Column] = []
    for layout in layouts.values():
        is_made_up = layout.key in source.get("made_up", ()) and layout.key not in required
        if is_made_up or not layout.row_bytes:
            continue
        kind, _, name = layout.key.partition("/")
        key = names[kind] + name
        if key in {column.key for column in columns}:
            key += f"_{kind}"
        columns.append(Column(key, layout.dtype, layout.row_shape, layout.key))
    return columns


def by_shape(name: str, row_shape: tuple[int, ...]) -> str | None:
    """What an array that only has a name becomes: a camera's images, a state vector, or nothing."""
    if not _NAME.fullmatch(name):
        raise UserError(
            expected="arrays named by letters, digits, '.', '-' and spaces",
            found=repr(name),
            remedy="rename that array; its name becomes part of a path",
        )
    if len(row_shape) == 3 and row_shape[-1] == 3:
        return f"image/{name}"
    return f"state/{name}" if len(row_shape) <= 2 else None


def recorded(record: Json | None, key: str, otherwise: str | None) -> str | None:
    """What a column holds: as the exporter noted it, or else `otherwise`."""
    return record["arrays"].get(key) if record is not None else otherwise


def checked_record(record: Any, path: Path, episodes: int) -> Json:
    """The record of a file that this program may have exported.

    Raises:
        UserError: it is not one, or not of this number of episodes.
    """
    try:
        spec = TaskSpec.from_json(record["spec"])
        names = [*(state.name for state in spec.state), *(camera.name for camera in spec.cameras), *record["arrays"]]
        kinds = {"seed": int, "variant": str, "instruction": str, "provenance": dict}
        fits = (
            isinstance(record["provenance"], dict)
            and isinstance(record["expected_episodes"], int)
            and all(_NAME.fullmatch(name.replace("/", ".")) for name in names)
            and len(record["episodes"]) == episodes
            and all(detail.keys() == kinds.keys() for detail in record["episodes"])
            and all(isinstance(detail[name], kinds[name]) for detail in record["episodes"] for name in kinds)
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _record_error(path, f"{type(error).__name__}: {error}") from error
    if not fits:
        raise _record_error(path, f"one that does not fit the {episodes} episodes there")
    return record


def _record_error(path: Path, found: str) -> UserError:
    return UserError(expected=f"a record '{RECORD}' as an export writes it in {path}", found=found, remedy=COPY_REMEDY)


@contextmanager
def made_whole(target: str | Path) -> Iterator[Path]:
    """A place to build at, which becomes `target` if nothing goes wrong, and goes away otherwise.

    Raises:
        UserError: something is at `target`.
    """
    target = Path(target)
    if target.exists():
        raise UserError(
            expected=f"nothing at {target} yet",
            found="a folder" if target.is_dir() else "a file",
            remedy="name another target, or remove that one",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    building = target.with_name(f".converting.{target.name}")
    _remove(building)
    try:
        yield building
        building.rename(target)
    finally:
        _remove(building)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
