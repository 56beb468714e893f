"""Consistency distillation with denoising score matching: CTM (arXiv 2310.02279) as Consistency Policy uses it
(arXiv 2405.07503).

With G the student's jump, sg(.) no gradient, G_avg the student with averaged weights, and u the level below t to which
the teacher's solver leads:

    x_est    = G_avg(G(x_t, t -> s), s -> 0)
    x_target = G_avg(sg(G)(Solver(x_t, t -> u), u -> s), s -> 0)
    loss     = d(x_est, x_target) + weight * |v(x_t, t -> t) - velocity|^2

This is CTM's soft consistency matching in its local form, u the next level of the grid, compared at clean actions. The
jump of the target is the student's present one and not the average's (arXiv 2310.14189, sec. 3.2): what is right near
clean actions has to travel up the grid, an interval at a time, and an average would hold it back at each.

B batch, H horizon, A action, C context.
"""

from __future__ import annotations

import torch
from torch import Tensor

from embodied.errors import UserError
from embodied.policies.batch import Batch
from embodied.policies.flow_map import FlowMapPolicy
from embodied.policies.objectives.distance import distance_named
from embodied.policies.objectives.objective import Objective
from embodied.policies.objectives.teacher import DETERMINISTIC_MOVE, Teacher, follow
from embodied.policies.seeded_noise import normal_like


class Consistency(Objective):
    """Neighbours on a teacher's trajectory are to lead to the same place."""

    name = "consistency"
    needs = frozenset({DETERMINISTIC_MOVE})
    grid: Tensor

    def __init__(
        self,
        teacher: Teacher,
        intervals: int,
        teacher_calls: int,
        to_clean: float,
        distance: str,
        score_matching: float,
    ) -> None:
        """
        Args:
            intervals: of the evenly spaced grid of levels that t, u and s are drawn from.
            teacher_calls: of the solver, an interval.
            to_clean: share of the jumps that end at clean actions; the others end anywhere below t.
            distance: one of `DISTANCES`.
            score_matching: weight of denoising score matching.
        """
        super().__init__(teacher)
        self.check_calls("intervals", intervals)
        self.check_calls("teacher_calls", teacher_calls)
        for setting, value, fits, wanted in (
            ("to_clean", to_clean, 0.0 <= to_clean <= 1.0, "from 0 to 1"),
            ("score_matching", score_matching, score_matching >= 0.0, "of at least 0"),
        ):
            if not fits:
                raise UserError(
                    expected=f"objective.{setting} {wanted}", found=str(value), remedy=f"change objective.{setting}"
                )
        self.teacher_calls = teacher_calls
        self.to_clean = to_clean
        self.distance = distance_named(distance)
        self.score_matching = score_matching
        rising = torch.tensor(teacher.path.evenly_spaced(intervals)).flip(0)
        self.register_buffer("grid", rising, persistent=False)

    @staticmethod
    def most_calls(levels: int) -> int:
        return levels

    def loss(self, student: FlowMapPolicy, averaged: FlowMapPolicy, batch: Batch, generator: torch.Generator) -> Tensor:
        matching = self.score_matching * student.loss(batch, generator)
        return self.consistency(student, averaged, batch, generator) + matching

    def consistency(
        self, student: FlowMapPolicy, averaged: FlowMapPolicy, batch: Batch, generator: torch.Generator
    ) -> Tensor:
        """d(x_est, x_target), the mean over the batch."""
        clean_BHA = student.action_normalizer.normalize(student.learned_actions(batch))
        t, u, s = (level_B.unsqueeze(1).expand(clean_BHA.shape[:2]) for level_B in self.draw_levels(batch, generator))
        noisy_BHA = student.path.add_noise(clean_BHA, normal_like(clean_BHA, generator), t)
        context_BC = student.context(batch.state_BTS, batch.images, generator if student.training else None)
        with torch.no_grad():
            averaged_context_BC = averaged.context(batch.state_BTS, batch.images)
            solved_BHA = follow(self.teacher, noisy_BHA, self.between(t, u), self.teacher.context(batch))
            target_BHA = student.jump(solved_BHA, u, s, context_BC)
            target_BHA = averaged.jump(target_BHA, s, torch.zeros_like(s), averaged_context_BC)
        jumped_BHA = student.jump(noisy_BHA, t, s, context_BC)
        estimate_BHA = averaged.jump(jumped_BHA, s, torch.zeros_like(s), averaged_context_BC)
        return self.distance(estimate_BHA, target_BHA, batch.valid_BH).mean()

    def draw_levels(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """t, u and s, int64 [B] each: t uniform above 0 on the grid, u the next one below, s at most u."""
        size = (len(batch),)
        at_t = torch.randint(1, len(self.grid), size, generator=generator)
        at_s = (torch.rand(size, generator=generator) * at_t).long()  # 0 .. at_t - 1
        at_s[torch.rand(size, generator=generator) < self.to_clean] = 0
        at_t, at_s = at_t.to(self.grid.device), at_s.to(self.grid.device)
        return self.grid[at_t], self.grid[at_t - 1], self.grid[at_s]

    def between(self, t: Tensor, u: Tensor) -> list[Tensor]:
        """The levels that the solver stops at, int64 [B H] each; where there are fewer, some moves stand still."""
        return [u + (t - u) * left // self.teacher_calls for left in range(self.teacher_calls, -1, -1)]
