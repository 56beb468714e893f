"""A policy of one or few network calls: its network has learned to jump along a teacher's trajectories.

The flow map f(x_t, t -> s) takes a point at level t to where the teacher's ODE leads it at level s (CTM's "anytime to
anytime jumps", arXiv 2310.02279; consistency models, arXiv 2303.01469, know the jump to clean actions only). The
network predicts a velocity of the path, from which `NoisePath.jump` makes the point: f(x_t, t -> t) = x_t whatever it
predicts.

Students are made by `embodied distill`; their objectives (policies/objectives/) say what they learn.

B batch, H horizon, A action, C context; levels run 0 (clean) .. N (pure noise).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from embodied.catalog import STATE_ENCODER
from embodied.policies.batch import Batch
from embodied.policies.denoising_policy import DenoisingPolicy
from embodied.policies.networks.conditioning import JumpEmbedding
from embodied.policies.programs import Network
from embodied.policies.samplers.jumps import JumpSampler
from embodied.policies.seeded_noise import seeded_normal
from embodied.types import ActionChunk, Json, Observation, TaskSpec


@dataclass(frozen=True)
class FlowMapState:
    """What lasts between two observations: which noise comes next."""

    seed: int
    observations: int = 0


class FlowMapPolicy(DenoisingPolicy):
    """Whole chunks from pure noise, as `DiffusionPolicy` draws them, in as many jumps as are chosen at run time."""

    run_time_settings = ("calls", "inference_delay", "engine")
    level_embedding = JumpEmbedding

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
        objective: str,
        most_calls: int,
        calls: int = 1,
        inference_delay: int = 0,
        path: str = "ddpm",
        actions: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            objective: that it was distilled with, for the label.
            most_calls: that this prepares it for: 1 if it has learned jumps from pure noise to clean actions only.
            calls: network calls from pure noise to clean.
            inference_delay: d, control steps between an observation and the execution of its chunk.
            the rest: as in `DenoisingPolicy`. The settings of `run_time_settings` may be changed by `configure`.
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
        self.objective = objective
        self.most_calls = most_calls
        self.calls = calls
        self.inference_delay = inference_delay
        self.prepare()

    def prepare(self) -> None:
        super().prepare()
        self.check_between("calls", 1, self.most_calls, f"{self.most_calls}, which objective {self.objective} trains")
        self.check_delay()

    @property
    def label(self) -> str:
        return f"{self.objective}-{self.calls}{self.label_suffix}"

    @property
    def calls_per_observation(self) -> int:
        """Network calls of a running session."""
        return self.calls

    @property
    def first_observation_calls(self) -> int:
        return self.calls

    def jump(self, noisy_BHA: Tensor, level_BH: Tensor, to_level_BH: Tensor, context_BC: Tensor) -> Tensor:
        """f(x_t, t -> s): normalised actions at levels t, int64 [B H], to levels s, at most t."""
        way_BH2 = torch.stack([level_BH, to_level_BH], dim=-1) / self.path.levels
        velocity_BHA = self.network(noisy_BHA, way_BH2, context_BC).float()
        return self.path.jump(level_BH, to_level_BH, clip=False)(noisy_BHA, velocity_BHA)

    def predict(self, noisy_BHA: Tensor, level_BH: Tensor, context_BC: Tensor) -> Tensor:
        """The velocity at a level: the limit of short jumps."""
        way_BH2 = torch.stack([level_BH, level_BH], dim=-1) / self.path.levels
        return self.network(noisy_BHA, way_BH2, context_BC)

    def target(self, clean_BHA: Tensor, noise_BHA: Tensor, level_BH: Tensor) -> Tensor:
        return self.path.velocity(clean_BHA, noise_BHA, level_BH)

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Denoising score matching, at one uniformly drawn level a sample: what is learned of the data alone."""
        level_B = torch.randint(1, self.path.levels + 1, (len(batch),), generator=generator)
        level_BH = level_B.unsqueeze(1).expand(-1, self.horizon).to(batch.action_BHA.device)
        return self.prediction_error(batch, level_BH, generator)

    @property
    def pure_noise(self) -> Tensor:
        """[1 H 2]: a jump from pure noise to clean actions."""
        return torch.tensor([1.0, 0.0]).expand(1, self.horizon, 2)

    def sampling(self, network: Network) -> nn.Module:
        """From pure noise [B H A] and contexts to clean, normalised chunks [B H A], as a module."""
        levels = [torch.full((self.horizon,), level) for level in self.path.evenly_spaced(self.calls)]
        return JumpSampler(network, self.path, levels, self.clip)

    def samplers(self) -> list[tuple[str, nn.Module, Json, Json, Json]]:
        noise_1HA = torch.zeros(1, self.horizon, self.actions.size)
        return [("sampling", self.sampling(self.network), {"noise": noise_1HA}, {}, {})]

    def initial_state(self, seed: int) -> FlowMapState:
        return FlowMapState(seed)

    @torch.inference_mode()
    def step(
        self,
        histories: Sequence[Sequence[Observation]],
        states: Sequence[FlowMapState],
        executed: Sequence[int],
    ) -> tuple[list[ActionChunk], list[FlowMapState]]:
        """One chunk a session, each from its own noise: that of a `DiffusionPolicy` with the same seed."""
        shape = (1, self.horizon, self.actions.size)
        noise_BHA = torch.cat([seeded_normal(shape, state.seed, state.observations) for state in states])
        _, learned_BHA = self.observation_step(
            "sampling", self.calls, self.sampling, *self.on_device([noise_BHA]), self.condition(histories)
        )
        chunks = self.chunks(
            learned_BHA,
            histories,
            self.anchors(histories),
            self.calls,
            self.clean_preview,
            is_first=[state.observations == 0 for state in states],
        )
        return chunks, [FlowMapState(state.seed, state.observations + 1) for state in states]
