"""ONNX Runtime on the CPU: the program is exported once, its constants folded and its operators fused."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from embodied.errors import MisfitError, UserError
from embodied.policies.engines import onnx_export
from embodied.policies.engines.engine import Program, cannot_run, checked_parity, not_installed
from embodied.policies.engines.onnx_export import export_onnx
from embodied.policies.engines.program_cache import drop_program, keep_program, program_key, read_program


class OnnxRuntimeEngine:
    """Exports with `onnxscript`; needs no compiler, and serves every batch size with one program."""

    name = "onnxruntime"

    def compile(self, module: nn.Module, inputs: Sequence[Tensor]) -> Program:
        check_installed(f"policy.engine={self.name}")
        if any(x.device.type != "cpu" for x in inputs):
            raise MisfitError(
                expected="a policy on the CPU for policy.engine=onnxruntime",
                found=f"one on {inputs[0].device}",
                remedy="use policy.engine=cuda_graph or compile on a GPU",
            )
        key = program_key(module, inputs, *_versions())
        if (program := self._kept(key, module, inputs)) is not None:
            return program
        model = io.BytesIO()
        try:
            export_onnx(module, inputs, model)
            program = OnnxProgram(model.getvalue(), threads=torch.get_num_threads())
            checked_parity(self.name, module, program, inputs)
        except UserError:
            raise
        except Exception as error:  # the exporter's and the runtime's own are many and derive from nothing narrower
            raise cannot_run(self.name, module, error) from error
        keep_program(key, model.getvalue())
        return program

    def _kept(self, key: str, module: nn.Module, inputs: Sequence[Tensor]) -> Program | None:
        """One that was exported before. A file that cannot be run, or gives something else, is dropped."""
        if (model := read_program(key)) is None:
            return None
        try:
            program = OnnxProgram(model, threads=torch.get_num_threads())
            checked_parity(self.name, module, program, inputs)
        except Exception:  # a damaged file: the runtime's own errors are many
            drop_program(key)
            return None
        return program


def _versions() -> Iterator[str]:
    """Of what turns a module into a program."""
    for package in ("torch", "onnx", "onnxscript"):
        yield f"{package} {importlib.metadata.version(package)}"
    yield inspect.getsource(onnx_export)


def check_installed(wanted: str) -> None:
    """
    Raises:
        UserError: a package that an export to ONNX and its use need is missing.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise not_installed(wanted, package)


class OnnxProgram:
    """A loaded model: tensors in, tensors out, none of them copied."""

    def __init__(self, model: bytes | str, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self._session: Any = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._inputs = [entry.name for entry in self._session.get_inputs()]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        arrays = {name: x.numpy() for name, x in zip(self._inputs, inputs, strict=True)}
        outputs: list[np.ndarray] = self._session.run(None, arrays)
        return tuple(map(torch.from_numpy, outputs))
