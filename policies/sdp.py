"""Streaming Diffusion Policy (arXiv 2406.04806): a buffer of actions whose noise grows with their distance in time.

The buffer's Tp positions are divided into h chunks of Ta. At the start of a cycle, chunk i (from 0) is at level
floor(N (i + 1) / h); one cycle lowers all levels together until the head chunk is clean and chunk i is where chunk
i - 1 began. The head is executed, the buffer rolls, pure noise is appended.

    position   0 .. Ta-1      Ta .. 2Ta-1     ...    (h-1)Ta .. hTa-1
    start      N/h            2N/h                   N
    end        0 (clean)      N/h                    N(h-1)/h            then: roll by Ta

B batch, H buffer length (Tp), A action, M level vectors; levels run 0 (clean) .. N (pure noise).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from embodied.action_representation import Anchors
from embodied.catalog import STATE_ENCODER
from embodied.errors import UserError
from embodied.policies.batch import Batch
from embodied.policies.denoising_policy import DenoisingPolicy, anchor_rows
from embodied.policies.exported_programs import check_memory_is_exportable
from embodied.policies.ladder import Ladder
from embodied.policies.moving_reference import re_expressed
from embodied.policies.programs import DenoiseLoop, Network
from embodied.policies.seeded_noise import seeded_normal
from embodied.types import ActionChunk, Json, Observation, TaskSpec


@dataclass(frozen=True)
class StreamingState:
    """A session's buffer at the end of its last cycle, normalised, [H A]; None before the first observation."""

    seed: int
    observations: int = 0
    buffer_HA: Tensor | None = None
    anchors: Anchors = ()  # what the buffer's actions are differences from, if they are


