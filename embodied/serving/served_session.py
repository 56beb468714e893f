"""One robot's session on the server: its episode, its time line, and the newest chunk on it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from embodied.errors import UserError
from embodied.policies.seeded_noise import mixed_seed
from embodied.protocols import Policy
from embodied.serving.answers import first_valid
from embodied.session import LATEST_SHARE, PreparedStep, Session
from embodied.types import ActionChunk, Observation


@dataclass(frozen=True)
class Frame:
    """An observation, and when it was made by the session's clock, in s; None: the robot does not say."""

    observation: Observation
    time_s: float | None = None


@dataclass(frozen=True)
class ComputedChunk:
    """A chunk and the time of the observation that it was computed from, in s of the session's clock."""

    chunk: ActionChunk
    observed_s: float
    infer_ms: float
    batch: int
    weights: str  # that it was computed with: the first digits of their hash


class ServedSession:
    """What the server keeps of one robot. Not for several threads at once: `Sessions` holds a lock around it.

    A robot need not have a clock: without `time_s` an observation is taken to be `executed` control steps after that of
    the request before, Ta steps unless it says how many.
    """

    def __init__(self, name: str, owner: object, policy: Policy, seed: int, *, repeats_history: bool) -> None:
        """
        Args:
            owner: the connection that the session belongs to.
            seed: of all of its episodes.
            repeats_history: where control steps were left out, the newest observation stands for those before it;
                else a policy with a history refuses it.
        """
        self.name, self.owner = name, owner
        self._policy, self._seed, self._repeats_history = policy, seed, repeats_history
        self.episode = 0
        self.episode_id: object = None  # what the robot calls its episode
        self._heard_s: float | None = None  # when its newest request came, by the server's clock
        self.reset()

    def reset(self, seed: int | None = None) -> None:
        """A new episode: nothing of the last one is left.

        Args:
            seed: of its noise; None: from the server's seed and the number of the episode, so that a session's actions
                depend on its own observations alone.
        """
        self.episode += 1
        # A step that is still being computed belongs to the session before, and leaves its state there.
        self.session = Session(self._policy)
        self.session.reset(mixed_seed(self._seed, self.episode) if seed is None else seed)
        self.newest: ComputedChunk | None = None
        self.is_fresh = True  # the policy's state has not been through a step yet
        self._asked_s: float | None = None  # of the newest request, and of the one before
        self._asked_before_s: float | None = None
        self._seen_s: float | None = None
        self._has_lost_frame = False  # since the newest one that was seen

    def heard_from(self, now_s: float) -> float:
        """Note that a request has come. Returns how long none had, in s; 0 for the first."""
        before_s, self._heard_s = self._heard_s, now_s
        return 0.0 if before_s is None else now_s - before_s

    def lost_frame(self) -> None:
        """A frame came that is of no use: the gap that it leaves is no fault of the next one."""
        self._has_lost_frame = True

    def move_to(self, policy: Policy) -> None:
        """Go on with another checkpoint: a fresh buffer, and what was observed of the present episode."""
        self._policy = policy
        self.session.move_to(policy, mixed_seed(self._seed, self.episode))
        self.is_fresh = True

    def took(self, computed: ComputedChunk) -> None:
        """Have the chunk that the policy's step gave."""
        self.newest = computed
        self.is_fresh = False

    def asked_at(self, frame: Frame, executed: int | None) -> float:
        """When the frame of a request was observed, in s of the session's clock.

        Raises:
            UserError: `executed` is not a whole number from 0 to Ta.
        """
        steps = self._checked(executed)
        if frame.time_s is not None:
            return frame.time_s
        if self._asked_s is None:
            return 0.0 if self._seen_s is None else self._next_step_s()
        if executed is None and self._seen_s is not None and self._seen_s > self._asked_s:
            return self._next_step_s()
        return self._asked_s + steps * self._policy.spec.dt_s

    def observe(self, frame: Frame) -> float:
        """Remember the frame of a control step that no chunk is asked for. Returns its time, by the session's clock.

        Raises:
            UserError: as `Session.observe`.
        """
        time_s = frame.time_s if frame.time_s is not None else self._next_step_s()
        self._see(replace(frame.observation, time_s=time_s))
        return time_s

    def observe_late(self, frame: Frame, asked_s: float) -> None:
        """Remember the frame of a request that was answered without a step, if it fits what was seen before."""
        if self._seen_s is None or asked_s > self._seen_s:
            with suppress(UserError):  # the request has its answer
                self._see(replace(frame.observation, time_s=asked_s))

    def asked(self, asked_s: float) -> None:
        """Note that a request with an observation of this time has been accepted."""
        self._asked_before_s, self._asked_s = self._asked_s, asked_s

    def prepare(
        self, frame: Frame, asked_s: float, executed: int | None, earlier: Sequence[Observation]
    ) -> tuple[PreparedStep, bool]:
        """What the policy needs to act on the frame, and whether its history had to be repeated.

        Args:
            earlier: frames of the control steps directly before it, oldest first, in the place of those that the
                session remembers.

        Raises:
            UserError: as `Session.act`.
        """
        dt_s, wanted = self._policy.spec.dt_s, self._policy.history - 1
        is_cut_short = self._has_lost_frame and 0 < len(earlier) < wanted
        if earlier and wanted:
            self.session.forget_history()
            frames = earlier[-wanted:]
            for steps_ago, observation in zip(range(len(frames), 0, -1), frames, strict=True):
                self.session.observe(replace(observation, time_s=asked_s - steps_ago * dt_s))
            self._seen_s = asked_s - dt_s
        repeated = self._must_repeat(asked_s)
        if repeated:
            self.session.forget_history()
        steps = self._executed_steps(asked_s, executed)
        step = self.session.prepare(replace(frame.observation, time_s=asked_s), steps)
        self._saw(asked_s)
        return step, repeated or is_cut_short

    def newest_valid(self, asked_s: float) -> ComputedChunk | None:
        """The newest chunk, if any of its actions is still of use at `asked_s`."""
        newest = self.newest
        if newest is None or first_valid(newest.chunk, asked_s) >= len(newest.chunk.actions):
            return None
        return newest

    def _see(self, observation: Observation) -> None:
        if self._must_repeat(observation.time_s):
            self.session.forget_history()
        self.session.observe(observation)
        self._saw(observation.time_s)

    def _saw(self, time_s: float) -> None:
        self._seen_s, self._has_lost_frame = time_s, False

    def _must_repeat(self, time_s: float) -> bool:
        if not (self._repeats_history or self._has_lost_frame) or self._policy.history == 1 or self._seen_s is None:
            return False
        dt_s = self._policy.spec.dt_s
        return time_s - self._seen_s > (1 + LATEST_SHARE) * dt_s

    def _next_step_s(self) -> float:
        return 0.0 if self._seen_s is None else self._seen_s + self._policy.spec.dt_s

    def _executed_steps(self, asked_s: float, executed: int | None) -> int | None:
        """Control steps by which the policy's buffer moves on: from the observation that it was last computed from."""
        if self.newest is None:
            return None
        if executed is not None and self.newest.observed_s == self._asked_before_s:
            return executed  # it may be less than the time says: the robot may have stood still
        steps = round((asked_s - self.newest.observed_s) / self._policy.spec.dt_s)
        return min(self._policy.action_steps, max(0, steps))

    def _checked(self, executed: int | None) -> int:
        most = self._policy.action_steps
        if executed is None:
            return most
        if not isinstance(executed, int) or isinstance(executed, bool) or not 0 <= executed <= most:
            raise UserError(
                expected=f"executed a whole number between 0 and {most}, the actions of a chunk",
                found=str(executed)[:80],
                remedy="say how many control steps passed since the observation of the last request",
            )
        return executed
