"""Diffusion Policy (arXiv 2303.04137): every observation starts from pure noise and is denoised to a clean chunk.

With `path=flow` the same network learns the velocity of a flow instead of the noise (flow matching, arXiv 2210.02747).

B batch, H horizon, A action; levels run 0 (clean) .. N (pure noise), the same for all positions of a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from embodied.action_representation import Anchors
from embodied.catalog import STATE_ENCODER, nearest
from embodied.errors import UserError
from embodied.policies.batch import Batch
from embodied.policies.ddpm_path import DdpmPath
from embodied.policies.denoising_policy import DenoisingPolicy, anchor_rows
from embodied.policies.exported_programs import check_memory_is_exportable
from embodied.policies.flow_path import FlowPath
from embodied.policies.moving_reference import re_expressed
from embodied.policies.programs import DenoiseLoop, Network
from embodied.policies.samplers.ancestral import AncestralSampler
from embodied.policies.samplers.heun import HeunSampler
from embodied.policies.samplers.real_time_chunking import SCHEDULES, RealTimeChunking, Schedule, prefix_weights
from embodied.policies.samplers.warm_start import WarmStart, remaining_plan
from embodied.policies.seeded_noise import seeded_normal
from embodied.types import ActionChunk, Json, Observation, TaskSpec

Sampler = Literal["ddim", "ddpm", "euler", "heun", "warm_start", "rtc"]
# Paths that each sampler knows.
SAMPLERS: dict[str, tuple[str, ...]] = {
    "ddim": ("ddpm",),
    "ddpm": ("ddpm",),
    "euler": ("flow",),
    "heun": ("flow",),
    "rtc": ("flow",),
    "warm_start": ("ddpm", "flow"),
}


@dataclass(frozen=True)
class DiffusionState:
    """What lasts between two observations: which noise comes next, and for some samplers the last plan."""

    seed: int
    observations: int = 0
    plan_HA: Tensor | None = None  # clean and normalised
    anchors: Anchors = ()  # what its actions are differences from, if they are


class DiffusionPolicy(DenoisingPolicy):
    """Whole chunks at one level for all positions, by the sampler that is chosen at run time.

    `ddim` (arXiv 2010.02502) and `euler` are the deterministic moves of the two paths, `ddpm` is ancestral sampling,
    `heun` takes second-order steps. `warm_start` and `rtc` go on from the session's last plan.
    """

    run_time_settings = ("sampler", "calls", "warm_level", "inference_delay", "prefix_weights", "engine")

    def __init__(
        self,
        spec: TaskSpec,
        network: Mapping[str, Any],
        encoder: Mapping[str, Any] = STATE_ENCODER,
        *,
        history: int,
        horizon: int,
        action_steps: int,
        past: int,
        levels: int,
        clip: bool,
        sampler: Sampler,
        calls: int,
        warm_level: int = 50,
        inference_delay: int = 0,
        prefix_weights: Schedule = "exp",
        path: str = "ddpm",
        actions: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            sampler: one of `SAMPLERS`.
            calls: network calls from pure noise to clean.
            warm_level: of `warm_start`: the level that the last plan is noised to, 1 .. N.
            inference_delay: d, control steps between an observation and the execution of its chunk. `rtc` freezes the
                d actions that are executed meanwhile; other samplers leave them out.
            prefix_weights: of `rtc`: how the rest of the last chunk is followed.
            the rest: as in `DenoisingPolicy`. All of these may be changed later by `configure`.
        """
        super().__init__(
            spec,
            network,
            encoder,
            history=history,
            horizon=horizon,
            action_steps=action_steps,
            past=past,
            levels=levels,
            clip=clip,
            path=path,
            actions=actions,
        )
        self.sampler = sampler
        self.calls = calls
        self.warm_level = warm_level
        self.inference_delay = inference_delay
        self.prefix_weights = prefix_weights
        self.prepare()

    def prepare(self) -> None:
        super().prepare()
        self._check_sampler()
        self._check_numbers()
        if self.keeps_plan and self.actions.is_relative and not self.actions.has_linear_change_of_base:
            raise UserError(
                expected=f"policy.actions.rotation=rotation_6d for sampler {self.sampler}, whose last plan follows the "
                "moving reference",
                found=f"rotation {self.actions.rotation}, representation {self.actions.representation}",
                remedy="train with policy.actions.rotation=rotation_6d, or use a sampler that keeps no plan",
            )

    def _check_sampler(self) -> None:
        sampler = str(self.sampler)  # a number or a list may come from the command line
        if sampler not in SAMPLERS:
            raise UserError(expected="a sampler for policy.sampler", found=sampler, remedy=nearest(sampler, SAMPLERS))
        if self.path.name not in SAMPLERS[self.sampler]:
            known = ", ".join(name for name, paths in SAMPLERS.items() if self.path.name in paths)
            raise UserError(
                expected=f"a sampler for a network that was trained with policy.path={self.path.name}",
                found=f"policy.sampler={self.sampler}, for path {' or '.join(SAMPLERS[self.sampler])}",
                remedy=f"use one of {known}",
            )
        if self.sampler == "rtc" and self.engine != "eager":
            raise UserError(
                expected="policy.engine=eager with policy.sampler=rtc, whose guidance needs the network's derivative",
                found=self.engine,
                remedy="use the eager engine, or policy=sdp with policy.inference_delay",
            )
        if self.sampler == "rtc" and self.prefix_weights not in SCHEDULES:
            raise UserError(
                expected=f"policy.prefix_weights one of {', '.join(SCHEDULES)}",
                found=str(self.prefix_weights),
                remedy=nearest(str(self.prefix_weights), SCHEDULES),
            )

    def _check_numbers(self) -> None:
        levels = self.path.levels
        self.check_between("calls", 1, levels, f"policy.levels ({levels})")
        self.check_delay()
        if self.sampler == "warm_start":
            self.check_between("warm_level", 1, levels, f"policy.levels ({levels})")
        if self.sampler == "ddpm" and self.calls != levels:
            raise UserError(
                expected=f"policy.calls={levels} with sampler ddpm, which visits every level",
                found=str(self.calls),
                remedy="use policy.sampler=ddim for fewer calls",
            )

    @property
    def keeps_plan(self) -> bool:
        return self.sampler in ("warm_start", "rtc")

    @property
    def label(self) -> str:
        calls = f"{self.sampler}-{self.calls}"
        details = {"warm_start": f" from {self.warm_level}", "rtc": f" {self.prefix_weights}"}.get(self.sampler, "")
        flow = self.path.suffix if self.sampler == "warm_start" else ""
        return f"{calls}{flow}{details}{self.label_suffix}"

    @property
    def calls_per_observation(self) -> int:
        """Network calls of a running session."""
        if self.sampler == "heun":
            return 2 * self.calls - 1
        return len(self._levels(self.warm_level)) - 1 if self.sampler == "warm_start" else self.calls

    @property
    def first_observation_calls(self) -> int:
        return self.calls if self.sampler == "warm_start" else self.calls_per_observation

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Prediction error at one uniformly drawn level a sample (arXiv 2303.04137, eq. 3)."""
        level_B = torch.randint(1, self.path.levels + 1, (len(batch),), generator=generator)
        level_BH = level_B.unsqueeze(1).expand(-1, self.horizon).to(batch.action_BHA.device)
        return self.prediction_error(batch, level_BH, generator)

    def _levels(self, start: int) -> list[Tensor]:
        """The evenly spaced levels of `calls` from pure noise to clean, of which those below `start`, and `start`."""
        below = [level for level in self.path.evenly_spaced(self.calls) if level < start]
        return [torch.full((self.horizon,), level) for level in [start, *below]]

    def sampling(self, network: Network) -> nn.Module:
        """From pure noise [B H A] and contexts to clean, normalised chunks [B H A], as a module.

        Ancestral sampling also takes what it adds on the way, [B N H A].
        """
        if isinstance(self.path, DdpmPath) and self.sampler == "ddpm":
            return AncestralSampler(network, self.path, self.horizon, self.clip)
        levels = self._levels(self.path.levels)
        if isinstance(self.path, FlowPath) and self.sampler == "heun":
            return HeunSampler(network, self.path, levels, self.clip)
        return DenoiseLoop(network, self.path, levels, self.clip)

    def going_on(self, network: Network) -> nn.Module:
        """The same with the last plan as a further input, for samplers that keep it."""
        if isinstance(self.path, FlowPath) and self.sampler == "rtc":
            return RealTimeChunking(network, self.path, self._levels(self.path.levels), self.clip)
        loop = DenoiseLoop(network, self.path, self._levels(self.warm_level), self.clip)
        return WarmStart(loop, self.path, self.warm_level)

    def samplers(self) -> list[tuple[str, nn.Module, Json, Json, Json]]:
        if self.sampler == "rtc":
            raise UserError(
                expected="a sampler without derivatives for an export",
                found="policy.sampler=rtc",
                remedy="export with policy.sampler=euler or heun",
            )
        noise_1HA = torch.zeros(1, self.horizon, self.actions.size)
        first = {"noise": noise_1HA}
        fresh = {"fresh_noise": noise_1HA.unsqueeze(1).repeat(1, self.path.levels, 1, 1)}
        sampling = ("sampling", self.sampling(self.network), first, fresh if self.sampler == "ddpm" else {}, {})
        if not self.keeps_plan:
            return [sampling]
        check_memory_is_exportable(self, "plan")
        return [sampling, ("going_on", self.going_on(self.network), first, {"plan": noise_1HA}, {})]

    def initial_state(self, seed: int) -> DiffusionState:
        return DiffusionState(seed)

    @torch.inference_mode()
    def step(
        self,
        histories: Sequence[Sequence[Observation]],
        states: Sequence[DiffusionState],
        executed: Sequence[int],
    ) -> tuple[list[ActionChunk], list[DiffusionState]]:
        """One chunk a session, each from its own noise. Sessions with a last plan to go on from are a batch apart."""
        condition, anchors = self.condition(histories), self.anchors(histories)
        draws = 1 + (self.path.levels if self.sampler == "ddpm" else 0)
        shape = (draws, self.horizon, self.actions.size)
        noise = torch.stack([seeded_normal(shape, state.seed, state.observations) for state in states])
        noise = self.on_device([noise])[0]
        chunks: dict[int, ActionChunk] = {}
        plans: dict[int, Tensor] = {}
        for fresh in (True, False):
            group = [b for b, s in enumerate(states) if (s.plan_HA is None or not self.keeps_plan) == fresh]
            if not group:
                continue
            everybody = len(group) == len(states)
            noise_G, context = (noise, condition) if everybody else (noise[group], condition[group])
            inputs = (noise_G[:, 0], context)
            if fresh:
                inputs += (noise_G[:, 1:],) if self.sampler == "ddpm" else ()
                plan_BHA, learned_BHA = self._sampled("sampling", self.first_observation_calls, self.sampling, *inputs)
            else:
                rest = [self._rest(states[b], executed[b], anchor_rows(anchors, b)) for b in group]
                inputs += tuple(torch.stack(parts) for parts in zip(*rest, strict=True))
                plan_BHA, learned_BHA = self._sampled("going_on", self.calls_per_observation, self.going_on, *inputs)
            handed_out = self.chunks(
                learned_BHA,
                [histories[b] for b in group],
                anchor_rows(anchors, group),
                self.first_observation_calls if fresh else self.calls_per_observation,
                self.clean_preview,
                is_first=[states[b].observations == 0 for b in group],
            )
            chunks.update(zip(group, handed_out, strict=True))
            plans.update(zip(group, plan_BHA.unbind(0), strict=True))
        next_states = [
            DiffusionState(
                s.seed, s.observations + 1, *((plans[b], anchor_rows(anchors, b)) if self.keeps_plan else ())
            )
            for b, s in enumerate(states)
        ]
        return [chunks[b] for b in range(len(states))], next_states

    def _sampled(
        self, name: str, calls: int, build: Callable[[Network], nn.Module], *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        """Clean chunks, normalised and in units. RTC differentiates, which inference mode forbids."""
        if name == "going_on" and self.sampler == "rtc":
            with torch.inference_mode(False), torch.no_grad():
                return self.observation_step(name, calls, build, *(x.clone() for x in inputs))
        return self.observation_step(name, calls, build, *inputs)

    def _rest(self, state: DiffusionState, executed: int, anchors: Anchors) -> tuple[Tensor, ...]:
        """What the samplers that go on take of a session: its last plan from now on, for `rtc` also the weights."""
        plan_HA = state.plan_HA
        if self.actions.is_relative:
            plan_HA = re_expressed(
                plan_HA,
                executed,
                state.anchors,
                anchors,
                signal_H1=torch.ones(self.horizon, 1, device=plan_HA.device),
                actions=self.actions,
                normalizer=self.action_normalizer,
            )
        plan_HA = remaining_plan(plan_HA, executed)
        if self.sampler == "warm_start":
            return (plan_HA,)
        frozen = self.past + self.inference_delay if self.inference_delay else 0
        weight_H = prefix_weights(self.horizon, frozen, executed, self.prefix_weights)
        return plan_HA, *self.on_device([weight_H, torch.arange(self.horizon) < frozen])
