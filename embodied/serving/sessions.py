"""One policy, many robots: who has a session, what is waiting, and what everybody gets by the deadline."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Hashable, Sequence

from embodied.errors import UserError
from embodied.protocols import Policy
from embodied.serving.answers import Answer
from embodied.serving.batching import StepCosts, batch_sizes
from embodied.serving.exchange import check_exchangeable
from embodied.serving.inference import InferenceThread
from embodied.serving.metrics import ServingMetrics
from embodied.serving.recorder import ExecutedActions, RecordingQueue
from embodied.serving.registry import SessionRegistry
from embodied.serving.requests import Outcome, PendingRequest
from embodied.serving.served_session import Frame, ServedSession
from embodied.serving.session_settings import SessionSettings as SessionSettings  # offered here too
from embodied.serving.telemetry import Telemetry
from embodied.serving.warm_up import warm_up
from embodied.types import Observation, TaskSpec


class Sessions:
    """Owns the policy, its sessions and the thread that computes. Its methods may be called from any thread.

    A session belongs to whoever opened it (a connection) and has at most one request that waits: a newer one
    supersedes it. Deadlines and `received_s` are times of `clock`, the monotonic clock unless a test says otherwise.
    """

    def __init__(
        self,
        policy: Policy,
        settings: SessionSettings,
        *,
        weights: str = "",
        metrics: ServingMetrics | None = None,
        recording: RecordingQueue | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            weights: what answers say of the policy: the first digits of its weights' hash.
        """
        self.settings = settings
        self._telemetry, self._clock = Telemetry(metrics, recording, clock), clock
        self._lock = threading.Lock()
        self._registry = SessionRegistry(settings.most_sessions)
        self._waiting: dict[ServedSession, PendingRequest] = {}  # the newest request of each
        self._inference = InferenceThread(
            policy,
            weights,
            StepCosts(batch_sizes(settings.largest_batch)),
            self._lock,
            threads=settings.threads,
            finished=self._telemetry.finished,
            clock=clock,
        )
        self.metrics.watch_queue(lambda: self._inference.queue_length)
        self.is_ready = False  # warmed up, and not about to end
        self._is_stopped = False

    @property
    def metrics(self) -> ServingMetrics:
        return self._telemetry.metrics

    @property
    def spec(self) -> TaskSpec:
        return self.policy.spec

    @property
    def policy(self) -> Policy:
        return self._inference.policy

    @property
    def weights(self) -> str:
        return self._inference.weights

    @property
    def open_sessions(self) -> int:
        return len(self._registry)

    def start(self, observation: Observation) -> None:
        """Warm up with an observation of the policy's spec, and begin to answer.

        Raises:
            UserError: the policy cannot act.
        """
        self._inference.start()
        self._inference.between_steps(lambda: self._warm_up(observation))
        self.is_ready = True

    def _warm_up(self, observation: Observation) -> None:
        self._inference.costs = warm_up(self.policy, self._inference.costs.sizes, observation, self.settings.threads)

    def stop(self) -> None:
        """Answer what waits, then end the thread. Whoever asks afterwards is refused."""
        self.is_ready = False
        with self._lock:
            self._is_stopped = True  # what was accepted before this is answered
        self._inference.stop()

    def open(self, name: str, owner: Hashable) -> None:
        """Begin a session; nothing happens if its owner has it already.

        Raises:
            SessionTaken: another owner holds a session of this name.
            SessionsFull: no more are allowed.
        """
        with self._lock:
            self._registry.open(name, owner, lambda: self._new_session(name, owner))
        self.metrics.sessions(self.open_sessions)

    def close(self, name: str, owner: Hashable) -> None:
        """End a session of this owner, if it has one of this name."""
        with self._lock:
            session = self._registry.remove(name, owner)
            if session is not None:
                self._waiting.pop(session, None)
        if session is not None:
            self._telemetry.closed(name)
        self.metrics.sessions(self.open_sessions)

    def close_all(self, owner: Hashable) -> None:
        """End every session of this owner."""
        with self._lock:
            names = self._registry.names_of(owner)
        for name in names:
            self.close(name, owner)
        if owner not in names:  # requests that could not be read are recorded under its own name
            self._telemetry.closed(str(owner))

    def _new_session(self, name: str, owner: Hashable) -> ServedSession:
        repeats = self.settings.repeats_history
        return ServedSession(name, owner, self.policy, self.settings.seed, repeats_history=repeats)

    def reset(self, name: str, owner: Hashable, seed: int | None = None) -> None:
        """Begin a new episode; a request that still waits belongs to the last one, and is refused.

        Raises:
            UserError: this owner has no session of this name.
        """
        with self._lock:
            session = self._registry.of(name, owner)
            session.reset(seed)
            refused = self._superseded(session)
        self._deliver(refused)

    def begin_episode(self, name: str, owner: Hashable, episode_id: object) -> bool:
        """Reset the session if the robot's name for its episode is another one than before; whether it was."""
        with self._lock:
            session = self._registry.of(name, owner)
            before, session.episode_id = session.episode_id, episode_id
        has_begun = before is not None and before != episode_id
        if has_begun:
            self.reset(name, owner)
        return has_begun

    def observe(self, name: str, owner: Hashable, frame: Frame) -> None:
        """Remember the observation of a control step, for a policy with a history; no chunk is computed.

        Raises:
            UserError: as `Session.observe`, or this owner has no session of this name.
        """
        now_s = self._clock()
        try:
            with self._lock:
                session = self._registry.of(name, owner)
                refused = self._heard_from(session, now_s)
                seen_s = session.observe(frame)
        except UserError as error:
            self._telemetry.refused(name, now_s, error)
            raise
        self._deliver(refused)
        self._telemetry.observed(name, session.episode, frame.observation, seen_s, now_s)

    def act(
        self,
        name: str,
        owner: Hashable,
        frame: Frame,
        *,
        deadline_s: float | None = None,
        executed: int | None = None,
        earlier: Sequence[Observation] = (),
        received_s: float | None = None,
        reported: ExecutedActions | None = None,
    ) -> Answer:
        """The answer to one request, no later than its deadline unless there is nothing to say before.

        At the deadline a request that is not computed is answered with the session's newest chunk, as long as one of
        its actions is of use (`Answer.stale`); without such a chunk, as at the first request of an episode, it is
        computed all the same (`Answer.late`).

        Args:
            frame: the newest observation, checked against the spec.
            deadline_s: seconds from `received_s`; None: the control period, times the policy's inference delay if it
                has one, times `deadline_periods`.
            executed: control steps between the observation of the last request and this one, 0 .. Ta; None: what the
                frame's time says, or Ta.
            earlier: frames of the control steps before this one, oldest first, for a policy with a history.
            received_s: when the request was complete; None: now.
            reported: what the robot executed since its last request, for the recording.

        Raises:
            UserError: a request that this session cannot be served, as `Session.act`, or the policy failed.
        """
        box: queue.SimpleQueue[Answer | Exception] = queue.SimpleQueue()
        pending = self.submit(
            name,
            owner,
            frame,
            box.put,
            deadline_s=deadline_s,
            executed=executed,
            earlier=earlier,
            received_s=received_s,
            reported=reported,
        )
        try:
            outcome = box.get(timeout=max(0.0, pending.deadline_s - self._clock()))
        except queue.Empty:
            self.expire(pending)
            outcome = self._long_awaited(box, pending)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def submit(
        self,
        name: str,
        owner: Hashable,
        frame: Frame,
        deliver: Callable[[Answer | Exception], None],
        *,
        deadline_s: float | None = None,
        executed: int | None = None,
        earlier: Sequence[Observation] = (),
        received_s: float | None = None,
        reported: ExecutedActions | None = None,
    ) -> PendingRequest:
        """As `act`, without waiting: `deliver` is called once, from another thread perhaps, with the answer or error.

        Whoever submits calls `expire` at the request's deadline.

        Raises:
            UserError: this owner has no session of this name, or `executed` is out of range.
        """
        now_s = self._clock() if received_s is None else received_s
        wait_s = self.usual_deadline_s if deadline_s is None else deadline_s
        with self._lock:
            if self._is_stopped:
                raise UserError(expected="a server that runs", found="one that has stopped", remedy="start it again")
            session = self._registry.of(name, owner)
            refused = self._heard_from(session, now_s)
            try:
                asked_s = session.asked_at(frame, executed)
            except UserError as error:
                self._telemetry.refused(name, now_s, error)
                raise
            pending = PendingRequest(
                session, frame, earlier, executed, reported, asked_s, now_s, now_s + wait_s, deliver, session.episode
            )
            session.asked(asked_s)
            refused = self._superseded(session, "a newer request of the same session") or refused
            self._waiting[session] = pending
            self._inference.submit(pending)
        self._deliver(refused)
        return pending

    def expire(self, pending: PendingRequest) -> None:
        """The request's deadline has come: answer it with an earlier chunk, if there is one of use."""
        with self._lock:
            answer = pending.earlier_answer("deadline", self._clock())
        self._deliver(None if answer is None else (pending, answer))

    @property
    def usual_deadline_s(self) -> float:
        """Of a request that says none."""
        return self.settings.deadline_periods * max(1, self.policy.inference_delay) * self.spec.dt_s

    def swap(self, policy: Policy, weights: str, observation: Observation) -> None:
        """Go on with another checkpoint: sessions stay, their policies' states begin anew. Warmed up before, here.

        Raises:
            UserError: the other policy has another spec, or cannot act. The present one goes on then.
        """
        check_exchangeable(policy, self.policy)
        costs = warm_up(policy, self._inference.costs.sizes, observation, self.settings.threads)

        def replace() -> None:
            with self._lock:
                self._inference.policy, self._inference.weights = policy, weights
                self._inference.costs = costs
                for session in self._registry:
                    session.move_to(policy)

        self._inference.between_steps(replace)

    def _long_awaited(self, box: queue.SimpleQueue[Answer | Exception], pending: PendingRequest) -> Answer | Exception:
        try:
            return box.get(timeout=self.settings.longest_wait_s)
        except queue.Empty:
            with self._lock:
                pending.is_answered = True
            return UserError(
                expected=f"an answer of the policy within {self.settings.longest_wait_s:g} s",
                found="none",
                remedy="look into the server's log, or serve a faster policy",
            )

    def _heard_from(self, session: ServedSession, now_s: float) -> Outcome | None:
        """Begin a new episode after a long silence; what a request of the last one gets, if any waits."""
        if session.heard_from(now_s) <= self.settings.reset_after_s:
            return None
        session.reset()
        return self._superseded(session)

    def _superseded(self, session: ServedSession, by: str = "a new episode") -> Outcome | None:
        """What the session's waiting request gets now that something newer has come."""
        pending = self._waiting.pop(session, None)
        outcome = None if pending is None else pending.superseded(by, self._clock())
        return None if pending is None or outcome is None else (pending, outcome)

    def _deliver(self, given: Outcome | None) -> None:
        if given is not None:
            pending, outcome = given
            self._telemetry.finished(pending, outcome)
            pending.deliver(outcome)

    def lost_frame(self, name: str, owner: Hashable) -> None:
        """A control step's observation was of no use and is in no history: later ones stand for it, if it is missed."""
        with self._lock:
            if name in self._registry.names_of(owner):
                self._registry.of(name, owner).lost_frame()

    def refused(self, name: str, owner: Hashable, received_s: float, error: UserError) -> None:
        """A request of this owner could not be read: record it, in its session or else in the owner's own."""
        with self._lock:
            session = name if name in self._registry.names_of(owner) else str(owner)
        self._telemetry.refused(session, received_s, error)

    def sent(self, name: str, received_s: float) -> None:
        """Record that the answer to the request that came at this time has left."""
        self._telemetry.sent(name, received_s)
