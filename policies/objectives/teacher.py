"""What a distiller asks of a teacher, each kind of question declared as a capability.

B batch, H horizon, A action, C context. Actions are normalised, as teacher and student both see them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from embodied.catalog import DISTILLED, lookup
from embodied.errors import UserError
from embodied.policies.batch import Batch
from embodied.policies.denoising_policy import DenoisingPolicy
from embodied.policies.noise_path import NoisePath

# A step along the teacher's ODE from a level to a lower one: `Teacher.move`.
DETERMINISTIC_MOVE = "deterministic move"


class Teacher(Protocol):
    """A trained policy that answers questions. It is frozen, and no part of what training saves."""

    capabilities: frozenset[str]  # which of the questions below it answers
    path: NoisePath

    def context(self, batch: Batch) -> Tensor:
        """What it makes of the batch's observations, [B C]."""
        ...

    def move(self, noisy_BHA: Tensor, level_BH: Tensor, next_level_BH: Tensor, context_BC: Tensor) -> Tensor:
        """`DETERMINISTIC_MOVE`: where one step of its ODE's solver leads, levels int64 [B H]."""
        ...


def teacher_of(policy: DenoisingPolicy, name: str) -> Teacher:
    """The teacher that a trained policy can be, by its name in `POLICIES`.

    Raises:
        UserError: policies of this kind cannot be distilled.
    """
    if name not in DISTILLED:
        raise UserError(
            expected=f"a teacher that can be distilled: a policy of kind {' or '.join(DISTILLED)}",
            found=f"one of kind {name}",
            remedy="train one with policy=flow_matching or policy=diffusion",
        )
    return lookup("teacher", DISTILLED, name)(policy)


def check_capabilities(teacher: Teacher, needs: frozenset[str], objective: str) -> None:
    """
    Raises:
        UserError: the objective asks what the teacher does not answer.
    """
    for capability in sorted(needs - teacher.capabilities):
        raise UserError(
            expected=f"a teacher with the capability '{capability}', which objective {objective} asks of it",
            found=f"{type(teacher).__name__}, which has {', '.join(sorted(teacher.capabilities)) or 'none'}",
            remedy="choose another objective or another teacher",
        )


@torch.no_grad()
def follow(teacher: Teacher, noisy_BHA: Tensor, levels: list[Tensor], context_BC: Tensor) -> Tensor:
    """Along the teacher's ODE through these levels, int64 [B H] each, one move between two of them."""
    for level_BH, next_level_BH in pairwise(levels):
        noisy_BHA = teacher.move(noisy_BHA, level_BH, next_level_BH, context_BC)
    return noisy_BHA
