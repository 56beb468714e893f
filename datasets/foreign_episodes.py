"""Episodes that another program recorded, on their way into an episode store: what every importer shares.

An importer says which arrays its format holds and what each becomes here (`Column`), and reads one episode at a time;
this module drafts the spec that the file does not state, checks every value, and commits the episodes.

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
import psutil

from embodied.catalog import nearest
from embodied.datasets.episode_layout import array_layouts
from embodied.datasets.episode_store import EpisodeStore
from embodied.errors import UserError
from embodied.protocols import DemonstrationStore
from embodied.types import UNKNOWN_UNIT, ActionSpec, CameraSpec, Episode, Json, StateSpec, TaskSpec

RECORD = "embodied"  # under this name a foreign file keeps what `record_of` returns
# What an episode must have and a foreign file may not: it is made up, and the store's provenance says so.
MADE_UP = ("executed", "reward", "success", "time_s", "physics")
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


@dataclass(frozen=True)
class Column:
    """One array of a foreign file; a row is one control step."""

    key: str  # in the file
    dtype: np.dtype
    row_shape: tuple[int, ...]
    holds: str | None  # the store's key that it becomes: "state/<name>", "action", ...; None: it is left out

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


def exported_columns(store: DemonstrationStore, format: str, names: dict[str, str]) -> list[Column]:
    """The arrays to write for a store: those of the file that it was imported from if that had the same format, else
    all that were recorded.

    Args:
        names: of the store's keys in the format; "state" and "image" give the start of those of each kind.
    """
    physics_size = store.episode(0).physics.shape[1] if len(store) else 0
    layouts = array_layouts(store.spec, physics_size)
    source = store.provenance.get("source", {})
    if source.get("format") == format and source["holds_action"]:
        return [
            Column(key, np.dtype(array["dtype"]), tuple(array["row_shape"]), array["holds"])
            for key, array in source["arrays"].items()
        ]
    columns: list[Column] = []
    for layout in layouts.values():
        if layout.key in source.get("made_up", ()) or not layout.row_bytes:
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


def import_episodes(data: ForeignEpisodes, store_path: str | Path, stated: Stated) -> list[str]:
    """Make an episode store of foreign data, an episode at a time.

    Returns:
        what was left out, rounded or made up, in words.

    Raises:
        UserError: data that cannot be held as they are, or facts that neither the file nor `stated` gives.
    """
    record = data.facts.record
    action = _action_columns(data, stated)
    spec = _spec(data, stated, action)
    layouts = array_layouts(spec, 0)
    columns = [c for c in data.columns if c.holds in layouts and (c.holds != "action" or c in action)]
    made_up = [key for key in MADE_UP if key not in {column.holds for column in columns}]
    rounded: dict[str, None] = {}
    provenance = record["provenance"] if record else _provenance(data, columns, action, made_up)
    expected = record["expected_episodes"] if record else len(data.lengths)
    with (
        made_whole(store_path) as building,
        EpisodeStore.create(building, spec, expected_episodes=expected, provenance=provenance) as store,
    ):
        for index, length in enumerate(data.lengths):
            require_memory(length * sum(c.size * c.dtype.itemsize for c in columns), f"episode {index} of {data.path}")
            arrays = {str(c.holds): _converted(data, index, c, rounded) for c in columns}
            if stated.action:
                arrays["action"] = np.concatenate([_floats(data, index, c, rounded) for c in action], axis=1)
            store.commit(_episode(spec, arrays, {"seed": index, **data.details(index)}))
    return _left_behind(data, columns, action, rounded, made_up if record is None else [])


def _left_behind(
    data: ForeignEpisodes, columns: list[Column], action: list[Column], rounded: dict[str, None], made_up: list[str]
) -> list[str]:
    held = {column.key for column in (*columns, *action)}
    lost = [f"{column}: left out" for column in data.columns if column.key not in held]
    lost += [f"{key}: rounded to float32" for key in rounded]
    if made_up:
        defaults = "executed as the action, reward 0, no success, time from the control rate"
        lost.append(f"not recorded: {', '.join(made_up)} ({defaults})")
    return lost


def _provenance(data: ForeignEpisodes, columns: list[Column], action: list[Column], made_up: list[str]) -> Json:
    # What an export to the same format writes again.
    arrays = {c.key: {"dtype": c.dtype.str, "row_shape": list(c.row_shape), "holds": c.holds} for c in columns}
    source = {
        "format": data.format,
        "name": data.path.name,
        "arrays": arrays,
        "made_up": made_up,
        "holds_action": all(column.key in arrays for column in action),
    }
    return {"source": {**source, **data.facts.provenance}}


def _action_columns(data: ForeignEpisodes, stated: Stated) -> list[Column]:
    """The columns that side by side are the action."""
    if not stated.action:
        found = [column for column in data.columns if column.holds == "action"]
    else:
        by_key = {column.key: column for column in data.columns}
        for key in stated.action:
            if key not in by_key:
                raise UserError(
                    expected=f"the name of an array of {data.path}", found=f"'{key}'", remedy=nearest(key, by_key)
                )
        found = [by_key[key] for key in stated.action]
    if not found:
        raise UserError(
            expected=f"actions in {data.path}",
            found="the arrays " + (", ".join(column.key for column in data.columns) or "(none)"),
            remedy="say which of them, side by side, are the action (Stated(action=...))",
        )
    return found


def _spec(data: ForeignEpisodes, stated: Stated, action: list[Column]) -> TaskSpec:
    if data.facts.record is not None:
        spec = TaskSpec.from_json(data.facts.record["spec"])
        differences = spec.differences(stated.spec) if stated.spec is not None else []
        if differences:
            raise UserError(
                expected=f"data with the specs of task {stated.spec.task if stated.spec else ''} at {data.path}",
                found="differences, the file's value first: " + "; ".join(differences),
                remedy="state no spec: the file has its own",
            )
        return spec
    if stated.spec is not None:
        _check_fits(data, stated.spec, sum(column.size for column in action))
        return stated.spec
    return _draft(data, stated, action)


def _check_fits(data: ForeignEpisodes, spec: TaskSpec, action_size: int) -> None:
    """Raise a UserError that names what the spec wants and the file has not."""
    held = {column.holds: column for column in data.columns if column.holds}
    problems = [] if action_size == spec.action.size else [f"actions of {action_size} values, not {spec.action.size}"]
    for state in spec.state:
        column = held.get(f"state/{state.name}")
        if column is None or column.size != state.size:
            problems.append(f"no state vector '{state.name}' of {state.size} values" if column is None else f"{column}")
    for camera in spec.cameras:
        column = held.get(f"image/{camera.name}")
        if column is None or column.row_shape != (camera.height, camera.width, 3):
            wanted = f"{camera.height}x{camera.width}"
            problems.append(f"no camera '{camera.name}'" if column is None else f"{column}, not {wanted}")
    if problems:
        raise UserError(
            expected=f"what the spec of {spec.task} names in {data.path}",
            found=f"{'; '.join(problems)}; there are " + ", ".join(str(column) for column in data.columns),
            remedy="state a spec with the file's own names and sizes, or none",
        )


def _draft(data: ForeignEpisodes, stated: Stated, action: list[Column]) -> TaskSpec:
    """The spec as far as the file tells: names from its keys, bounds from its actions, units unknown."""
    control_hz = stated.control_hz or data.facts.control_hz
    if not control_hz:
        raise UserError(
            expected=f"the control rate of {data.path}, which its format does not hold",
            found="none",
            remedy="state it, in steps a second (control_hz=...)",
        )
    held = {column.holds: column for column in data.columns if column.holds and column not in action}
    low, high = _bounds(data, action)
    elements = tuple(name for column in action for name in _elements(column, "action"))
    return TaskSpec(
        task=stated.task or data.facts.task,
        state=tuple(
            StateSpec(name, tuple(_elements(column, name)), UNKNOWN_UNIT)
            for key, column in held.items()
            if (name := key.removeprefix("state/")) != key
        ),
        cameras=tuple(
            CameraSpec(name, column.row_shape[0], column.row_shape[1])
            for key, column in held.items()
            if (name := key.removeprefix("image/")) != key
        ),
        action=ActionSpec(
            elements=elements,
            units=(UNKNOWN_UNIT,) * len(elements),
            low=low,
            high=high,
            binary=(False,) * len(elements),
            representation=stated.representation or data.facts.representation or "absolute",
            rotation="none",
        ),
        control_hz=float(control_hz),
        horizon=max(data.lengths),
    )


def _elements(column: Column, name: str) -> list[str]:
    prefix = name if column.holds == "action" else column.key.rpartition("/")[2]
    return [f"{prefix}_{index}" for index in range(column.size)]


def _bounds(data: ForeignEpisodes, action: list[Column]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Least and greatest value of each element of the action: one pass over the actions alone."""
    size = sum(column.size for column in action)
    low, high = np.full(size, np.inf), np.full(size, -np.inf)
    for index, length in enumerate(data.lengths):
        require_memory(length * size * 8, f"the actions of episode {index} of {data.path}")
        values = np.concatenate([_floats(data, index, column, {}) for column in action], axis=1)
        low, high = np.minimum(low, values.min(axis=0)), np.maximum(high, values.max(axis=0))
    return tuple(low.tolist()), tuple(high.tolist())


