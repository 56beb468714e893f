"""The HDF5 files of robomimic and robosuite, both ways.

    data                    attributes: env_args (JSON: env_name, type, env_kwargs), total
    data/demo_<i>           attribute num_samples
        actions             [T A]
        obs/<key>           [T d], or uint8 [T h w 3] of a camera
        rewards, dones      [T]
        states              [T n], the simulator's
        executed, success, time_s   this program's: readers that do not ask for them never see them
    mask/<filter key>       names of demonstrations: "train", "valid"
    embodied                this program's record, JSON

Only what lies in the file itself is read: links to other files and data kept in other files are refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from embodied import __version__
from embodied.catalog import nearest
from embodied.datasets.episode_layout import episode_arrays
from embodied.datasets.foreign_episodes import (
    COPY_REMEDY,
    RECORD,
    Column,
    Facts,
    Stated,
    by_shape,
    checked_record,
    details_of,
    exported_columns,
    made_whole,
    record_of,
    recorded,
)
from embodied.datasets.foreign_import import import_episodes
from embodied.errors import UserError
from embodied.protocols import DemonstrationStore
from embodied.types import Json

FORMAT = "robomimic"
RECORD_BYTES = 2**28
VALID_SHARE = 0.1  # of the demonstrations, as robomimic's own split has it
GYM_TYPE = 2  # robomimic's number for environments made by name
_NAMES = {
    **{"state": "obs/", "image": "obs/", "action": "actions", "executed": "executed", "reward": "rewards"},
    **{"success": "success", "time_s": "time_s", "physics": "states"},
}
_HOLDS = {"actions": "action", "rewards": "reward", "states": "physics"}
_NEXT = "next_obs/"
_DEMONSTRATION = re.compile(r"demo_(\d+)")
LOST = [
    f"the task's spec, seeds, variants, instructions and provenance: kept in the data set '{RECORD}', "
    "which robomimic does not read",
    "an environment that robomimic can make: its own roll-outs need one (experiment.rollout.enabled=false)",
    "next_obs: what follows the last action was not recorded (train.hdf5_load_next_obs=false)",
    "states as robosuite orders them: they are the task's own (positions, velocities, mocap poses)",
    "checksums, and attempts that were dropped",
]


def is_robomimic(path: Path) -> bool:
    """Whether an HDF5 file is at `path`."""
    return path.is_file() and h5py.is_hdf5(path)


def export_robomimic(store: DemonstrationStore, path: str | Path) -> list[str]:
    """Write a store's episodes as demo_0, demo_1, ... and a tenth of them into the mask "valid", the rest into "train".

    A store that was imported from such a file gets its arrays, `env_args` and masks back.

    Returns:
        what the format cannot hold, in words.

    Raises:
        UserError: something is at `path`, the store is empty, or its data are damaged.
    """
    columns = exported_columns(store, FORMAT, _NAMES, required=["reward"])
    source = store.provenance.get("source", {})
    with made_whole(path) as building, h5py.File(building, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(source.get("env_args") or _env_args(store))
        data.attrs["total"] = store.total_steps
        details = []
        for index in range(len(store)):
            episode = store.episode(index)
            demonstration = data.create_group(f"demo_{index}")
            demonstration.attrs["num_samples"] = episode.length
            arrays = episode_arrays(episode)
            for column in columns:
                values = arrays[str(column.holds)].reshape(episode.length, *column.row_shape)
                _write(demonstration, column, values.astype(column.dtype))
            demonstration["dones"] = (np.arange(episode.length) == episode.length - 1).astype(np.int64)
            details.append(details_of(episode))
        for name, demonstrations in _masks(details).items():
            file[f"mask/{name}"] = np.array([f"demo_{index}" for index in demonstrations], dtype="S")
        file[RECORD] = json.dumps({**record_of(store, columns), "episodes": details})
    made_up = [key for key in source.get("made_up", ()) if key != "reward"]
    lost = LOST + ([f"{', '.join(made_up)}: not written, nobody recorded them"] if made_up else [])
    is_made_up = "reward" in source.get("made_up", ()) and source.get("format") != FORMAT
    return lost + (["rewards: zeros, nobody recorded them"] if is_made_up else [])


def _write(demonstration: h5py.Group, column: Column, values: np.ndarray) -> None:
    is_image = str(column.holds).startswith("image/")
    compression: dict[str, Any] = {"compression": "gzip", "compression_opts": 4} if is_image else {}
    chunks = (1, *column.row_shape) if is_image else None  # a frame at a time is what training reads
    demonstration.create_dataset(column.key, data=values, chunks=chunks, **compression)


def _env_args(store: DemonstrationStore) -> Json:
    return {
        "env_name": store.spec.task,
        "env_version": f"embodied {__version__}",
        "type": GYM_TYPE,
        "env_kwargs": {"control_freq": store.spec.control_hz},
    }


def _masks(details: list[Json]) -> dict[str, list[int]]:
    """Filter key -> places of demonstrations: the file's own where the store came from one."""
    masks: dict[str, list[int]] = {}
    for index, detail in enumerate(details):
        for name in detail["provenance"].get("masks", ()):
            masks.setdefault(name, []).append(index)
    if masks or len(details) < 2:
        return masks
    count = max(1, round(VALID_SHARE * len(details)))
    valid = np.random.default_rng(0).permutation(len(details))[:count]
    return {"train": sorted({*range(len(details))} - {*valid.tolist()}), "valid": sorted(valid.tolist())}


