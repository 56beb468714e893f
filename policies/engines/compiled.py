"""torch.compile (TorchInductor): one fused C++ or Triton program for each batch size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from embodied.policies.engines.engine import Program, cannot_run, checked_parity


class CompiledEngine:
    """Needs a C++ compiler on a CPU; the first call of each batch size takes seconds to minutes."""

    name = "compile"

    def compile(self, module: nn.Module, inputs: Sequence[Tensor]) -> Program:
        program = torch.compile(module, dynamic=False)
        try:
            checked_parity(self.name, module, program, inputs)
        except (RuntimeError, OSError) as error:  # torch._dynamo's and inductor's own are RuntimeErrors
            raise cannot_run(self.name, module, error) from error
        return program