def _converted(data: ForeignEpisodes, index: int, column: Column, rounded: dict[str, None]) -> np.ndarray:
    """One array of one episode in the store's type and shape."""
    kind = str(column.holds).partition("/")[0]
    if kind == "image":
        return _whole_bytes(data, index, column)
    if kind == "success":
        return data.read(index, column).reshape(-1) != 0
    if kind == "reward":
        return _floats(data, index, column, rounded)[:, 0]
    if kind in ("physics", "time_s"):
        values = _finite(data, index, column).astype(np.float64)
        return values.reshape(-1) if kind == "time_s" else values
    return _floats(data, index, column, rounded)


def _finite(data: ForeignEpisodes, index: int, column: Column) -> np.ndarray:
    """[T d], in the file's type."""
    values = data.read(index, column).reshape(data.lengths[index], -1)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        step, element = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise UserError(
            expected=f"finite values of {column.key} in {data.path}",
            found=f"{values[step, element]} in episode {index}, step {step}, element {element}",
            remedy="take that episode out of the file, or repair it there",
        )
    return values


def _floats(data: ForeignEpisodes, index: int, column: Column, rounded: dict[str, None]) -> np.ndarray:
    """[T d] float32; a column whose values change by that is noted in `rounded`."""
    values = _finite(data, index, column)
    with np.errstate(over="ignore"):
        floats = values.astype(np.float32)
    if not np.isfinite(floats).all():
        raise UserError(
            expected=f"values of {column.key} in {data.path} within float32's range",
            found=f"{values[~np.isfinite(floats)][0]} in episode {index}",
            remedy="scale that array in the file",
        )
    if values.dtype != np.float32 and (floats.astype(np.float64) != values).any():
        rounded[column.key] = None
    return floats