def import_robomimic(path: str | Path, store_path: str | Path, stated: Stated | None = None) -> list[str]:
    """Make an episode store of the demonstrations, in the order of their numbers; with `stated.filter_key` only of
    those that the mask of this name lists.

    Returns:
        what was left out, rounded or made up, in words.

    Raises:
        UserError: see `import_episodes`; a file that is cut off, keeps data elsewhere, or lacks env_args, actions or
            observations; demonstrations without steps, or whose arrays differ in length.
    """
    stated = stated or Stated()
    with _opened(Path(path)) as file:
        return import_episodes(RobomimicFile(Path(path), file, stated.filter_key), store_path, stated)


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError(
            expected=f"an HDF5 file, whole, at {path}", found=str(error), remedy="copy it again, or record it again"
        ) from error
    with file:
        yield file


class RobomimicFile:
    """An HDF5 file opened for reading (`ForeignEpisodes`)."""

    format = FORMAT

    def __init__(self, path: Path, file: h5py.File, filter_key: str | None) -> None:
        self.path = path
        self._data = self._group(file, "data")
        env_args = self._env_args()
        masks = self._masks(file)
        self._names = self._demonstrations(masks, filter_key)
        self._record, details = self._read_record(file)
        self._details = [
            details[name]
            if details
            else {"provenance": {"name": name, "masks": [m for m in masks if name in masks[m]]}}
            for name in self._names
        ]
        shapes = [self._shapes(name) for name in self._names]
        self.lengths = tuple(self._length(name, found) for name, found in zip(self._names, shapes, strict=True))
        self._check_alike(shapes)
        # Left aside: what follows from the rest.
        kept = {
            key: values
            for key, values in shapes[0].items()
            if not key.startswith(_NEXT) and not (key == "dones" and self._record)
        }
        self.columns = tuple(
            Column(key, array.dtype, array.shape[1:], recorded(self._record, key, _holds(key, array.shape[1:])))
            for key, array in kept.items()
        )
        kwargs = env_args.get("env_kwargs") if isinstance(env_args.get("env_kwargs"), dict) else {}
        self.facts = Facts(
            task=f"imported/{env_args.get('env_name', path.stem)}".lower(),
            control_hz=_number(kwargs.get("control_freq")),
            representation=_representation(kwargs),
            provenance={"env_args": env_args},
            record=self._record,
            left_out=self._other_contents(shapes[0]),
        )

    def label(self, index: int) -> str:
        return self._names[index]

    def read(self, index: int, column: Column) -> np.ndarray:
        try:
            return np.asarray(self._data[self._names[index]][column.key][()])
        except (OSError, RuntimeError) as error:
            raise self._bad(f"{column.key} of {self._names[index]} intact", str(error), COPY_REMEDY) from error

    def details(self, index: int) -> Json:
        return self._details[index]

    def _bad(self, expected: str, found: str, remedy: str) -> UserError:
        return UserError(expected=f"{expected} in {self.path}", found=found, remedy=remedy)

    def _group(self, parent: h5py.Group, name: str) -> h5py.Group:
        group = self._member(parent, name)
        if not isinstance(group, h5py.Group):
            raise self._bad(
                f"the group {name} of a robomimic file",
                "no such group",
                "name a file that robomimic or robosuite wrote",
            )
        return group

    def _member(self, parent: h5py.Group, name: str) -> h5py.Group | h5py.Dataset | None:
        """What a group holds under this name, if that lies in this file; None for nothing."""
        link = parent.get(name, getlink=True)
        if link is None:
            return None
        where = f"{parent.name.rstrip('/')}/{name}"
        remedy = "copy those data into the file (h5repack, or h5py's File.copy)"
        if not isinstance(link, h5py.HardLink):
            raise self._bad(f"{where} itself", f"a link ({type(link).__name__})", remedy)
        try:
            member = parent[name]
        except (OSError, KeyError) as error:
            raise self._bad(f"{where} intact", str(error), COPY_REMEDY) from error
        if isinstance(member, h5py.Dataset) and (member.is_virtual or member.external):
            raise self._bad(f"{where} itself", "data kept in other files", remedy)
        return member if isinstance(member, (h5py.Group, h5py.Dataset)) else None

    def _env_args(self) -> Json:
        text = self._data.attrs.get("env_args")
        remedy = "write data.attrs['env_args'], JSON with env_name, type and env_kwargs, as robomimic's converters do"
        if text is None:
            raise self._bad("the attribute env_args of data", "none (a raw robosuite file?)", remedy)
        try:
            env_args = json.loads(text)
            if isinstance(env_args, dict):
                return env_args
            raise ValueError("no JSON object")
        except (TypeError, ValueError) as error:
            raise self._bad(
                "JSON in the attribute env_args of data", f"{str(text)[:60]!r} ({error})", remedy
            ) from error

    def _masks(self, file: h5py.File) -> dict[str, list[str]]:
        masks = {}
        for name in self._group(file, "mask") if "mask" in file else ():
            values = self._member(file["mask"], name)
            if not isinstance(values, h5py.Dataset) or values.dtype.kind not in "SO":
                raise self._bad(f"names of demonstrations in mask/{name}", "something else", "remove that mask")
            masks[name] = [v.decode() if isinstance(v, bytes) else str(v) for v in np.atleast_1d(values[()])]
        return masks

    def _demonstrations(self, masks: dict[str, list[str]], filter_key: str | None) -> list[str]:
        if filter_key is not None and filter_key not in masks:
            raise self._bad("a filter key", f"'{filter_key}'", nearest(filter_key, masks))
        found = []
        for name in self._data:
            match = _DEMONSTRATION.fullmatch(name)
            if match is None:
                raise self._bad("demonstrations called demo_<number>", f"data/{name}", "rename or remove it")
            found.append((int(match[1]), name))
        names = [name for _, name in sorted(found) if filter_key is None or name in masks[filter_key]]
        if not names:
            raise self._bad("at least one demonstration", "none", "record some, or name another filter key")
        return names

    def _read_record(self, file: h5py.File) -> tuple[Json | None, dict[str, Json]]:
        """This program's record and its details of each demonstration, if it exported the file."""
        values = self._member(file, RECORD)
        if values is None:
            return None, {}
        if not isinstance(values, h5py.Dataset) or values.shape != () or values.dtype.kind not in "SO":
            raise self._bad(f"this program's record in '{RECORD}'", "something else", "remove it")
        try:
            record = json.loads(values[()])
        except (TypeError, ValueError, OSError) as error:
            raise self._bad(f"this program's record in '{RECORD}'", str(error), COPY_REMEDY) from error
        record = checked_record(record, self.path, len(self._data))
        return record, {f"demo_{index}": details for index, details in enumerate(record["episodes"])}

    def _shapes(self, name: str) -> dict[str, h5py.Dataset]:
        """The data sets of a demonstration, by their paths within it."""
        found: dict[str, h5py.Dataset] = {}
        groups = [("", self._group(self._data, name))]
        while groups:
            prefix, group = groups.pop()
            for key in group:
                member = self._member(group, key)
                if isinstance(member, h5py.Group):
                    groups.append((f"{prefix}{key}/", member))
                elif member is not None:
                    self._check_numbers(name, prefix + key, member)
                    found[prefix + key] = member
        if "actions" not in found:
            raise self._bad(f"actions of {name}", ", ".join(sorted(found)) or "nothing", "record it again")
        if not any(key.startswith("obs/") for key in found):
            raise self._bad(
                f"observations (obs/...) of {name}",
                "none",
                "add them with robomimic's dataset_states_to_obs.py, which plays the states back",
            )
        return dict(sorted(found.items()))

    def _check_numbers(self, name: str, key: str, values: h5py.Dataset) -> None:
        if values.dtype.kind not in "fiub" or values.ndim < 1:
            raise self._bad(
                f"numbers with a leading axis of steps in {key} of {name}",
                f"{values.dtype} {list(values.shape or ())}",
                "take that data set out of the file",
            )

    def _length(self, name: str, found: dict[str, h5py.Dataset]) -> int:
        lengths = {key: len(values) for key, values in found.items()}
        length = lengths["actions"]
        if not length:
            raise self._bad(f"at least one step of {name}", "none", "take that demonstration out of the file")
        other = {key: count for key, count in lengths.items() if count != length}
        if other:
            words = ", ".join(f"{key} {count}" for key, count in other.items())
            raise self._bad(
                f"{length} rows of each array of {name}, as of its actions", words, "cut them to one length"
            )
        samples = self._data[name].attrs.get("num_samples", length)
        if not np.array_equal(samples, length):
            raise self._bad(f"{samples} rows of {name}, as its num_samples says", str(length), "correct one of them")
        return length

    def _check_alike(self, shapes: list[dict[str, h5py.Dataset]]) -> None:
        first = {key: (values.dtype, values.shape[1:]) for key, values in shapes[0].items()}
        for name, found in zip(self._names, shapes, strict=True):
            here = {key: (values.dtype, values.shape[1:]) for key, values in found.items()}
            different = sorted(key for key in first.keys() | here.keys() if first.get(key) != here.get(key))
            if different:
                raise self._bad(
                    f"the same arrays in {name} as in {self._names[0]}",
                    f"a difference in {', '.join(different)}",
                    "export demonstrations of one kind into one file",
                )

    def _other_contents(self, first: dict[str, h5py.Dataset]) -> tuple[str, ...]:
        notes = ["next_obs (the next step's obs)"] if any(key.startswith(_NEXT) for key in first) else []
        if "model_file" in self._data[self._names[0]].attrs:
            notes.append("model_file (each demonstration's MuJoCo model)")
        return tuple(notes)


def _holds(key: str, row_shape: tuple[int, ...]) -> str | None:
    if key in _HOLDS:
        return _HOLDS[key]
    folder, _, name = key.partition("/")
    return by_shape(name.replace("/", "."), row_shape) if folder == "obs" else None


def _number(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) and value > 0 else None


def _representation(kwargs: Json) -> Any:
    """What robosuite's controller takes: "delta", "absolute", or None where the file does not say."""
    config = kwargs.get("controller_configs")
    if not isinstance(config, dict):
        return None
    if isinstance(config.get("control_delta"), bool):  # robosuite 1.4
        return "delta" if config["control_delta"] else "absolute"
    parts = config.get("body_parts")  # robosuite 1.5
    parts = parts if isinstance(parts, dict) else {}
    kinds = {part.get("input_type") for part in parts.values() if isinstance(part, dict) and "input_type" in part}
    return kinds.pop() if len(kinds) == 1 and kinds <= {"delta", "absolute"} else None