class StreamingDiffusionPolicy(DenoisingPolicy):
    """k network calls an observation, for any 1 <= k <= floor(N / h)."""

    name = "sdp"
    run_time_settings = ("k", "initialization", "initial_calls", "inference_delay", "engine")

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
        k: int,
        initialization: Literal["zero", "denoise"],
        initial_calls: int,
        chunkwise: float,
        largest_delay: int = 0,
        inference_delay: int = 0,
        path: str = "ddpm",
        actions: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            k: network calls an observation.
            initialization: of a fresh buffer: `zero` noises zeros to the ladder (the released default); `denoise`
                makes a full pass at one level for all, then noises the later chunks again.
            initial_calls: network calls of that pass.
            chunkwise: share of training samples on the ladder; the rest has one level for all positions, which is
                what `denoise` needs.
            largest_delay: on the ladder training shows prefixes of 0 .. this many clean actions, drawn evenly. They are
                the executed ones: noise that was added to a demonstration is then no secret that its later labels,
                which answer to it, betray in the prefix.
            inference_delay: d, control steps that pass between an observation and the execution of its chunk: the
                buffer's first d actions are those that will be executed meanwhile, and stay as they are.
            the rest: as in `DenoisingPolicy`.
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
        if not 0.0 < chunkwise <= 1.0:
            raise UserError(
                expected="policy.chunkwise above 0, since inference visits the ladder, and at most 1",
                found=str(chunkwise),
                remedy="use policy.chunkwise=0.8",
            )
        self.largest_delay = largest_delay
        self.inference_delay = inference_delay
        self._check_layout()
        self.chunkwise = chunkwise
        self.k = k
        self.initialization = initialization
        self.initial_calls = initial_calls
        for d in range(largest_delay + 1):
            self.register_buffer(f"visited_{d}_MH", self.ladder_with(d).visited(), persistent=False)
        self.prepare()

    @classmethod
    def as_whole_chunks(cls, settings: Json) -> Json:
        """Part of the training mixture, 1 - `chunkwise` of it, is that of policy=diffusion."""
        if settings["chunkwise"] == 1.0:
            raise never_whole(f"policy={cls.name} with policy.chunkwise=1")
        shared = ("history", "horizon", "action_steps", "past", "levels", "clip")
        sampler = "euler" if settings.get("path") == "flow" else "ddim"
        return {
            "name": "diffusion",
            **{name: settings[name] for name in shared},
            **{name: settings[name] for name in ("path", "actions") if name in settings},
            "sampler": sampler,
            "calls": settings["initial_calls"],
        }

    def ladder_with(self, prefix: int) -> Ladder:
        """The ladder behind a prefix of so many clean actions."""
        return Ladder(self.horizon, self.action_steps, self.past, self.path.levels, prefix)

    def visited_MH(self, prefix: int = 0) -> Tensor:
        """Every vector of levels that training shows behind a prefix, int64 [M H]."""
        return self.get_buffer(f"visited_{prefix}_MH")

    def _check_layout(self) -> None:
        if self.largest_delay < 0 or self.horizon < self.past + self.largest_delay + self.action_steps:
            raise UserError(
                expected="policy.largest_delay between 0 and policy.horizon - policy.past - policy.action_steps = "
                f"{self.horizon - self.past - self.action_steps}, so that a chunk fits behind the prefix",
                found=str(self.largest_delay),
                remedy="lower policy.largest_delay or raise policy.horizon",
            )
        chunks = self.ladder_with(0).chunks
        if chunks > self.path.levels:
            raise UserError(
                expected=f"policy.levels of at least {chunks}, the number of chunks in the buffer",
                found=str(self.path.levels),
                remedy="raise policy.levels or policy.action_steps",
            )
        if self.actions.is_relative and not self.actions.has_linear_change_of_base:
            raise UserError(
                expected=f"policy.actions.rotation=rotation_6d where policy {self.name} learns differences of "
                "rotations, since only then can its noisy buffer follow the moving reference",
                found=f"rotation {self.actions.rotation}, representation {self.actions.representation}",
                remedy="set policy.actions.rotation=rotation_6d, or use policy=diffusion, which keeps no buffer",
            )

    def prepare(self) -> None:
        super().prepare()
        self._check_delay()
        self.ladder = self.ladder_with(self.inference_delay)
        if not 1 <= self.k <= self.ladder.most_calls:
            raise UserError(
                expected=f"policy.k between 1 and floor(N / h) = {self.ladder.most_calls}",
                found=str(self.k),
                remedy=f"change policy.k (N is {self.path.levels}, the buffer holds {self.ladder.chunks} chunks)",
            )
        self._check_initialization()
        self.start_H, self.end_H = self.ladder.at(0, self.k), self.ladder.at(self.k, self.k)
        later_H = self.end_H[self.ladder.head + self.action_steps :]
        self.preview_levels = (later_H / self.path.levels).numpy()
        self._raising: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def _check_delay(self) -> None:
        if not isinstance(self.inference_delay, int) or not 0 <= self.inference_delay <= self.largest_delay:
            raise UserError(
                expected=f"policy.inference_delay between 0 and {self.largest_delay}, the longest prefix of clean "
                "actions that this policy was trained with",
                found=str(self.inference_delay),
                remedy="lower it, or train with policy.largest_delay of as much",
            )

    def _check_initialization(self) -> None:
        if self.initialization not in ("zero", "denoise"):
            raise UserError(
                expected="policy.initialization zero or denoise", found=str(self.initialization), remedy="use one"
            )
        if self.initialization == "zero" and self.inference_delay:
            raise UserError(
                expected="policy.initialization=denoise with policy.inference_delay, since the first chunk holds the "
                "actions of the first delay too",
                found="zero",
                remedy="set policy.initialization=denoise",
            )
        if self.initialization == "denoise" and not 1 <= self.initial_calls <= self.path.levels:
            raise UserError(
                expected=f"policy.initial_calls between 1 and policy.levels ({self.path.levels})",
                found=str(self.initial_calls),
                remedy="change policy.initial_calls",
            )
        if self.initialization == "denoise" and self.chunkwise == 1.0:
            raise UserError(
                expected="training with some constant levels (policy.chunkwise below 1) for initialization=denoise",
                found="policy.chunkwise=1",
                remedy="use policy.initialization=zero, or train with policy.chunkwise=0.8",
            )

    @property
    def label(self) -> str:
        return f"sdp{self.path.suffix} k={self.k}{self.label_suffix}"

    @property
    def calls_per_observation(self) -> int:
        return self.k

    @property
    def first_observation_calls(self) -> int:
        return self.initial_calls if self.initialization == "denoise" else self.k

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Prediction error under the training mixture of levels: the ladder (0.8), one level for all (0.2).

        The scheme is drawn a sample rather than a batch: the same expectation, with less variance. So is the prefix,
        whose clean positions are left out of the error.
        """
        level_BH = self.training_levels(len(batch), generator).to(self.device)
        if batch.executed_BHA is not None:
            is_clean_BH1 = (level_BH == 0).unsqueeze(-1)
            batch = replace(batch, action_BHA=torch.where(is_clean_BH1, batch.executed_BHA, batch.action_BHA))
        return self.prediction_error(batch, level_BH, generator)

    @property
    def sees_executed(self) -> bool:
        return self.largest_delay > 0

    def training_levels(self, samples: int, generator: torch.Generator) -> Tensor:
        """Levels for so many training samples, int64 [samples H], on the CPU."""
        prefix_B = torch.zeros(samples, dtype=torch.int64)
        if self.largest_delay:
            prefix_B = torch.randint(self.largest_delay + 1, (samples,), generator=generator)
        level_BH = torch.empty(samples, self.horizon, dtype=torch.int64)
        for prefix in range(self.largest_delay + 1):
            of_prefix = (prefix_B == prefix).nonzero().flatten()
            level_BH[of_prefix] = self._levels_behind(prefix, len(of_prefix), generator)
        return level_BH

    def _levels_behind(self, prefix: int, samples: int, generator: torch.Generator) -> Tensor:
        visited_MH = self.visited_MH(prefix).cpu()
        row_B = torch.randint(len(visited_MH), (samples,), generator=generator)
        constant_B = torch.randint(1, self.path.levels + 1, (samples,), generator=generator)
        on_ladder_B = torch.rand(samples, generator=generator) < self.chunkwise
        # A full pass comes before anything is executed: no level for all has a prefix.
        return torch.where(on_ladder_B.unsqueeze(1), visited_MH[row_B], constant_B.unsqueeze(1))

    def cycle(self, network: Network) -> _Cycle:
        """What a running session's buffer goes through at an observation, as a module."""
        return _Cycle(DenoiseLoop(network, self.path, self.ladder.cycle(self.k), self.clip))

    def fresh_buffer(self, network: Network) -> nn.Module:
        """What makes a buffer at the end of its first cycle of noise [B 2 H A] and contexts, as a module."""
        if self.initialization == "zero":
            return _NoisedZeros(self, network)
        return _DenoisedAndNoised(self, network)

    def samplers(self) -> list[tuple[str, nn.Module, Json, Json, Json]]:
        check_memory_is_exportable(self, "buffer")
        signal, noise_scale = self.raising(torch.device("cpu"))
        noise_1HA = torch.zeros(1, *self._buffer_shape)
        scales = {"signal": signal[:1], "noise": noise_1HA, "noise_scale": noise_scale[:1]}
        by_executed = {"signal_by_executed": signal, "noise_scale_by_executed": noise_scale}
        return [
            (
                "fresh_buffer",
                self.fresh_buffer(self.network),
                {"noise": torch.zeros(1, 2, *self._buffer_shape)},
                {},
                {},
            ),
            ("cycle", self.cycle(self.network), {"rolled_buffer": noise_1HA}, scales, by_executed),
        ]

    def raising(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Scales [Ta + 1, H, 1] of a rolled buffer and of fresh noise, by the number of actions that it rolled by.

        They take every position to the level where a cycle begins. After a full chunk only the appended positions
        (and, if there are any, the past and trailing ones) need noise; after fewer actions than a chunk every position
        that has not gone down a chunk does.
        """
        if device not in self._raising:
            appended_H = torch.zeros_like(self.end_H)
            pairs = [
                self.path.raising(
                    torch.cat([self.end_H[executed:], appended_H[:executed]]).to(device), self.start_H.to(device)
                )
                for executed in range(self.action_steps + 1)
            ]
            signal, noise = zip(*pairs, strict=True)
            self._raising[device] = torch.stack(signal), torch.stack(noise)
        return self._raising[device]

    def initial_state(self, seed: int) -> StreamingState:
        return StreamingState(seed)

    @torch.inference_mode()
    def step(
        self,
        histories: Sequence[Sequence[Observation]],
        states: Sequence[StreamingState],
        executed: Sequence[int],
    ) -> tuple[list[ActionChunk], list[StreamingState]]:
        """One chunk a session. Fresh sessions and running ones are two batches, since they take other calls."""
        condition, anchors = self.condition(histories), self.anchors(histories)
        noise_B2HA = _stacked([seeded_normal((2, *self._buffer_shape), s.seed, s.observations) for s in states])
        noise_B2HA = self.on_device([noise_B2HA])[0]
        chunks: dict[int, ActionChunk] = {}
        buffers: dict[int, Tensor] = {}
        for fresh in (True, False):
            group = [b for b, state in enumerate(states) if (state.buffer_HA is None) == fresh]
            if not group:
                continue
            everybody = len(group) == len(states)
            context, noise = (condition, noise_B2HA) if everybody else (condition[group], noise_B2HA[group])
            if fresh:
                calls, build, inputs = self.first_observation_calls, self.fresh_buffer, (noise, context)
            else:
                rolled = [self._rolled(states[b], executed[b], anchor_rows(anchors, b)) for b in group]
                scales = [_stacked([table[executed[b]] for b in group]) for table in self.raising(self.device)]
                calls, build = self.k, self.cycle
                inputs = (_stacked(rolled), context, scales[0], noise[:, 0], scales[1])
            name = "fresh_buffer" if fresh else "cycle"
            buffer_BHA, learned_BHA = self.observation_step(name, calls, build, *inputs)
            handed_out = self.chunks(
                learned_BHA,
                [histories[b] for b in group],
                anchor_rows(anchors, group),
                calls,
                self.preview_levels,
                is_first=fresh,
            )
            chunks.update(zip(group, handed_out, strict=True))
            buffers.update(zip(group, buffer_BHA.unbind(0), strict=True))
        next_states = [
            StreamingState(s.seed, s.observations + 1, buffers[b], anchor_rows(anchors, b))
            for b, s in enumerate(states)
        ]
        return [chunks[b] for b in range(len(states))], next_states

    def _rolled(self, state: StreamingState, executed: int, anchors: Anchors) -> Tensor:
        """The session's buffer without `executed` actions and with as many zeros behind, [H A].

        If it holds differences, they are from what the newest observation shows.
        """
        buffer_HA = state.buffer_HA
        if self.actions.is_relative:
            buffer_HA = re_expressed(
                buffer_HA,
                executed,
                state.anchors,
                anchors,
                signal_H1=self.path.scales(self.end_H.to(buffer_HA.device))[0].float(),
                actions=self.actions,
                normalizer=self.action_normalizer,
            )
        return shifted(buffer_HA, executed)

    @property
    def _buffer_shape(self) -> tuple[int, int]:
        return self.horizon, self.actions.size


def never_whole(policy: str) -> UserError:
    """For a sampler of whole chunks with weights that it does not fit."""
    return UserError(
        expected="weights that were trained on chunks with one noise level for all positions, for policy.sampler",
        found=f"{policy}, whose training shows none",
        remedy="leave policy.sampler out, or train policy=diffusion or policy=sdp",
    )


def shifted(buffer_HA: Tensor, executed: int) -> Tensor:
    """Without `executed` actions in front, and with as many zeros behind."""
    return pad(buffer_HA[executed:], (0, 0, 0, executed))


def raised(rolled_BHA: Tensor, signal_BH1: Tensor, noise_BHA: Tensor, noise_scale_BH1: Tensor) -> Tensor:
    """The forward process up to the levels where a cycle begins, with scales from `raising`."""
    return torch.addcmul(rolled_BHA * signal_BH1, noise_BHA, noise_scale_BH1)


def _stacked(rows: list[Tensor]) -> Tensor:
    """A batch of rows; of a single one a view."""
    return rows[0].unsqueeze(0) if len(rows) == 1 else torch.stack(rows)


class _Cycle(nn.Module):
    """Raise what the roll left too clean, then every level down together until the head chunk is clean."""

    def __init__(self, loop: DenoiseLoop) -> None:
        super().__init__()
        self.loop = loop

    def forward(
        self, rolled_BHA: Tensor, context_BC: Tensor, signal_BH1: Tensor, noise_BHA: Tensor, noise_scale_BH1: Tensor
    ) -> Tensor:
        return self.loop(raised(rolled_BHA, signal_BH1, noise_BHA, noise_scale_BH1), context_BC)


class _NoisedZeros(nn.Module):
    """A fresh buffer as the released code makes it: zeros, noised to the ladder, then one cycle."""

    scale_H1: Tensor

    def __init__(self, policy: StreamingDiffusionPolicy, network: Network) -> None:
        super().__init__()
        device = policy.device
        _, scale_H1 = policy.path.raising(torch.zeros_like(policy.start_H).to(device), policy.start_H.to(device))
        self.register_buffer("scale_H1", scale_H1, persistent=False)
        self.loop = policy.cycle(network).loop

    def forward(self, noise_B2HA: Tensor, context_BC: Tensor) -> Tensor:
        return self.loop(self.scale_H1 * noise_B2HA[:, 1], context_BC)


class _DenoisedAndNoised(nn.Module):
    """A fresh buffer from a full pass at one level for all, then noised to where a cycle ends."""

    signal_H1: Tensor
    scale_H1: Tensor

    def __init__(self, policy: StreamingDiffusionPolicy, network: Network) -> None:
        super().__init__()
        device, calls, N = policy.device, policy.initial_calls, policy.path.levels
        clean_H = torch.zeros_like(policy.end_H)
        constant = [torch.full_like(clean_H, N * (calls - call) // calls) for call in range(calls + 1)]
        signal_H1, scale_H1 = policy.path.raising(clean_H.to(device), policy.end_H.to(device))
        self.register_buffer("signal_H1", signal_H1, persistent=False)
        self.register_buffer("scale_H1", scale_H1, persistent=False)
        self.loop = DenoiseLoop(network, policy.path, constant, policy.clip)

    def forward(self, noise_B2HA: Tensor, context_BC: Tensor) -> Tensor:
        clean_BHA = self.loop(noise_B2HA[:, 0], context_BC)
        return self.signal_H1 * clean_BHA + self.scale_H1 * noise_B2HA[:, 1]
