"""What a policy's loss takes, as tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from embodied.types import Window


@dataclass
class Batch:
    """B windows of To observations and H actions, in the data's own units."""

    state_BTS: Tensor
    action_BHA: Tensor
    valid_BH: Tensor  # bool, False where the loss must not look

    def __len__(self) -> int:
        return len(self.action_BHA)

    @staticmethod
    def from_window(window: Window, device: torch.device) -> Batch:
        return Batch(
            state_BTS=torch.from_numpy(window.state).to(device),
            action_BHA=torch.from_numpy(window.action).to(device),
            valid_BH=torch.from_numpy(window.valid).to(device),
        )
