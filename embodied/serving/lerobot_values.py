"""What the pickles of LeRobot's robot client may name: its own messages, numpy's arrays and scalars, torch's tensors.

All of them become values of ours. Tensors too are taken apart by hand, so that no loader of torch's runs.
"""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from embodied.errors import UserError
from embodied.serving.lerobot_pickle import Built, Call, Refused, kind_of, read_from, read_pickle

MOST_DIMENSIONS = 8
_DTYPE = re.compile(r"b1|[iu][1248]|f[248]")
# Torch's legacy format of a storage: these numbers, a description, and the values (torch.serialization._legacy_save).
_MAGIC, _PROTOCOL, _LONGEST_HEADER = 0x1950A86A20F9469CFC6C, 1001, 2048
_STORAGES = {
    "BoolStorage": "?",
    "ByteStorage": "u1",
    "CharStorage": "i1",
    "ShortStorage": "<i2",
    "IntStorage": "<i4",
    "LongStorage": "<i8",
    "HalfStorage": "<f2",
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
}
_HELPERS = "lerobot.async_inference.helpers"


@dataclass
class TimedObservation:
    """What the robot client saw: raw values by the robot's own names, a time of its clock (s), and its control step."""

    timestamp: float
    timestep: int
    observation: dict[str, Any]  # numbers, texts, numpy arrays, lists of numbers
    must_go: bool


@dataclass
class PolicyInstructions:
    """What the robot client asks for before it begins. Which policy is served is not its to say."""

    features: dict[str, Any]  # of its observations, by LeRobot's names
    actions_per_chunk: int
    rename_map: dict[str, str]


def read_observation(data: bytes) -> TimedObservation:
    """
    Raises:
        UserError: anything else than a pickled `TimedObservation`.
    """
    state = _record(data, "TimedObservation", "a LeRobot TimedObservation")
    values = {key: _plain(value) for key, value in _field(state, "observation", dict).items()}
    timestamp, timestep = _field(state, "timestamp", float | int), _field(state, "timestep", int)
    if not math.isfinite(timestamp) or not 0 <= timestep < 2**53:
        raise _unfit("TimedObservation", f"timestamp {timestamp}, timestep {timestep}")
    return TimedObservation(float(timestamp), timestep, values, bool(state.get("must_go", False)))


def read_instructions(data: bytes) -> PolicyInstructions:
    """
    Raises:
        UserError: anything else than a pickled `RemotePolicyConfig`.
    """
    state = _record(data, "RemotePolicyConfig", "a LeRobot RemotePolicyConfig")
    rename_map = _field({"rename_map": {}, **state}, "rename_map", dict)
    if not all(isinstance(name, str) for name in rename_map.values()):
        raise _unfit("RemotePolicyConfig", "names in rename_map that are no texts")
    actions = _field(state, "actions_per_chunk", int)
    if not 1 <= actions <= 100_000:
        raise _unfit("RemotePolicyConfig", f"actions_per_chunk {actions}")
    return PolicyInstructions(_field(state, "lerobot_features", dict), actions, rename_map)


class _Record(Built):
    """One of LeRobot's messages: a dataclass's fields by name."""

    def __init__(self, label: str) -> None:
        self.label, self.state = label, None

    def build(self, state: Any) -> None:
        if type(state) is not dict or self.state is not None:
            raise Refused(f"{kind_of(state)} as the fields of a {self.label}")
        self.state = state

    @property
    def inside(self) -> Any:
        return self.state


class _Dtype(Built):
    """numpy.dtype: booleans, integers and floats."""

    def __init__(self, code: Any, align: Any, copy: Any) -> None:
        if type(code) is not str or not _DTYPE.fullmatch(code):
            raise Refused(f"an array of dtype {code[:20] if type(code) is str else kind_of(code)}")
        self.dtype = np.dtype(code)

    def build(self, state: Any) -> None:
        if type(state) is not tuple or len(state) != 8 or state[1] not in ("<", ">", "=", "|"):
            raise Refused("a dtype with another state than its byte order")
        if any(value is not None for value in state[2:5]):
            raise Refused("a dtype with fields")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(Built):
    """numpy.ndarray, whose values come as its state."""

    def __init__(self, kind: Any, shape: Any, code: Any) -> None:
        if kind is not _NDARRAY:
            raise Refused("an array of another class than numpy's own")
        self.value: np.ndarray | None = None

    def build(self, state: Any) -> None:
        if type(state) is not tuple or len(state) != 5:
            raise Refused("an array with another state than shape, dtype, order and values")
        _, shape, dtype, fortran, data = state
        self.value = _shaped(data, dtype, shape, "F" if fortran is True else "C")


_NDARRAY = object()


