"""Programs as `torch.export` archives, with a free batch size."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from embodied.policies.engines.onnx_export import batch_shapes, with_batch


def export_torch(module: nn.Module, inputs: Sequence[Tensor], file: Path) -> None:
    """Write `module` for inputs like these; `torch.export.load(file).module()` runs it, with torch alone.

    Raises:
        RuntimeError: the module does something that torch.export cannot follow.
    """
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, with_batch(inputs), dynamic_shapes=batch_shapes(module, len(inputs)))
        torch.export.save(program, file)
