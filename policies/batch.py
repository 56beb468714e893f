"""What a policy's loss takes, as tensors."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from embodied.types import Window


@dataclass
class Batch:
    """B windows of To observations and H actions, in the data's own units."""

    state_BTS: Tensor
    action_BHA: Tensor
    valid_BH: Tensor  # bool, False where the loss must not look
    images: dict[str, Tensor] = field(default_factory=dict)  # uint8 [B To h w 3] a camera
    executed_BHA: Tensor | None = None  # what the demonstrator's robot was sent, noise and all

    def __len__(self) -> int:
        return len(self.action_BHA)

    @staticmethod
    def from_window(window: Window, device: torch.device) -> Batch:
        return Batch(
            state_BTS=torch.from_numpy(window.state).to(device),
            action_BHA=torch.from_numpy(window.action).to(device),
            valid_BH=torch.from_numpy(window.valid).to(device),
            images={name: torch.from_numpy(image).to(device) for name, image in window.images.items()},
            executed_BHA=None if window.executed is None else torch.from_numpy(window.executed).to(device),
        )
