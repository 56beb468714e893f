"""What every policy that denoises chunks of actions shares: specs, normalisation, encoder, network, noise path.

B batch, To history, H horizon, A action as the network sees it, S all state vectors side by side, C context.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from embodied.action_representation import ActionTransform, Anchors
from embodied.catalog import ENCODERS, ENGINES, NETWORKS, PATHS, STATE_ENCODER, lookup, make
from embodied.errors import UserError
from embodied.normalize import LimitsNormalizer
from embodied.policies.batch import Batch
from embodied.policies.encoders.observation_encoder import ObservationEncoder
from embodied.policies.engines.engine import Program
from embodied.policies.networks.conditioning import LevelEmbedding
from embodied.policies.noise_path import NoisePath
from embodied.policies.programs import ContextEncoder, Network, NetworkCall, ObservationStep, normalized_state
from embodied.policies.run_time_settings import RunTimeSettings
from embodied.policies.seeded_noise import normal_like
from embodied.types import ActionChunk, Json, Observation, Preview, Statistics, TaskSpec

# Network calls that one program holds: above, an export grows long, and what is saved between calls is little.
MOST_UNROLLED_CALLS = 4


class DenoisingPolicy(RunTimeSettings, nn.Module):
    """Weights and mathematics; a session's state comes in and goes out of `step`."""

    run_time_settings = ("engine",)
    level_embedding: ClassVar[type[LevelEmbedding]] = LevelEmbedding  # of what its network is told of levels
    engine = "eager"  # what runs the network (`ENGINES`)
    inference_delay: int = 0  # control steps from an observation to the first action computed from it
    trained_as: str | None = None  # the policy that the weights were trained as, if it was another one

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
        path: str = "ddpm",
        actions: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            spec: of the task whose observations and actions these are.
            network: `name` in the catalogue, and the network's own settings.
            encoder: of observations, likewise.
            history: To, observations seen, the newest included.
            horizon: Tp, positions predicted.
            action_steps: Ta, actions executed an observation.
            past: leading positions that lie before the newest observation.
            levels: N, noise levels.
            clip: keep predicted clean actions within [-1, 1], the normalised range of the data.
            path: between clean actions and noise: `ddpm`, or `flow` for flow matching (`PATHS`).
            actions: how they are represented (`ActionTransform.from_settings`); None: as they were recorded.
        """
        super().__init__()
        for name, value in {"history": history, "action_steps": action_steps, "levels": levels}.items():
            if value < 1:
                raise UserError(
                    expected=f"policy.{name} of at least 1", found=str(value), remedy=f"raise policy.{name}"
                )
        if past < 0 or horizon < past + action_steps:
            raise UserError(
                expected="policy.horizon of at least policy.past + policy.action_steps, and policy.past not negative",
                found=f"horizon {horizon}, past {past}, action_steps {action_steps}",
                remedy="raise policy.horizon or lower policy.action_steps",
            )
        self.spec = spec
        self.history = history
        self.horizon = horizon
        self.action_steps = action_steps
        self.past = past
        self.clip = clip
        self.encoder: ObservationEncoder = make("encoder", ENCODERS, encoder, spec, history)
        self.actions = ActionTransform.from_settings(spec, actions)
        self.inputs = self._find_inputs()
        if self.actions.is_relative:  # it reads references out of `inputs`, laid side by side
            self.actions = ActionTransform.from_settings(self.inputs, actions)
        self._anchor_row = self._find_anchor_row()
        self.register_buffer("seen", self._find_seen(), persistent=False)
        self.state_normalizer = LimitsNormalizer(self.inputs.state_size)
        self.action_normalizer = LimitsNormalizer(self.actions.size)
        supplied = {"action_size": self.actions.size, "context_size": self.encoder.context_size, "horizon": horizon}
        self.network = make("network", NETWORKS, network, **supplied, level_embedding=self.level_embedding)
        self._programs: dict[tuple[str, torch.device], Program] = {}
        self.path: NoisePath = lookup("path", PATHS, path)(levels)

    def _find_inputs(self) -> TaskSpec:
        """The task's spec with only those state vectors and cameras that the policy is to be given.

        Beside what the encoder sees they are the references of relative actions.
        """
        names = {vector.name for vector in self.encoder.state}
        if self.actions.is_relative:
            names |= {group.reference for group in self.spec.action.groups or () if group.reference is not None}
        state = tuple(vector for vector in self.spec.state if vector.name in names)
        return dataclasses.replace(self.spec, state=state, cameras=self.encoder.cameras)

    def _find_seen(self) -> Tensor:
        """The places of the encoder's elements among those of `inputs`, int64 [S]."""
        seen = [vector in self.encoder.state for vector in self.inputs.state for _ in range(vector.size)]
        return torch.tensor(seen).nonzero().flatten()

    def _find_anchor_row(self) -> int:
        """Which observation of the history shows what a chunk's differences begin from, counted from the newest."""
        if not self.actions.is_relative or self.actions.representation != "delta":
            return -1
        if self.history <= self.past:
            raise UserError(
                expected="policy.history above policy.past with policy.actions.representation=delta, whose first "
                "difference is from what is observed at a chunk's first position",
                found=f"history {self.history}, past {self.past}",
                remedy="raise policy.history, or set policy.actions.representation=chunk_relative",
            )
        return -1 - self.past

    @property
    def label_suffix(self) -> str:
        """What the label says of settings that all policies have, where they are not the usual ones."""
        weights = f" of {self.trained_as}" if self.trained_as else ""
        delay = f" d={self.inference_delay}" if self.inference_delay else ""
        engine = f" on {self.engine}" if self.engine != "eager" else ""
        return f"{weights}{delay}{self.actions.suffix}{engine}"

    @classmethod
    def as_whole_chunks(cls, settings: Json) -> Json:
        """Settings of policy=diffusion (conf/policy) that run weights trained with `settings`, or these themselves.

        Raises:
            UserError: training showed the network no chunks whose positions are all at one level.
        """
        return settings

    @property
    def sees_executed(self) -> bool:
        """Whether training windows are to hold the executed actions beside the clean labels."""
        return False

    def fit_normalizers(self, state: Statistics, action: Statistics) -> None:
        """Take the scaling of observations and actions from the data's statistics, `action` of learned actions."""
        self.state_normalizer.fit(state)
        self.action_normalizer.fit(action, self.actions.tied)

    def learned_actions(self, batch: Batch) -> Tensor:
        """The batch's recorded actions in the policy's own representation, in its units: [B H A]."""
        return self.actions.encode(batch.action_BHA, self.actions.anchors(batch.state_BTS[:, self._anchor_row]))

    @abstractmethod
    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """What training minimises, a scalar; all of its randomness is the generator's."""

    def prediction_error(self, batch: Batch, level_BH: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the prediction where the batch is valid and not clean anyway."""
        action_BHA = self.action_normalizer.normalize(self.learned_actions(batch))
        noise_BHA = normal_like(action_BHA, generator)
        noisy_BHA = self.path.add_noise(action_BHA, noise_BHA, level_BH)
        context_BC = self.context(batch.state_BTS, batch.images, generator if self.training else None)
        predicted_BHA = self.predict(noisy_BHA, level_BH, context_BC)
        target_BHA = self.target(action_BHA, noise_BHA, level_BH)
        error_BH = (predicted_BHA.float() - target_BHA).square().mean(-1)
        valid_BH = (batch.valid_BH & (level_BH > 0)).to(error_BH.dtype)
        return (error_BH * valid_BH).sum() / valid_BH.sum().clamp_min(1.0)

    def predict(self, noisy_BHA: Tensor, level_BH: Tensor, context_BC: Tensor) -> Tensor:
        """The network's prediction at levels 1 .. N."""
        return self.network(noisy_BHA, level_BH.float() / self.path.levels, context_BC)

    def target(self, clean_BHA: Tensor, noise_BHA: Tensor, level_BH: Tensor) -> Tensor:
        """What it is to predict: the path's.

        The noise on the path of DDPM (arXiv 2006.11239, eq. 14), the velocity in flow matching (arXiv 2210.02747, eq. 9
        with the conditional field of its sec. 4.1).
        """
        return self.path.target(clean_BHA, noise_BHA)

    def context(
        self, state_BTS: Tensor, images: Mapping[str, Tensor] | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """The observation encoder: histories of `inputs`, state and images, to [B C]; see `ObservationEncoder`."""
        normal_BTS = normalized_state(state_BTS, self.state_normalizer, self.seen)
        return self.encoder(normal_BTS, images or {}, generator)

    def encode(self, histories: Sequence[Sequence[Observation]]) -> Tensor:
        """Histories of `self.history` observations, oldest first, to contexts [B C]."""
        return self.run("encode", 0, lambda _: ContextEncoder(self), *self._encoder_inputs(histories))[0]

    @property
    def encodes_within(self) -> bool:
        """Whether the encoder is part of each program: that of state vectors is too little for one of its own."""
        return self.engine != "eager" and not self.inputs.cameras

    def condition(self, histories: Sequence[Sequence[Observation]]) -> Tensor:
        """What `observation_step` takes of the observations: contexts, or the state vectors, if it encodes them."""
        return self._encoder_inputs(histories)[0] if self.encodes_within else self.encode(histories)

    def observation_step(
        self, name: str, calls: int, build: Callable[[Network], nn.Module], x_BHA: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        """Run the sampler that `build` makes; see `ObservationStep` and `run`."""

        def whole(network: Network) -> nn.Module:
            encoder = ContextEncoder(self) if self.encodes_within else None
            return ObservationStep(build(network), self.action_normalizer, encoder)

        return self.run(name, calls, whole, x_BHA, *inputs)

    def _encoder_inputs(self, histories: Sequence[Sequence[Observation]]) -> list[Tensor]:
        """State vectors [B To S], and images of each camera."""
        flat = [[self.inputs.flatten_state(observation.state) for observation in history] for history in histories]
        images = [
            np.stack([np.stack([camera.checked(o.images) for o in history]) for history in histories])
            for camera in self.inputs.cameras
        ]
        return self.on_device([torch.from_numpy(array) for array in (np.asarray(flat, dtype=np.float32), *images)])

    def on_device(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Those on the CPU moved to where the policy is."""
        device = self.device
        return list(tensors) if device.type == "cpu" else [x.to(device, non_blocking=True) for x in tensors]

    def run(self, name: str, calls: int, build: Callable[[Network], nn.Module], *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the program `name` gives for `inputs`; the policy's engine makes it when it is first asked for.

        Args:
            calls: of the network. The engine takes all of them as one, or where they are many, each by itself.
            build: makes the module that the program is, of the network and of this policy's other parts.

        Raises:
            UserError: the engine cannot run here, or cannot run this program.
        """
        key = name, self.device
        if key not in self._programs:
            unrolled = self.engine == "eager" or calls <= MOST_UNROLLED_CALLS
            with torch.inference_mode(False), torch.no_grad():
                module = build(self.network if unrolled else self._engine_call).to(self.device).eval()
            engine = make("engine", ENGINES, {"name": self.engine if unrolled else "eager"})
            self._programs[key] = engine.compile(module, inputs)
        return self._programs[key](*inputs)

    def _engine_call(self, noisy_BHA: Tensor, level_BH: Tensor, context_BC: Tensor) -> Tensor:
        """One network call as a program of its own."""
        inputs = noisy_BHA, level_BH.expand(len(noisy_BHA), *level_BH.shape[1:]), context_BC
        return self.run("network_call", 1, lambda _: NetworkCall(self.network), *inputs)[0]

    def anchors(self, histories: Sequence[Sequence[Observation]]) -> Anchors:
        """What each history's chunk takes its differences from, on the CPU; () for actions without differences."""
        if not self.actions.is_relative:
            return ()
        flat = [self.inputs.flatten_state(history[self._anchor_row].state) for history in histories]
        return self.actions.anchors(torch.from_numpy(np.asarray(flat, dtype=np.float32)))

    @abstractmethod
    def samplers(self) -> list[tuple[str, nn.Module, Json, Json, Json]]:
        """For an export: name, module, its inputs before and behind the condition, and constants.

        Raises:
            UserError: none of them can be run without this package.
        """

    @property
    def pure_noise(self) -> Tensor:
        """What the network is told of the levels in a call on pure noise, [1 H ...]."""
        return torch.ones(1, self.horizon)

    @property
    def device(self) -> torch.device:
        return self.state_normalizer.scale.device

    def timed_parts(self, history: Sequence[Observation]) -> dict[str, Callable[[], object]]:
        """The encoder and one bare network call at batch 1, each on the policy's engine, for a latency report."""
        with torch.inference_mode():
            context = self.encode([history])
            noisy = torch.zeros(1, self.horizon, self.actions.size, device=self.device)
            level = self.pure_noise.to(self.device)

        @torch.inference_mode()
        def encode() -> Tensor:
            return self.encode([history])

        @torch.inference_mode()
        def network_call() -> Tensor:
            return self._engine_call(noisy, level, context)

        return {"encode": encode, "network_call": network_call}

    def prepare(self) -> None:
        """Check the run-time settings and compute what depends on them alone."""
        lookup("engine", ENGINES, self.engine)
        self._programs.clear()

    def check_delay(self) -> None:
        """
        Raises:
            UserError: an inference delay that leaves no chunk of the horizon.
        """
        longest = self.horizon - self.past - self.action_steps
        self.check_between("inference_delay", 0, longest, f"{longest}, behind which a chunk of the horizon is left")

    @property
    def clean_preview(self) -> np.ndarray:
        """The levels of what follows a chunk, for policies that denoise all of the horizon."""
        return np.zeros(self.horizon - self.past - self.inference_delay - self.action_steps, np.float32)

    def chunks(
        self,
        learned_BHA: Tensor,
        histories: Sequence[Sequence[Observation]],
        anchors: Anchors,
        network_calls: int,
        preview_levels: np.ndarray | None = None,
        is_first: bool | Sequence[bool] = True,
    ) -> list[ActionChunk]:
        """The head of each buffer of learned actions in the task's representation, the rest as a preview.

        With an inference delay of d, a session's first chunk begins at its observation and holds d actions more; each
        later one begins d steps after its own, where the last one ends.

            observation   0            Ta           2 Ta
            first chunk   |--- Ta + d ----|
            second                     (d)|--- Ta ---|
            third                                 (d)|--- Ta ---|

        Args:
            preview_levels: of what follows the chunk, in 0 .. 1, if it is to be shown.
        """
        actions = self.actions.decode(learned_BHA.cpu(), anchors).numpy()[:, self.past :]
        last = self.inference_delay + self.action_steps
        firsts = [is_first] * len(actions) if isinstance(is_first, bool) else is_first
        begins = [0 if first else self.inference_delay for first in firsts]
        return [
            ActionChunk(
                actions=actions[b, begins[b] : last],
                start_s=history[-1].time_s + begins[b] * self.spec.dt_s,
                dt_s=self.spec.dt_s,
                network_calls=network_calls,
                preview=None if preview_levels is None else Preview(actions[b, last:], preview_levels),
            )
            for b, history in enumerate(histories)
        ]


def anchor_rows(anchors: Anchors, sessions: int | list[int]) -> Anchors:
    """Those of some sessions of a batch."""
    return tuple(anchor[sessions] for anchor in anchors) if anchors else ()
