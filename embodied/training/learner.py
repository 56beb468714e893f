"""What the training loop trains: a policy with what its loss needs beside it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from embodied.policies.batch import Batch
from embodied.policies.denoising_policy import DenoisingPolicy


class Learner(nn.Module):
    """A policy that learns from its own loss.

    `policy` is averaged, validated and deployed. All parameters are optimised and checkpointed, those of a subclass's
    further modules too; their names may begin neither with "average." nor with "optimizer.".
    """

    def __init__(self, policy: DenoisingPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, batch: Batch, generator: torch.Generator, averaged: DenoisingPolicy) -> Tensor:
        """The loss of the policy, so that wrappers for data-parallel training see it."""
        return self.loss(self.policy, averaged, batch, generator)

    def loss(
        self, policy: DenoisingPolicy, averaged: DenoisingPolicy, batch: Batch, generator: torch.Generator
    ) -> Tensor:
        """What training minimises, a scalar.

        Args:
            policy: whose loss it is: the learner's own, or for validation the averaged one.
            averaged: the policy with averaged weights, for losses whose targets are its; without gradients.
        """
        return policy.loss(batch, generator)
