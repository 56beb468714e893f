"""The encoder of policies that read state vectors only: it lays the normalised history side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from embodied.errors import UserError
from embodied.policies.encoders.observation_encoder import ObservationEncoder
from embodied.types import TaskSpec


class StateEncoder(ObservationEncoder):
    """No weights; C is T times S."""

    def __init__(self, spec: TaskSpec, history: int, *, state: Sequence[str] | None = None) -> None:
        """
        Raises:
            UserError: a task with cameras, which this encoder would ignore; else as in `ObservationEncoder`.
        """
        if spec.cameras:
            raise UserError(
                expected="a task without cameras for encoder=state, which reads state vectors only",
                found="cameras " + ", ".join(camera.name for camera in spec.cameras),
                remedy="set encoder=conv_small, which sees them, or task.cameras=[]",
            )
        super().__init__(spec, history, state, [])
        self.context_size = history * self.state_size

    def forward(
        self, state_BTS: Tensor, images: Mapping[str, Tensor], generator: torch.Generator | None = None
    ) -> Tensor:
        return state_BTS.flatten(1)
