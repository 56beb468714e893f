"""A teacher in numpy alone: the networks of DAPG as arrays of one `.npz` file.

A. Rajeswaran et al., "Learning Complex Dexterous Manipulation with Deep Reinforcement Learning and Demonstrations"
(arXiv:1709.10087): a multilayer perceptron with tanh between its layers, on shifted and scaled observations.

    w0, b0, w1, b1, ...   [out in] and [out] of each layer
    in_shift, in_scale    [S]
    out_shift, out_scale  [A]
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from embodied.errors import UserError
from embodied.policies.teacher import StateTeacher, wrong_kind

_SCALE_FLOOR = 1e-8  # added to in_scale, as DAPG does
_TRANSFORMS = ("in_shift", "in_scale", "out_shift", "out_scale")


class NpzTeacher(StateTeacher):
    """The mean action of a DAPG policy."""

    def _load(self, path: Path) -> None:
        arrays = _read_arrays(path)
        layers = range(sum(name[:1] == "w" for name in arrays))
        _require_names(path, set(arrays), {*_TRANSFORMS, *(f"{kind}{i}" for i in layers for kind in "wb")})
        self._weights = [arrays[f"w{i}"] for i in layers]
        self._biases = [arrays[f"b{i}"] for i in layers]
        self._in_shift, self._in_scale, self._out_shift, self._out_scale = (arrays[name] for name in _TRANSFORMS)
        self._check_shapes(arrays)

    def predict(self, state_S: np.ndarray) -> np.ndarray:
        hidden = (state_S - self._in_shift) / (self._in_scale + np.float32(_SCALE_FLOOR))
        for place, (weight, bias) in enumerate(zip(self._weights, self._biases, strict=True)):
            hidden = weight @ (np.tanh(hidden) if place else hidden) + bias
        return hidden * self._out_scale + self._out_shift

    def _check_shapes(self, arrays: dict[str, np.ndarray]) -> None:
        inputs = self._state.size
        expected: dict[str, tuple[int, ...]] = {"in_shift": (inputs,), "in_scale": (inputs,)}
        for place, weight in enumerate(self._weights):
            last = place == len(self._weights) - 1
            outputs = self._action.size if last else (weight.shape[0] if weight.ndim else 0)
            expected |= {f"w{place}": (outputs, inputs), f"b{place}": (outputs,)}
            inputs = outputs
        expected |= {"out_shift": (inputs,), "out_scale": (inputs,)}
        for name, shape in expected.items():
            if arrays[name].shape != shape:
                raise self._wrong_sizes(f"{name} of shape {list(arrays[name].shape)} instead of {list(shape)}")


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array as float32.

    Raises:
        UserError: another kind of file, or values that are no finite numbers.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise wrong_kind(path, "a .npz file of named arrays", "a single array")
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise wrong_kind(path, "a .npz file of named arrays", error) from error
    if foreign := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
        raise wrong_kind(path, "a .npz file of named arrays", f"an archive with {foreign[0]}")
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise UserError(
                expected=f"finite numbers in {path}", found=f"others in '{name}'", remedy="export the teacher again"
            )
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def _require_names(path: Path, found: set[str], expected: set[str]) -> None:
    if found != expected or "w0" not in found:
        raise UserError(
            expected=f"the arrays w0, b0, w1, b1, ... and {', '.join(_TRANSFORMS)} in {path}",
            found=", ".join(sorted(found)) or "none",
            remedy="export the teacher with these names",
        )