def _whole_bytes(data: ForeignEpisodes, index: int, column: Column) -> np.ndarray:
    """Images as uint8, whatever whole numbers of 0 to 255 they were kept as."""
    values = data.read(index, column)
    if values.dtype == np.uint8:
        return values
    odd = ~((values >= 0) & (values <= 255) & (values == np.rint(values)))
    if odd.any():
        step = int(np.argwhere(odd)[0][0])
        raise UserError(
            expected=f"images of whole numbers from 0 to 255 in {column.key} of {data.path}",
            found=f"{values[odd][0]} in episode {index}, step {step}",
            remedy="scale them to 0 .. 255 and round them in the file: the store keeps bytes",
        )
    return values.astype(np.uint8)


def _episode(spec: TaskSpec, arrays: dict[str, np.ndarray], details: Json) -> Episode:
    length = len(arrays["action"])
    return Episode(
        task=spec.task,
        state={state.name: arrays[f"state/{state.name}"] for state in spec.state},
        images={camera.name: arrays[f"image/{camera.name}"] for camera in spec.cameras},
        action=arrays["action"],
        executed=arrays.get("executed", arrays["action"]),
        reward=arrays.get("reward", np.zeros(length, np.float32)),
        success=arrays.get("success", np.zeros(length, bool)),
        time_s=arrays.get("time_s", np.arange(length) * spec.dt_s),
        physics=arrays.get("physics", np.zeros((length, 0))),
        **details,
    )


def require_memory(needed_bytes: int, what: str) -> None:
    """Refuse what a file claims to hold before memory is asked for it."""
    free = psutil.virtual_memory().available
    if needed_bytes > free:
        raise UserError(
            expected=f"{what} to fit into memory ({free / 1e6:,.0f} MB free)",
            found=f"{needed_bytes / 1e6:,.0f} MB",
            remedy="split it in the file, or use a machine with more memory",
        )
