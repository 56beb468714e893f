"""Regression of the teacher's solutions: noise and observation to where its ODE leads (arXiv 2101.02388).

Pairs are made as they are needed, each seen once: a solution of k calls costs k forward passes, about k / 3 steps of
training, and nothing must be kept, found again or shared between processes.

B batch, H horizon, A action, C context.
"""

from __future__ import annotations

import torch
from torch import Tensor

from embodied.policies.batch import Batch
from embodied.policies.flow_map import FlowMapPolicy
from embodied.policies.objectives.distance import distance_named
from embodied.policies.objectives.objective import Objective
from embodied.policies.objectives.teacher import DETERMINISTIC_MOVE, Teacher, follow
from embodied.policies.seeded_noise import normal_like


class OdePair(Objective):
    """Of the batch the observations alone are used: no action labels."""

    name = "ode_pair"
    needs = frozenset({DETERMINISTIC_MOVE})

    def __init__(self, teacher: Teacher, teacher_calls: int, distance: str) -> None:
        """
        Args:
            teacher_calls: of the solution, at evenly spaced levels.
            distance: one of `DISTANCES`.
        """
        super().__init__(teacher)
        self.check_calls("teacher_calls", teacher_calls)
        self.levels = teacher.path.evenly_spaced(teacher_calls)
        self.distance = distance_named(distance)

    @staticmethod
    def most_calls(levels: int) -> int:
        return 1

    def loss(self, student: FlowMapPolicy, averaged: FlowMapPolicy, batch: Batch, generator: torch.Generator) -> Tensor:
        noise_BHA = normal_like(student.learned_actions(batch), generator)
        levels = [torch.full(noise_BHA.shape[:2], level, device=noise_BHA.device) for level in self.levels]
        solution_BHA = follow(self.teacher, noise_BHA, levels, self.teacher.context(batch))
        context_BC = student.context(batch.state_BTS, batch.images, generator if student.training else None)
        clean_BHA = student.jump(noise_BHA, levels[0], levels[-1], context_BC)
        # Positions past an episode's end are masked in the data, but the teacher has an answer for them.
        return self.distance(clean_BHA, solution_BHA, torch.ones_like(batch.valid_BH)).mean()
