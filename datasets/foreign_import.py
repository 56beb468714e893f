"""From episodes in another program's format to an episode store: the spec that the file does not state, every value
checked, and one commit an episode.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import psutil

from embodied.catalog import nearest
from embodied.datasets.episode_layout import array_layouts
from embodied.datasets.episode_store import EpisodeStore
from embodied.datasets.foreign_episodes import Column, ForeignEpisodes, Stated, made_whole
from embodied.errors import UserError
from embodied.types import UNKNOWN_UNIT, ActionSpec, CameraSpec, Episode, Json, StateSpec, TaskSpec

# What an episode must have and a foreign file may not: it is made up, and the store's provenance says so.
MADE_UP = ("executed", "reward", "success", "time_s", "physics")


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
    _check_distinct(data, columns)
    success = _named(data, [stated.success])[0] if stated.success else None
    found = {*(column.holds for column in columns), *(["success"] if success else [])}
    made_up = [key for key in MADE_UP if key not in found]
    rounded: dict[str, None] = {}
    provenance = record["provenance"] if record else _provenance(data, columns, action, made_up)
    expected = record["expected_episodes"] if record else len(data.lengths)
    with (
        made_whole(store_path) as building,
        EpisodeStore.create(building, spec, expected_episodes=expected, provenance=provenance) as store,
    ):
        for index, length in enumerate(data.lengths):
            require_memory(
                length * sum(c.size * c.dtype.itemsize for c in columns), f"{data.label(index)} of {data.path}"
            )
            arrays = {str(c.holds): _converted(data, index, c, rounded) for c in columns}
            if stated.action:
                arrays["action"] = np.concatenate([_floats(data, index, c, rounded) for c in action], axis=1)
            if success:
                arrays["success"] = np.any(data.read(index, success).reshape(length, -1), axis=1)
            store.commit(_episode(spec, arrays, {"seed": index, **data.details(index)}))
    return _left_behind(data, columns, action, rounded, made_up if record is None else [])


def _left_behind(
    data: ForeignEpisodes, columns: list[Column], action: list[Column], rounded: dict[str, None], made_up: list[str]
) -> list[str]:
    held = {column.key for column in (*columns, *action)}
    lost = [f"{column}: left out" for column in data.columns if column.key not in held]
    lost += [f"{what}: left out" for what in data.facts.left_out]
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
    found = _named(data, stated.action) or [column for column in data.columns if column.holds == "action"]
    if not found:
        raise UserError(
            expected=f"actions in {data.path}",
            found="the arrays " + (", ".join(column.key for column in data.columns) or "(none)"),
            remedy="say which of them, side by side, are the action (Stated(action=...))",
        )
    return found


def _check_distinct(data: ForeignEpisodes, columns: list[Column]) -> None:
    first: dict[str | None, str] = {}
    for column in columns:
        if column.holds in first:
            raise UserError(
                expected=f"arrays of different names in {data.path}",
                found=f"{first[column.holds]} and {column.key}, which both become {column.holds}",
                remedy="rename one of them in the file",
            )
        first[column.holds] = column.key


def _named(data: ForeignEpisodes, keys: Iterable[str]) -> list[Column]:
    by_key = {column.key: column for column in data.columns}
    for key in keys:
        if key not in by_key:
            raise UserError(
                expected=f"the name of an array of {data.path}", found=f"'{key}'", remedy=nearest(key, by_key)
            )
    return [by_key[key] for key in keys]


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
    if column.elements:
        return list(column.elements)
    prefix = name if column.holds == "action" else column.key.rpartition("/")[2]
    return [f"{prefix}_{index}" for index in range(column.size)]


def _bounds(data: ForeignEpisodes, action: list[Column]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Least and greatest value of each element of the action: one pass over the actions alone."""
    size = sum(column.size for column in action)
    low, high = np.full(size, np.inf), np.full(size, -np.inf)
    for index, length in enumerate(data.lengths):
        require_memory(length * size * 8, f"the actions of {data.label(index)} of {data.path}")
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
            found=f"{values[step, element]} in {data.label(index)}, step {step}, element {element}",
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
            found=f"{values[~np.isfinite(floats)][0]} in {data.label(index)}",
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
            found=f"{values[odd][0]} in {data.label(index)}, step {step}",
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