def _shaped(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(dtype, _Dtype) or type(data) is not bytes or order not in ("C", "F"):
        raise Refused("an array without a dtype, an order or bytes of values")
    sizes = _sizes(shape)
    if math.prod(sizes) * dtype.dtype.itemsize != len(data):
        raise Refused(f"an array {list(sizes)} of {dtype.dtype.name} with {len(data)} bytes")
    return np.frombuffer(data, dtype.dtype).reshape(sizes, order=order)


def _scalar(dtype: Any, data: Any) -> Any:
    return _shaped(data, dtype, (), "C")[()]


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    return _shaped(data, dtype, shape, order)


def _sizes(shape: Any) -> tuple[int, ...]:
    if type(shape) is not tuple or len(shape) > MOST_DIMENSIONS or not all(type(n) is int and n >= 0 for n in shape):
        raise Refused("an array whose shape is not a few whole numbers")
    return shape


@dataclass(frozen=True)
class _Storage:
    values: np.ndarray


def _storage(data: Any) -> _Storage:
    """torch.storage._load_from_bytes: five small pickles, the number of values, and the values."""
    if type(data) is not bytes:
        raise Refused("a torch storage that is no bytes")
    header = io.BytesIO(data[:_LONGEST_HEADER])
    numbers = read_from(header, {}), read_from(header, {})
    system = read_from(header, {})
    if numbers != (_MAGIC, _PROTOCOL) or type(system) is not dict or system.get("little_endian") is not True:
        raise Refused("a torch storage in another format than torch 2 writes")
    described = read_from(header, _STORAGE_NAMES, _described_storage)
    if not isinstance(described, _Description):
        raise Refused(f"a torch storage that is described by {kind_of(described)}")
    dtype, count = described.dtype, described.count
    read_from(header, {})
    begin = header.tell()
    size = count * dtype.itemsize
    if data[begin : begin + 8] != count.to_bytes(8, "little") or len(data) != begin + 8 + size:
        raise Refused(f"a torch storage of {count} {dtype.name} with {len(data) - begin - 8} bytes")
    return _Storage(np.frombuffer(data, dtype, count, begin + 8))


@dataclass(frozen=True)
class _Description:
    dtype: np.dtype
    count: int


def _described_storage(id: Any) -> _Description:
    if type(id) is not tuple or len(id) != 6 or type(id[0]) is not str or id[0] != "storage":
        raise Refused("a torch storage that is described otherwise than torch does")
    _, dtype, _, _, count, view = id
    if not isinstance(dtype, np.dtype) or type(count) is not int or not 0 <= count < 2**48 or view is not None:
        raise Refused("a torch storage of another kind")
    return _Description(dtype, count)


_STORAGE_NAMES = {("torch", name): np.dtype(code) for name, code in _STORAGES.items()}


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, gradient: Any, hooks: Any) -> np.ndarray:
    """torch._utils._rebuild_tensor_v2, of a tensor that is no larger than its storage."""
    sizes, strides = _sizes(size), _sizes(stride)
    if not isinstance(storage, _Storage) or type(offset) is not int or offset < 0 or len(sizes) != len(strides):
        raise Refused("a tensor without a storage")
    if type(hooks) is not dict or hooks:
        raise Refused("a tensor with hooks")
    values, count = storage.values, math.prod(sizes)
    last = offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
    if count > len(values) or (count and last >= len(values)):
        raise Refused(f"a tensor {list(sizes)} beyond its storage of {len(values)}")
    if not count:
        return np.zeros(sizes, values.dtype)
    steps = tuple(step * values.itemsize for step in strides)
    return np.lib.stride_tricks.as_strided(values[offset:], sizes, steps, writeable=False)


def _no_items(*nothing: Any) -> dict[str, Any]:
    return {}


_NAMES: dict[tuple[str, str], Any] = {
    (_HELPERS, "TimedObservation"): Call("TimedObservation", 0, partial(_Record, "TimedObservation")),
    (_HELPERS, "RemotePolicyConfig"): Call("RemotePolicyConfig", 0, partial(_Record, "RemotePolicyConfig")),
    ("numpy", "dtype"): Call("numpy.dtype", 3, _Dtype),
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy._core.multiarray", "_reconstruct"): Call("numpy's _reconstruct", 3, _Array),
    ("numpy.core.multiarray", "_reconstruct"): Call("numpy's _reconstruct", 3, _Array),
    ("numpy._core.multiarray", "scalar"): Call("numpy's scalar", 2, _scalar),
    ("numpy.core.multiarray", "scalar"): Call("numpy's scalar", 2, _scalar),
    ("numpy._core.numeric", "_frombuffer"): Call("numpy's _frombuffer", 4, _from_buffer),
    ("numpy.core.numeric", "_frombuffer"): Call("numpy's _frombuffer", 4, _from_buffer),
    ("torch._utils", "_rebuild_tensor_v2"): Call("torch's _rebuild_tensor_v2", 6, _tensor),
    ("torch.storage", "_load_from_bytes"): Call("torch's _load_from_bytes", 1, _storage),
    ("collections", "OrderedDict"): Call("OrderedDict", 0, _no_items),
}
ALLOWED_NAMES = frozenset(_NAMES)


def _record(data: bytes, label: str, what: str) -> dict[str, Any]:
    value = read_pickle(data, _NAMES, what)
    if not isinstance(value, _Record) or value.label != label or value.state is None:
        raise _unfit(label, kind_of(value) if not isinstance(value, _Record) else f"a {value.label}")
    return value.state


def _field(state: dict[str, Any], name: str, kind: Any) -> Any:
    value = state.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _unfit("message", f"{'no' if name not in state else kind_of(value) + ' as'} '{name}'")
    return value


def _plain(value: Any) -> Any:
    """A raw value of an observation, ready to be checked against a policy's spec.

    Raises:
        UserError: a map, bytes, or a list of something else than numbers.
    """
    if isinstance(value, _Array):
        value = value.value
    if isinstance(value, np.ndarray | np.generic | str | bool | int | float):
        return value
    if isinstance(value, list | tuple) and all(isinstance(item, bool | int | float | np.generic) for item in value):
        return np.array(value)
    raise _unfit("TimedObservation", f"{kind_of(value)} among the observed values")


def _unfit(label: str, found: str) -> UserError:
    return UserError(
        expected=f"a {label} as LeRobot's robot client sends it", found=found, remedy="use LeRobot 0.6's robot_client"
    )
