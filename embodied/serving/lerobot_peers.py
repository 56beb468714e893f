"""Connections of LeRobot's robot clients: what each saw last, and what ends those that are slow or gone."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import grpc

from embodied.errors import UserError
from embodied.serving.lerobot_values import PolicyInstructions, TimedObservation
from embodied.serving.registry import SessionsFull
from embodied.serving.sessions import Sessions
from embodied.types import Observation

MOST_STREAMS = 2  # observations that one client may be sending at a time
LOOK_S = 0.5  # between two looks at what is late
SILENT_S = 5.0  # without a call: a client of LeRobot that runs asks for actions all the time

Waiting = tuple[TimedObservation, Observation, int | None, float]


class NobodyNew(UserError):
    """The server is about to end."""


class LeRobotPeer:
    """One connection: a session, the order of its motors, and the newest observation that waits for `GetActions`."""

    def __init__(self, name: str, sessions: Sessions, clock: Callable[[], float]) -> None:
        self.name, self._sessions, self._clock = name, sessions, clock
        self.instructions: PolicyInstructions | None = None
        self.calls = 0  # that run
        self.called_s = clock()  # when the last call began or ended
        self.streams = 0
        self._arrival = threading.Condition()
        self._is_stopped = False
        self._forget()

    def _forget(self) -> None:
        self._newest: tuple[TimedObservation, Observation] | None = None
        self._acted: TimedObservation | None = None  # that the last chunk was computed from
        self._begun_s: float | None = None  # timestamp of the episode's first observation

    @property
    def most_actions(self) -> int:
        """That the client wants of a chunk."""
        policy = self._sessions.policy
        every = policy.action_steps + policy.inference_delay
        return every if self.instructions is None else self.instructions.actions_per_chunk

    def silent_s(self) -> float:
        """Since its last call ended; 0 while one runs."""
        return 0.0 if self.calls else self._clock() - self.called_s

    def reset(self) -> None:
        """A new episode."""
        with self._arrival:
            self._forget()
        self._sessions.reset(self.name, self.name)

    def offer(self, seen: TimedObservation, observation: Observation) -> None:
        """Have a new observation, in the place of one that still waits; what must be processed stays so."""
        with self._arrival:
            if self._newest is not None and self._newest[0].must_go:
                seen.must_go = True
            self._newest = (seen, observation)
            self._arrival.notify()

    def awaited(self, wait_s: float) -> Waiting | None:
        """The newest observation, the control steps between it and the last one that was acted on, and its time since
        the episode began, in s; None if none comes within `wait_s`."""
        with self._arrival:
            self._arrival.wait_for(lambda: self._newest is not None or self._is_stopped, wait_s)
            if self._newest is None:
                return None
            (seen, observation), self._newest = self._newest, None
            if self._begun_s is None:
                self._begun_s = seen.timestamp
            time_s = seen.timestamp - self._begun_s
            return seen, observation, self._executed(seen), time_s

    def _executed(self, seen: TimedObservation) -> int | None:
        if self._acted is None:
            return None
        return min(max(seen.timestep - self._acted.timestep, 0), self._sessions.policy.action_steps)

    def answered(self, seen: TimedObservation) -> None:
        """The chunk of this observation is on its way: others that were made before it comes are out of date."""
        with self._arrival:
            self._acted = seen
            waiting = self._newest
            if waiting is not None and not waiting[0].must_go and waiting[0].timestep <= seen.timestep:
                self._newest = None
                self._sessions.metrics.dropped("superseded")

    def stop(self) -> None:
        """Let a call that waits for an observation end."""
        with self._arrival:
            self._is_stopped = True
            self._arrival.notify_all()


class LeRobotPeers:
    """All connections, by the name that gRPC gives them: address and port, so that a new connection is a new one."""

    def __init__(
        self,
        sessions: Sessions,
        most: int,
        idle_s: float,
        observation_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sessions, self._most, self._idle_s, self._observation_s = sessions, most, idle_s, observation_s
        self._clock = clock
        self._lock = threading.Lock()
        self._peers: dict[str, LeRobotPeer] = {}
        self._streams: dict[grpc.ServicerContext, float] = {}  # that are coming in, and until when they may
        self._lets_in = True
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lerobot watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def drain(self, timeout_s: float) -> None:
        """Let nobody new in, and wait until those who are here are silent."""
        with self._lock:
            self._lets_in = False
        deadline_s = self._clock() + timeout_s
        while self._are_asking() and self._clock() < deadline_s:
            time.sleep(0.02)

    def _are_asking(self) -> bool:
        with self._lock:
            return any(peer.silent_s() < SILENT_S for peer in self._peers.values())

    def stop(self) -> None:
        self._ends.set()
        with self._lock:
            for peer in self._peers.values():
                peer.stop()

    def close(self) -> None:
        with self._lock:
            names = list(self._peers)
        for name in names:
            self._remove(name)

    @contextlib.contextmanager
    def calling(self, name: str) -> Iterator[LeRobotPeer]:
        """The connection of this name while it calls; it begins a session with its first call.

        Raises:
            SessionsFull: there are too many.
            NobodyNew: it is a new one, and the server is about to end.
        """
        with self._lock:
            peer = self._peers.get(name) or self._new(name)
            peer.calls += 1
            peer.called_s = self._clock()
        try:
            yield peer
        finally:
            with self._lock:
                peer.calls -= 1
                peer.called_s = self._clock()

    def _new(self, name: str) -> LeRobotPeer:
        if not self._lets_in:
            raise NobodyNew(
                expected="a server that goes on",
                found="one that is about to end",
                remedy="try again in a moment",
            )
        if len(self._peers) >= self._most and not self._forgets_most_silent():
            raise SessionsFull(
                expected=f"at most {self._most} connections of LeRobot's protocol",
                found="one more",
                remedy="close one, or raise lerobot.most_connections",
            )
        self._sessions.open(name, name)
        peer = self._peers[name] = LeRobotPeer(name, self._sessions, self._clock)
        return peer

    def _forgets_most_silent(self) -> bool:
        """Whether there was one to forget: gRPC does not say that a client has closed its connection."""
        peer = max(self._peers.values(), key=LeRobotPeer.silent_s)
        if peer.silent_s() < SILENT_S:
            return False
        del self._peers[peer.name]
        peer.stop()
        self._sessions.close(peer.name, peer.name)
        return True

    @contextlib.contextmanager
    def timed(self, peer: LeRobotPeer, context: grpc.ServicerContext) -> Iterator[None]:
        """While an observation comes in: it is ended if it takes too long.

        Raises:
            UserError: the client is sending others already.
        """
        with self._lock:
            if peer.streams >= MOST_STREAMS:
                raise UserError(
                    expected=f"at most {MOST_STREAMS} observations of a client at a time",
                    found="one more",
                    remedy="send one after the other",
                )
            peer.streams += 1
            self._streams[context] = self._clock() + self._observation_s
        try:
            yield
        finally:
            with self._lock:
                peer.streams -= 1
                del self._streams[context]

    def _watch(self) -> None:
        while not self._ends.wait(LOOK_S):
            self.look()

    def look(self) -> None:
        """End what is late, forget who is gone."""
        now_s = self._clock()
        with self._lock:
            late = [context for context, until_s in self._streams.items() if now_s > until_s]
            gone = [name for name, peer in self._peers.items() if peer.silent_s() > self._idle_s]
        for context in late:
            context.cancel()
        for name in gone:
            self._remove(name)

    def _remove(self, name: str) -> None:
        with self._lock:
            peer = self._peers.pop(name, None)
        if peer is not None:
            peer.stop()
            self._sessions.close(name, name)
