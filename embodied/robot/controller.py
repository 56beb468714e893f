"""Executes a served policy in real time: one safe action a control step, whatever the server and the network do.

With d the policy's `inference_delay`:

    d = 0   synchronous: the next chunk is asked for when the last one is used up, and the robot holds until it comes
    d > 0   overlapped: it is asked for d steps before. A streaming policy keeps those d actions as the clean prefix of
            its buffer, real-time chunking freezes them and inpaints the rest; both answer with what follows them

Nothing here waits unless it is told to: requests go through a `Link`, and a control step takes what is back by then.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from embodied.errors import UserError
from embodied.executors.chunk import ChunkExecutor
from embodied.robot.fallback import stopping_action
from embodied.robot.messages import AnsweredChunk, ServedPolicy
from embodied.robot.safety_limits import SafetyLimiter, SafetyLimits
from embodied.robot.server_link import Link, Reply
from embodied.types import Json, Observation

MOST_REPORTED = 1000  # executed actions that wait to be reported

Source = Literal["chunk", "fallback", "nothing"]


@dataclass(frozen=True)
class ControlStep:
    """What one control step came to."""

    action: np.ndarray | None  # float32 [A]; None: nothing was ever commanded, so leave the robot as it is
    source: Source
    limited: tuple[str, ...] = ()  # limits that changed it, of `safety_limits.REASONS`
    fault: str = ""  # what went wrong since the step before: a refusal, a broken connection, an unusable chunk


@dataclass
class Counts:
    """Of one episode."""

    steps: int = 0
    fallback: int = 0  # steps without an action of the policy
    limited: int = 0  # steps that a limit changed
    asked: int = 0
    chunks: int = 0  # that were taken
    stale: int = 0  # answers with an earlier chunk
    faults: int = 0


class RobotController:
    """One robot, one policy. `reset` comes first, then `step` once a control period, all from one thread."""

    def __init__(
        self,
        served: ServedPolicy,
        link: Link,
        *,
        limits: Mapping[str, Any] | None = None,
        deceleration: float | Mapping[str, float] | None = None,
        wait_s: float = 0.0,
    ) -> None:
        """
        Args:
            served: what the server says of its policy.
            link: to that server.
            limits: `SafetyLimits.from_settings`; the bounds of the policy's spec hold in any case.
            deceleration: of a robot without actions, in each element's unit a second squared; None: it holds at once,
                as far as `limits` let it.
            wait_s: for which a control step that has no action waits for the answer to its request; 0: never. A
                synchronous robot whose server answers within a fraction of the control period loses no step then.

        Raises:
            UserError: limits or a deceleration that do not fit the policy's actions.
        """
        self._served, self._link, self._wait_s = served, link, wait_s
        spec = served.spec
        self._action, self._dt_s = spec.action, spec.dt_s
        self._executor = ChunkExecutor(spec.action, served.inference_delay)
        self._limiter = SafetyLimiter(spec.action, SafetyLimits.from_settings(spec.action, limits or {}), spec.dt_s)
        stopping = SafetyLimits.from_settings(spec.action, {"acceleration": deceleration})
        self._most_change = stopping.acceleration * spec.dt_s**2
        self._ticket: int | None = None  # of the request that is on its way
        self._abandoned: int | None = None  # one of the last episode
        self._connection = 0  # that the chunks of the executor came through
        self.counts = Counts()
        self._is_reset = False

    @property
    def mode(self) -> Literal["synchronous", "overlapped"]:
        return "overlapped" if self._served.inference_delay else "synchronous"

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode: the robot stands still, and the server forgets the last one with the first request.

        Args:
            seed: of the policy's noise; None: the server chooses.
        """
        self._executor.reset()
        self._limiter.reset()
        self._abandoned, self._ticket = self._ticket or self._abandoned, None
        self._begins: Json = {"reset": True} if seed is None else {"reset": True, "seed": seed}
        self._earlier: deque[Observation] = deque(maxlen=max(1, self._served.history - 1))
        self._executed: deque[tuple[float, np.ndarray]] = deque(maxlen=MOST_REPORTED)
        self._reported_until_s = -float("inf")  # with the request that is on its way
        self._newest_observed_s = -float("inf")  # of the chunks that were taken
        self._asked_s = -float("inf")
        self._moved_since_asked = False
        self._last_answer_was_fresh = False
        self.counts = Counts()
        self._is_reset = True

    def step(self, observation: Observation) -> ControlStep:
        """The action of this control step.

        Args:
            observation: with its time, in s since the episode began, one control period after the last one. Its
                arrays are sent from another thread: they may not be changed any more.

        Raises:
            UserError: `reset` was never called, or the time is none.
        """
        now_s = self._checked_time(observation)
        faults = self._received_until(now_s, 0.0)
        if self._ticket is None and self._abandoned is None and self._executor.needs_chunk(now_s):
            self._ask(observation)
            faults += self._received_until(now_s, 0.0 if self._executor.has_action(now_s) else self._wait_s)
        self._earlier.append(observation)
        step = self._acted(observation, "; ".join(faults))
        self._count(step)
        return step

    def _checked_time(self, observation: Observation) -> float:
        if not self._is_reset:
            raise UserError(expected="reset() before the first observation", found="none", remedy="call reset")
        if not np.isfinite(observation.time_s):
            raise UserError(
                expected="observations with a time", found=f"time_s = {observation.time_s}", remedy="set time_s, in s"
            )
        return observation.time_s

    def _received_until(self, now_s: float, wait_s: float) -> list[str]:
        """Take what came back. Returns what was wrong with it."""
        faults = []
        while (reply := self._link.poll(wait_s)) is not None:
            faults.append(self._received(reply, now_s))
            wait_s = 0.0
        return [fault for fault in faults if fault]

    def _received(self, reply: Reply, now_s: float) -> str:
        """Take an answer. Returns what is wrong with it."""
        if reply.ticket == self._abandoned:
            self._abandoned = None
        if reply.ticket != self._ticket:
            return ""
        self._ticket = None
        if reply.answer is None:
            self._last_answer_was_fresh = False
            return str(reply.error)
        self._begins = {}
        while self._executed and self._executed[0][0] <= self._reported_until_s:
            self._executed.popleft()
        try:
            answered = AnsweredChunk.from_answer(reply.answer)
            self._last_answer_was_fresh = answered is not None and not answered.stale
            self.counts.stale += not self._last_answer_was_fresh
            if answered is not None and answered.observed_s > self._newest_observed_s:
                self._take(answered, reply.connection, now_s)
        except UserError as error:
            self._last_answer_was_fresh = False
            return str(error)
        return ""

    def _take(self, answered: AnsweredChunk, connection: int, now_s: float) -> None:
        is_first = connection != self._connection or self._newest_observed_s == -float("inf")
        chunk = answered.chunk
        begins_here = is_first or self._served.inference_delay == 0
        if begins_here and not answered.stale and now_s > self._asked_s and not self._moved_since_asked:
            # The robot stood still since the observation: the chunk begins where it is.
            chunk = dataclasses.replace(chunk, start_s=now_s)
        if is_first:
            self._executor.reset()  # the server's session is a new one, whose first chunk begins at once
        self._executor.take(chunk)
        self._connection, self._newest_observed_s = connection, answered.observed_s
        self.counts.chunks += 1

    def _ask(self, observation: Observation) -> None:
        request = self._served.observed(observation) | self._begins
        request["time_s"] = float(observation.time_s)
        request["deadline_s"] = self._deadline_s()
        executed = self._executor.executed(observation.time_s)
        if executed is not None and self._last_answer_was_fresh:
            request["executed"] = min(executed, self._served.action_steps)  # more where control steps were skipped
        if self._served.history > 1:
            request["earlier"] = [self._served.observed(one) for one in self._earlier]
        if self._executed:
            times, actions = zip(*self._executed, strict=True)
            request |= {"executed_actions": np.stack(actions), "executed_at_s": np.array(times, np.float64)}
            self._reported_until_s = times[-1]
        self._asked_s, self._moved_since_asked = observation.time_s, False
        self._ticket = self._link.ask(request)
        self.counts.asked += 1

    def _deadline_s(self) -> float:
        """Until all actions of the chunk would be past when they come, from the arrival at the server."""
        steps = self._served.inference_delay + self._served.action_steps
        return max(0.0, steps * self._dt_s - self._link.delay_s)

    def _acted(self, observation: Observation, fault: str) -> ControlStep:
        now_s = observation.time_s
        if self._executor.has_action(now_s):
            try:
                limited = self._limiter.limited(self._executor.next_action(now_s), observation)
            except UserError as error:
                fault = f"{fault}; {error}" if fault else str(error)
            else:
                self._moved_since_asked = True
                return self._executes(ControlStep(limited.action, "chunk", limited.reasons, fault), now_s)
        last = self._limiter.last
        if last is None:
            return ControlStep(None, "nothing", (), fault)
        stopping = stopping_action(self._action, last, self._limiter.w, self._most_change)
        limited = self._limiter.limited(stopping, observation)
        return self._executes(ControlStep(limited.action, "fallback", limited.reasons, fault), now_s)

    def _executes(self, step: ControlStep, now_s: float) -> ControlStep:
        assert step.action is not None
        self._executed.append((now_s, step.action))
        return step

    def _count(self, step: ControlStep) -> None:
        self.counts.steps += 1
        self.counts.fallback += step.source != "chunk"
        self.counts.limited += bool(step.limited)
        self.counts.faults += bool(step.fault)
