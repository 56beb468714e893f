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
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings(), _quiet_exporter():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            with_batch(inputs),
            input_names=input_names,
            output_names=output_names,
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=batch_shapes(module, len(inputs)),
            external_data=False,
            verbose=False,
            optimize=True,
            custom_translation_table={torch.ops.aten.scaled_dot_product_attention.default: _attention},
        )
    program.save(file)


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(Q K^T / sqrt(d)) V, [B heads H d] each. The exporter's own spends a third of its operators on finding d.

    Raises:
        ValueError: masks, dropout or grouped queries, which no network here has.
    """
    from onnxscript import opset20 as op

    if attn_mask is not None or dropout_p or is_causal or enable_gqa:
        raise ValueError("attention with a mask, dropout or grouped queries, which this export does not translate")
    size = query.shape[-1]
    scores = op.MatMul(query, op.Transpose(key, perm=[0, 1, 3, 2]))
    scaled = op.Mul(scores, op.Constant(value_float=size**-0.5 if scale is None else scale))
    return op.MatMul(op.Softmax(scaled, axis=-1), value)


def with_batch(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Examples of a batch above 1, which would be taken for a constant, and not of inference mode."""
    return tuple(torch.cat([x, x]) if len(x) == 1 else x.clone() for x in inputs)


def batch_shapes(module: nn.Module, inputs: int) -> tuple[Any, ...]:
    """A free batch size for every input; those that `*inputs` collects are in a tuple of their own."""
    each = {0: torch.export.Dim("B", min=1)}
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
