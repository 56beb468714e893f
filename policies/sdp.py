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
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from embodied.action_representation import Anchors
from embodied.catalog import STATE_ENCODER
from embodied.errors import UserError
from embodied.policies.batch import Batch
from embodied.policies.denoising_policy import DenoisingPolicy
from embodied.policies.moving_reference import re_expressed
from embodied.policies.seeded_noise import seeded_normal
from embodied.types import ActionChunk, Observation, TaskSpec


@dataclass(frozen=True)
class Ladder:
    """The levels that a buffer passes through.

    `past` leading positions lie before the newest observation and belong to chunk 0; trailing positions that fill no
    chunk share the last chunk's level.
    """

    horizon: int  # Tp
    action_steps: int  # Ta
    past: int
    levels: int  # N

    @property
    def chunks(self) -> int:
        """h"""
        return (self.horizon - self.past) // self.action_steps

    @property
    def most_calls(self) -> int:
        """The largest k: with more, the head chunk would be asked to stand still."""
        return self.levels // self.chunks

    def at(self, done: int, k: int) -> Tensor:
        """Levels after `done` of a cycle's k calls, int64 [H]: floor(N (i + 1 - done / k) / h), in exact integers."""
        position = torch.arange(self.horizon)
        chunk = ((position - self.past).clamp_min(0) // self.action_steps).clamp_max(self.chunks - 1)
        return self.levels * (k * (chunk + 1) - done) // (k * self.chunks)

    def cycle(self, k: int) -> list[tuple[Tensor, Tensor]]:
        """The k moves of one observation, as (levels, next levels)."""
        return [(self.at(call, k), self.at(call + 1, k)) for call in range(k)]

    def visited(self) -> Tensor:
        """Every distinct vector of levels at which some k calls the network, int64 [M H].

        Where h divides N these are the start levels minus j, j = 0 .. N/h - 1, as in the paper's training. Where it
        does not, no common offset describes them.
        """
        vectors = {tuple(level.tolist()) for k in range(1, self.most_calls + 1) for level, _ in self.cycle(k)}
        return torch.tensor(sorted(vectors))


@dataclass(frozen=True)
class StreamingState:
    """A session's buffer at the end of its last cycle, normalised, [H A]; None before the first observation."""

    seed: int
    observations: int = 0
    buffer_HA: Tensor | None = None
    anchors: Anchors = ()  # what the buffer's actions are differences from, if they are


class StreamingDiffusionPolicy(DenoisingPolicy):
    """k network calls an observation, for any 1 <= k <= floor(N / h)."""

    run_time_settings = ("k", "initialization", "initial_calls")

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
            actions=actions,
        )
        if not 0.0 <= chunkwise <= 1.0:
            raise UserError(expected="policy.chunkwise between 0 and 1", found=str(chunkwise), remedy="change it")
        self.ladder = Ladder(self.horizon, self.action_steps, self.past, self.path.levels)
        if self.ladder.chunks > self.path.levels:
            raise UserError(
                expected=f"policy.levels of at least {self.ladder.chunks}, the number of chunks in the buffer",
                found=str(self.path.levels),
                remedy="raise policy.levels or policy.action_steps",
            )
        if self.actions.is_relative and not self.actions.has_linear_change_of_base:
            raise UserError(
                expected="policy.actions.rotation=rotation_6d where policy sdp learns differences of rotations, since "
                "only then can its noisy buffer follow the moving reference",
                found=f"rotation {self.actions.rotation}, representation {self.actions.representation}",
                remedy="set policy.actions.rotation=rotation_6d, or use policy=diffusion, which keeps no buffer",
            )
        self.chunkwise = chunkwise
        self.k = k
        self.initialization = initialization
        self.initial_calls = initial_calls
        self.register_buffer("visited_MH", self.ladder.visited(), persistent=False)
        self.prepare()

    def prepare(self) -> None:
        if not 1 <= self.k <= self.ladder.most_calls:
            raise UserError(
                expected=f"policy.k between 1 and floor(N / h) = {self.ladder.most_calls}",
                found=str(self.k),
                remedy=f"change policy.k (N is {self.path.levels}, the buffer holds {self.ladder.chunks} chunks)",
            )
        if self.initialization not in ("zero", "denoise"):
            raise UserError(
                expected="policy.initialization zero or denoise", found=str(self.initialization), remedy="use one"
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
        self.start_H = self.ladder.at(0, self.k)
        self.end_H = self.ladder.at(self.k, self.k)
        later_H = self.end_H[self.past + self.action_steps :]
        self.preview_levels = (later_H / self.path.levels).numpy()
        self._device_tables: dict[torch.device, _Tables] = {}

    @property
    def label(self) -> str:
        return f"sdp k={self.k}{self.actions.suffix}"

    @property
    def calls_per_observation(self) -> int:
        return self.k

    @property
    def first_observation_calls(self) -> int:
        return self.initial_calls if self.initialization == "denoise" else self.k

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Noise-prediction error under the training mixture of levels: the ladder (0.8), one level for all (0.2).

        The scheme is drawn a sample rather than a batch: the same expectation, with less variance.
        """
        row_B = torch.randint(len(self.visited_MH), (len(batch),), generator=generator)
        constant_B = torch.randint(1, self.path.levels + 1, (len(batch),), generator=generator)
        on_ladder_B = torch.rand(len(batch), generator=generator) < self.chunkwise
        device = batch.action_BHA.device
        level_BH = torch.where(
            on_ladder_B.to(device).unsqueeze(1), self.visited_MH[row_B.to(device)], constant_B.to(device).unsqueeze(1)
        )
        return self.noise_error(batch, level_BH, generator)

    def denoise_cycle(self, buffer_BHA: Tensor, context_BC: Tensor) -> Tensor:
        """Every level down together, in k calls, until the head chunk is clean."""
        return self._denoise(buffer_BHA, context_BC, self._tables(buffer_BHA.device).cycle)

    def fresh_buffer(self, noise_B2HA: Tensor, context_BC: Tensor) -> Tensor:
        """A buffer at the end of its first cycle."""
        tables = self._tables(noise_B2HA.device)
        noise_BHA, renoise_BHA = noise_B2HA.unbind(1)
        if self.initialization == "zero":
            _, noise_scale = tables.raise_clean_to_start
            return self.denoise_cycle(noise_scale * renoise_BHA, context_BC)
        clean_BHA = self._denoise(noise_BHA, context_BC, tables.constant)
        signal_scale, noise_scale = tables.raise_clean_to_end
        return signal_scale * clean_BHA + noise_scale * renoise_BHA

    def roll(self, buffer_HA: Tensor, executed: int, noise_HA: Tensor) -> Tensor:
        """Drop `executed` actions, append noise, and noise whatever is cleaner than the start of a cycle wants it.

        After a full chunk only the appended positions (and, if there are any, the past and trailing ones) need noise;
        after fewer actions than a chunk every position that has not gone down a chunk does.
        """
        signal_scale, noise_scale = self._tables(buffer_HA.device).raise_rolled[executed]
        shifted_HA = torch.cat([buffer_HA[executed:], torch.zeros_like(buffer_HA[:executed])])
        return torch.addcmul(shifted_HA * signal_scale, noise_HA, noise_scale)

    def _denoise(self, x_BHA: Tensor, context_BC: Tensor, moves: list[tuple[Tensor, Any]]) -> Tensor:
        for fraction_H, move in moves:
            x_BHA = move(x_BHA, self.network(x_BHA, fraction_H.expand(len(x_BHA), -1), context_BC))
        return x_BHA

    def _tables(self, device: torch.device) -> _Tables:
        if device not in self._device_tables:
            # Outside inference mode, so that a later training step may use them too.
            with torch.inference_mode(False), torch.no_grad():
                self._device_tables[device] = _Tables(self, device)
        return self._device_tables[device]

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
        context_BC, anchors = self.encode(histories), self.anchors(histories)
        noise = [seeded_normal((2, *self._buffer_shape), s.seed, s.observations).to(self.device) for s in states]
        chunks: dict[int, ActionChunk] = {}
        buffers: dict[int, Tensor] = {}
        for fresh in (True, False):
            group = [b for b, state in enumerate(states) if (state.buffer_HA is None) == fresh]
            if not group:
                continue
            context = context_BC if len(group) == len(states) else context_BC[group]
            if fresh:
                buffer_BHA = self.fresh_buffer(torch.stack([noise[b] for b in group]), context)
            else:
                moved = [self._for_new_anchors(states[b], executed[b], _row(anchors, b)) for b in group]
                rolled = [self.roll(moved[i], executed[b], noise[b][0]) for i, b in enumerate(group)]
                buffer_BHA = self.denoise_cycle(torch.stack(rolled), context)
            calls = self.first_observation_calls if fresh else self.k
            handed_out = self.chunks(
                buffer_BHA, [histories[b] for b in group], _row(anchors, group), calls, self.preview_levels
            )
            chunks.update(zip(group, handed_out, strict=True))
            buffers.update(zip(group, buffer_BHA.unbind(0), strict=True))
        next_states = [
            StreamingState(s.seed, s.observations + 1, buffers[b], _row(anchors, b)) for b, s in enumerate(states)
        ]
        return [chunks[b] for b in range(len(states))], next_states

    def _for_new_anchors(self, state: StreamingState, executed: int, anchors: Anchors) -> Tensor:
        """The session's buffer; if it holds differences, from what the newest observation shows."""
        if not self.actions.is_relative:
            return state.buffer_HA
        signal_H1 = self._tables(state.buffer_HA.device).end_signal
        return re_expressed(
            state.buffer_HA,
            executed,
            state.anchors,
            anchors,
            signal_H1=signal_H1,
            actions=self.actions,
            normalizer=self.action_normalizer,
        )

    @property
    def _buffer_shape(self) -> tuple[int, int]:
        return self.horizon, self.actions.size


def _row(anchors: Anchors, sessions: int | list[int]) -> Anchors:
    return tuple(anchor[sessions] for anchor in anchors)


class _Tables:
    """Coefficients that depend on the ladder and k alone, computed once a device."""

    def __init__(self, policy: StreamingDiffusionPolicy, device: torch.device) -> None:
        path, ladder, clip = policy.path, policy.ladder, policy.clip
        clean_H = torch.zeros(ladder.horizon, dtype=torch.int64)

        def moves(levels: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Any]]:
            return [
                ((level / path.levels).to(device), path.ddim(level.to(device), below.to(device), clip))
                for level, below in levels
            ]

        def raising(level_H: Tensor, to_level_H: Tensor) -> tuple[Tensor, Tensor]:
            return path.raising(level_H.to(device), to_level_H.to(device))

        self.end_signal = raising(clean_H, policy.end_H)[0]
        self.cycle = moves(ladder.cycle(policy.k))
        calls = policy.initial_calls
        constant = [torch.full_like(clean_H, path.levels * (calls - call) // calls) for call in range(calls + 1)]
        self.constant = moves(list(pairwise(constant)))
        self.raise_clean_to_start = raising(clean_H, policy.start_H)
        self.raise_clean_to_end = raising(clean_H, policy.end_H)
        self.raise_rolled = [
            raising(torch.cat([policy.end_H[executed:], clean_H[:executed]]), policy.start_H)
            for executed in range(ladder.action_steps + 1)
        ]
