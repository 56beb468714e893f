"""Programs as ONNX, with a free batch size."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Sequence
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

OPSET = 20


def export_onnx(
    module: nn.Module,
    inputs: Sequence[Tensor],
    file: BinaryIO,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> None:
    """Write `module` for inputs like these; the first dimension of each is the batch, `B` in the model.

    Raises:
        torch.onnx.OnnxExporterError: the module does something that ONNX cannot say.
    """
    # A batch of one would be taken for a constant.
    example = tuple(torch.cat([x, x]) if len(x) == 1 else x for x in inputs)
    batch = torch.export.Dim("B", min=1)
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings(), _quiet_exporter():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            tuple(x.clone() for x in example),  # tensors made in inference mode cannot be traced
            input_names=input_names,
            output_names=output_names,
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=_shapes(module, len(example), {0: batch}),
            external_data=False,
            verbose=False,
            optimize=True,
        )
    program.save(file)


def _shapes(module: nn.Module, inputs: int, each: dict[int, torch.export.Dim]) -> tuple[Any, ...]:
    """`each` for every input, those that `*inputs` collects in a tuple of their own, as torch.export wants it."""
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    named = sum(kind is not inspect.Parameter.VAR_POSITIONAL for kind in kinds)
    return (each,) * named + (((each,) * (inputs - named),) if inputs > named else ())


class _quiet_exporter:
    """The exporter logs its progress, which is no news for anybody."""

    _names = ("torch.onnx", "onnxscript", "onnx_ir")

    def __enter__(self) -> None:
        self._before = [logging.getLogger(name).level for name in self._names]
        for name in self._names:
            logging.getLogger(name).setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        for name, level in zip(self._names, self._before, strict=True):
            logging.getLogger(name).setLevel(level)
