"""PyTorch as it is."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from embodied.policies.engines.engine import Program


class EagerEngine:
    """Runs on any device, needs nothing and starts at once."""

    name = "eager"

    def compile(self, module: nn.Module, inputs: Sequence[Tensor]) -> Program:
        return module
