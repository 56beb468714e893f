"""One robot's side of a policy: its history, its state, its seed."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embodied.errors import UserError
from embodied.protocols import Policy, SessionState
from embodied.types import ActionChunk, Observation

# Frames of a history must be one control period apart; this share of a period is forgiven.
LATEST_SHARE = 0.5


class Session:
    """Owns what lasts between two observations of one robot; one policy serves many sessions.

    `reset` comes first. `observe` takes the observation of every control step (a policy with a history needs them),
    `act` the one to act on.

    With d = `policy.inference_delay` (0 for most) and Ta = `policy.action_steps`, the time axis for d = 2 and Ta = 4:

        control step     0 1 2 3 4 5 6 7 8 9
        act              ^       ^       ^       observations that are acted on, Ta apart
        first chunk      a a a a a a             begins at once, Ta + d actions
        second chunk             . . a a a a     begins d after its observation, Ta actions
        executed                 4       4       what the second and the third `act` are told
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._history: deque[Observation] | None = None

    def reset(self, seed: int) -> None:
        """Forget everything; the same seed and observations then give the same actions."""
        self._history = deque(maxlen=self._policy.history)
        self._state = self._policy.initial_state(seed)
        self._acted_s: float | None = None

    def observe(self, observation: Observation) -> None:
        """Remember the observation of one control step. One that is already the newest (same time) replaces it.

        Raises:
            UserError: `reset` was never called, time ran backwards, or a control step was left out.
        """
        history = self._started_history()
        if not math.isfinite(observation.time_s):
            raise UserError(
                expected="observations with a time", found=f"time_s = {observation.time_s}", remedy="set time_s, in s"
            )
        if history:
            period_s = self._policy.spec.dt_s
            gap_s = observation.time_s - history[-1].time_s
            if abs(gap_s) < LATEST_SHARE * period_s:
                history.pop()
            elif self._policy.history > 1 and abs(gap_s - period_s) > LATEST_SHARE * period_s:
                raise UserError(
                    expected=f"one observation every {period_s:.3f} s, since the policy sees {self._policy.history}",
                    found=f"{gap_s:.3f} s since the last one",
                    remedy="call observe() at every control step, reset() between episodes, or train with history=1",
                )
            elif gap_s < 0:
                raise UserError(
                    expected="observations in the order of time",
                    found=f"{-gap_s:.3f} s before the last one",
                    remedy="call reset() between episodes",
                )
        history.append(observation)

    def act(self, observation: Observation, executed: int | None = None) -> ActionChunk:
        """The next chunk.

        Args:
            observation: the newest one.
            executed: control steps of the last chunk's own time line that lie before this observation. The time line
                begins with the observation that the last chunk was computed from, also where its actions begin d later;
                steps at which a robot stood still because that chunk had not come do not count if the policy has no d.
                So it is how many of the chunk's actions ran for d = 0, and by how much the policy's buffer rolls for
                any d. None means Ta, all of them.

        Raises:
            UserError: `executed` is not a whole number from 0 to the chunk's length, the time is that of the last
                call, or as in `observe`.
        """
        return act_together(self._policy, [self.prepare(observation, executed)])[0]

    def prepare(self, observation: Observation, executed: int | None = None) -> PreparedStep:
        """What the policy needs for the next chunk, for `act_together`; arguments and errors are those of `act`."""
        steps = self._checked(executed)
        self.observe(observation)
        self._check_is_later(observation)
        self._acted_s = observation.time_s
        return PreparedStep(self, self._padded_history(), self._state, steps)

    def forget_history(self) -> None:
        """Keep the policy's state alone: the next observation stands for those before it."""
        self._started_history().clear()

    def move_to(self, policy: Policy, seed: int) -> None:
        """Go on with another policy of the same spec: its state begins anew, what was observed stays."""
        self._policy = policy
        self._history = deque(self._started_history(), maxlen=policy.history)
        self._state = policy.initial_state(seed)

    def keep(self, state: SessionState) -> None:
        """Have the state that the policy gave back for the prepared step."""
        self._state = state

    def _check_is_later(self, observation: Observation) -> None:
        if self._acted_s is not None and observation.time_s - self._acted_s < LATEST_SHARE * self._policy.spec.dt_s:
            raise UserError(
                expected="an observation later than the one acted on before",
                found=f"time_s = {observation.time_s:.3f} again",
                remedy="set time_s of every observation, in s since the episode began; reset() between episodes",
            )

    def _checked(self, executed: int | None) -> int:
        action_steps = self._policy.action_steps
        if executed is None:
            return action_steps
        if not isinstance(executed, (int, np.integer)) or not 0 <= executed <= action_steps:
            raise UserError(
                expected=f"executed a whole number between 0 and {action_steps}, the actions of a chunk",
                found=str(executed),
                remedy="say how many actions of the last chunk the robot executed",
            )
        return executed

    def _padded_history(self) -> list[Observation]:
        """Oldest first; at the start of an episode the first observation stands for those before it."""
        history = self._started_history()
        return [history[0]] * (self._policy.history - len(history)) + list(history)

    def _started_history(self) -> deque[Observation]:
        if self._history is None:
            raise UserError(expected="reset(seed) before the first observation", found="none", remedy="call reset")
        return self._history


@dataclass(frozen=True)
class PreparedStep:
    """What one session puts into the policy's next step."""

    session: Session
    history: list[Observation]
    state: SessionState
    executed: int


def act_together(policy: Policy, steps: Sequence[PreparedStep]) -> list[ActionChunk]:
    """One chunk for each of several sessions of one policy, computed in one call."""
    chunks, states = policy.step(
        [step.history for step in steps], [step.state for step in steps], [step.executed for step in steps]
    )
    for step, state in zip(steps, states, strict=True):
        step.session.keep(state)
    return chunks
