"""Policy servers in processes of their own, for measurements: of a trivial policy, and of a real one."""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from embodied.benchmarks.answering_process import AnsweringProcess
from embodied.benchmarks.bare_websocket_loop import BareWebsocketLoop
from embodied.commands.latency_cells import made_policy
from embodied.errors import UserError
from embodied.protocols import Policy
from embodied.serving.observation_reader import ObservationReader
from embodied.serving.openpi_server import ListeningSettings
from embodied.serving.policy_server import PolicyServer
from embodied.serving.recorder import RecordingQueue
from embodied.serving.session_recorder import SessionRecorder
from embodied.serving.sessions import SessionSettings
from embodied.serving.warm_up import made_observation
from embodied.session import Session
from embodied.session_files.saved_session import SessionHeader
from embodied.types import ActionChunk, ActionSpec, CameraSpec, Json, Observation, StateSpec, TaskSpec

ACTION_STEPS = 8  # of the trivial policy
FRAME_LIMIT = 2**22
QUEUED_RECORDS = 2000  # as conf/serve.yaml
MOST_RECORDED_BYTES = 2**35


class TrivialPolicy:
    """Answers with zeros at once: what is left of a round trip is the server."""

    history, action_steps, inference_delay, label = 1, ACTION_STEPS, 0, "trivial"

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec
        self._actions = np.zeros((ACTION_STEPS, spec.action.size), np.float32)

    def initial_state(self, seed: int) -> None:
        return None

    def step(
        self, histories: Sequence[Sequence[Observation]], states: Sequence[None], executed: Sequence[int]
    ) -> tuple[list[ActionChunk], list[None]]:
        return [ActionChunk(self._actions, h[-1].time_s, self.spec.dt_s) for h in histories], list(states)


@dataclass(frozen=True)
class ServedSpec:
    """Sizes of what is served."""

    state_size: int
    action_size: int
    cameras: int
    camera_size: int
    control_hz: float

    def task_spec(self) -> TaskSpec:
        elements, size = tuple(f"a{i}" for i in range(self.action_size)), self.action_size
        state = StateSpec("state", tuple(f"s{i}" for i in range(self.state_size)), "1")
        cameras = tuple(CameraSpec(f"camera{i}", self.camera_size, self.camera_size) for i in range(self.cameras))
        action = ActionSpec(elements, ("1",) * size, (-1.0,) * size, (1.0,) * size, (False,) * size, "delta", "none")
        return TaskSpec("serving", (state,), cameras, action, self.control_hz, horizon=1000)

    def message(self) -> Json:
        """A good observation, as a robot sends it."""
        generator = np.random.default_rng(0)
        images = {
            f"images/camera{i}": generator.integers(0, 256, (self.camera_size, self.camera_size, 3), dtype=np.uint8)
            for i in range(self.cameras)
        }
        state = generator.uniform(-1, 1, self.state_size).astype(np.float32)
        return {"state/state": state, **images, "prompt": "do it"}


def real_policy(spec: ServedSpec, network: str, policy: Mapping[str, Any], engine: str, threads: int) -> Policy:
    """Of conf/network and conf/policy, with random weights; cameras are seen by conf/encoder/conv_small."""
    torch.set_num_threads(threads)
    encoder = "conv_small" if spec.cameras else "state"
    return made_policy(spec.task_spec(), network, policy, engine, encoder=encoder)


class ServerProcess:
    """What runs in the process: answers "address", "memory" (bytes, resident), "metrics", and at the end "recorded"."""

    def __init__(self, policy: Policy, sessions: Mapping[str, Any], recorder: SessionRecorder | None = None) -> None:
        logging.getLogger("embodied.serving").setLevel(logging.CRITICAL)  # what is refused is counted, not told
        reader = ObservationReader(policy.spec)
        listening = ListeningSettings(
            port=0, rate_limit=1e9, largest_frame=FRAME_LIMIT, handshake_timeout_s=1.0, send_timeout_s=2.0,
            ping_interval_s=5.0, ping_timeout_s=5.0,
        )  # fmt: skip
        self._recorder = recorder
        self._recording = None if recorder is None else RecordingQueue(recorder, QUEUED_RECORDS)
        settings = SessionSettings(**sessions)
        self._server = PolicyServer(policy, reader, settings, listening, recording=self._recording)
        self._server.start(made_observation(policy.spec, {}))

    def __call__(self, question: str) -> Any:
        if question == "address":
            return self._server.address
        if question == "metrics":
            return self._server.sessions.metrics.text().decode()
        if question == "recorded":
            return self._recorded()
        return psutil.Process().memory_info().rss

    def _recorded(self) -> Json:
        """What was written and what was not, once all of it is."""
        assert self._recorder is not None and self._recording is not None
        self._recording.close()
        dropped = self._recording.dropped.total()
        return {"requests": self._recorder.counts["requests"], "bytes": self._recorder.bytes, "dropped": dropped}


def serve_trivial(spec: ServedSpec, sessions: Mapping[str, Any]) -> ServerProcess:
    return ServerProcess(TrivialPolicy(spec.task_spec()), sessions)


def serve_real(
    spec: ServedSpec, network: str, policy: Mapping[str, Any], engine: str, sessions: Mapping[str, Any]
) -> ServerProcess:
    return ServerProcess(real_policy(spec, network, policy, engine, 1), sessions)


def serve_recorded(
    spec: ServedSpec, network: str, policy: Mapping[str, Any], engine: str, sessions: Mapping[str, Any], folder: str
) -> ServerProcess:
    """As `serve_real`, with every session written into the folder."""
    real = real_policy(spec, network, policy, engine, 1)

    def header(session: str, episode: int, began: str) -> SessionHeader:
        return SessionHeader(
            real.spec, session, episode, real.label, "", real.action_steps, real.inference_delay, began
        )

    return ServerProcess(real, sessions, SessionRecorder(Path(folder), header, MOST_RECORDED_BYTES))


class BareAct:
    """A session's actions for what a message of `ServedSpec.message` holds, unchecked, with the step's own time."""

    def __init__(self, policy: Policy) -> None:
        self._session, self._count = Session(policy), itertools.count()
        self._chunk_s = policy.action_steps * policy.spec.dt_s
        self._session.reset(0)

    def __call__(self, message: Mapping[str, Any]) -> Json:
        torch.set_num_threads(1)  # of the thread that computes
        began_s = time.monotonic()
        images = {name.removeprefix("images/"): value for name, value in message.items() if name.startswith("images/")}
        time_s = next(self._count) * self._chunk_s
        chunk = self._session.act(Observation({"state": message["state/state"]}, images, time_s=time_s))
        return {"actions": chunk.actions, "server_timing": {"infer_ms": 1000 * (time.monotonic() - began_s)}}


def bare_real(spec: ServedSpec, network: str, policy: Mapping[str, Any], engine: str) -> BareWebsocketLoop:
    """The real policy in a loop that checks nothing."""
    act = BareAct(real_policy(spec, network, policy, engine, 1))
    act(spec.message())
    return BareWebsocketLoop(act)


@contextmanager
def running(make: functools.partial[Any]) -> Iterator[AnsweringProcess]:
    """A server's process, ended afterwards."""
    process = AnsweringProcess(make, _failed)
    try:
        yield process
    finally:
        process.close()


def _failed(reason: str) -> UserError:
    return UserError(
        expected="a policy server to measure", found=reason, remedy="look at the lines above, or change serve.policy"
    )
