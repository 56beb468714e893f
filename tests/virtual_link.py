"""The way to a policy server in virtual time, with the delays and failures that a test wants."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from embodied.robot.messages import ServedPolicy
from embodied.robot.server_link import Reply
from embodied.session import Session
from embodied.types import Observation


def served(policy) -> ServedPolicy:
    return ServedPolicy(policy.spec, policy.action_steps, policy.inference_delay, policy.history, {})


class VirtualLink:
    """Answers from a policy in this process, `delay_s(number of the request)` later than it was asked.

    Time goes on by `tick`. Without a delay (None) the answer is lost, which shows after a while, and the next request
    goes through a new connection.
    """

    def __init__(self, policy, delay_s: Callable[[int], float | None], *, lost_after_s: float = 1.0) -> None:
        self._policy, self._delay, self._lost_after_s = policy, delay_s, lost_after_s
        self.session, self.connection, self.requests = Session(policy), 1, []
        self.session.reset(0)
        self.now_s, self.delay_s = 0.0, 0.0
        self._coming: list[tuple[float, Reply]] = []
        self.answer = self._answer

    def tick(self, now_s: float) -> None:
        self.now_s = now_s

    def ask(self, request):
        self.requests.append(request)
        ticket = len(self.requests)
        assert not self._coming, "one request at a time"
        delay_s = self._delay(ticket - 1)
        if delay_s is None:
            self._coming.append(
                (self.now_s + self._lost_after_s, Reply(ticket, self.connection, None, OSError("lost")))
            )
            self.connection += 1
            self.session.reset(0)
        else:
            self._coming.append((self.now_s + delay_s, Reply(ticket, self.connection, self.answer(request))))
        return ticket

    def poll(self, wait_s=0.0):
        if self._coming and self._coming[0][0] <= self.now_s + 1e-9:
            return self._coming.pop(0)[1]
        return None

    def _answer(self, request):
        if request.get("reset"):
            self.session.reset(request.get("seed", 0))
        frames = [*request.get("earlier", ()), request]
        observations = [
            Observation(
                {name.removeprefix("state/"): value for name, value in frame.items() if name.startswith("state/")},
                time_s=request["time_s"] - (len(frames) - 1 - index) * self._policy.spec.dt_s,
            )
            for index, frame in enumerate(frames)
        ]
        if "earlier" in request:  # in the place of what the session remembers
            self.session._history.clear()
        for observation in observations[:-1]:
            self.session.observe(observation)
        chunk = self.session.act(observations[-1], request.get("executed"))
        return {
            "actions": np.array(chunk.actions),
            "start_s": chunk.start_s,
            "dt_s": chunk.dt_s,
            "observed_s": request["time_s"],
            "stale": False,
        }


def drive(task, controller, link, start: int, steps: int | None = None):
    """An episode in virtual time. Returns the control steps; where nothing was commanded, nothing is."""
    controller.reset(start)
    observation, taken = task.reset(start), []
    for _ in range(steps or task.spec.horizon):
        link.tick(observation.time_s)
        step = controller.step(observation)
        taken.append(step)
        action = np.zeros(task.spec.action.size, np.float32) if step.action is None else step.action
        observation = task.step(action).observation
    return taken
