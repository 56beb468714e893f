"""A client of LeRobot's protocol with messages of our own, and a server for it."""

import contextlib
import io
import pickle

import grpc
import pytest
import torch
from lerobot_pickles import RemotePolicyConfig, TimedObservation, lerobots_names
from serving_policies import TellingPolicy, toy_observation

from embodied.serving import lerobot_messages as messages
from embodied.serving.lerobot_grpc import LeRobotServer, LeRobotSettings
from embodied.serving.sessions import Sessions, SessionSettings

MOTORS = ["x.pos", "y.pos", "goal_x.pos", "goal_y.pos"]
INSTRUCTIONS = {"observation.state": {"dtype": "float32", "shape": (4,), "names": MOTORS}}
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@contextlib.contextmanager
def serving(policy=None, observation=None, **settings):
    sessions = Sessions(policy or TellingPolicy(), SessionSettings(deadline_periods=100))
    server = LeRobotServer(sessions, LeRobotSettings(**{"port": 0, "poll_s": 0.3, **settings}))
    sessions.start(observation or toy_observation())
    try:
        yield server.start(), sessions, server
    finally:
        server.stop()
        sessions.stop()


class _ActionsOnly(pickle.Unpickler):
    """Reads a reply as LeRobot's robot does, but names nothing beyond what a list of its actions is made of."""

    NAMES = frozenset(
        {
            ("lerobot.async_inference.helpers", "TimedAction"),
            ("torch._utils", "_rebuild_tensor_v2"),
            ("torch.storage", "_load_from_bytes"),
            ("collections", "OrderedDict"),
        }
    )

    def find_class(self, module, name):
        if (module, name) not in self.NAMES:
            raise pickle.UnpicklingError(f"a reply names {module}.{name}")
        if name == "_load_from_bytes":
            return lambda data: torch.load(io.BytesIO(data), weights_only=True)
        return super().find_class(module, name)


class Client:
    """LeRobot's calls, with messages of ours; pickles are those of classes with LeRobot's names."""

    def __init__(self, port, metadata=()):
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)])
        self.metadata = metadata

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.channel.close()

    def call(self, name, request, reply=messages.Empty):
        path = f"/{messages.PACKAGE}.{messages.SERVICE}/{name}"
        kind = self.channel.stream_unary if name == "SendObservations" else self.channel.unary_unary
        made = kind(path, request_serializer=lambda m: m.SerializeToString(), response_deserializer=reply.FromString)
        return made(request, timeout=20, metadata=self.metadata)

    def begin(self, actions=4, features=INSTRUCTIONS):
        self.call("Ready", messages.Empty())
        with lerobots_names():
            data = pickle.dumps(RemotePolicyConfig("act", "/etc/passwd", features, actions))
        self.call("SendPolicyInstructions", messages.PolicySetup(data=data))

    def send(self, timestamp, timestep, must_go=False, pieces=1, **changes):
        raw = dict(zip(MOTORS, (timestamp, timestep, 0.0, 0.0), strict=True)) | {"task": "go"} | changes
        with lerobots_names():
            self.send_bytes(pickle.dumps(TimedObservation(timestamp, timestep, raw, must_go)), pieces)

    def send_bytes(self, data, pieces=1):
        size = -(-len(data) // pieces)
        parts = [data[begin : begin + size] for begin in range(0, len(data), size)]
        before = [messages.BEGIN, *[messages.MIDDLE] * len(parts)][: len(parts) - 1]
        states = [*before, messages.END]
        stream = [messages.Observation(transfer_state=s, data=part) for s, part in zip(states, parts, strict=True)]
        self.call("SendObservations", iter(stream))

    def actions(self):
        data = self.call("GetActions", messages.Empty(), messages.Actions).data
        with lerobots_names():
            return _ActionsOnly(io.BytesIO(data)).load() if data else []


def refused(code, reason):
    """The call inside ends with this status, and a sentence that has `reason` in it."""

    @contextlib.contextmanager
    def expectation():
        with pytest.raises(grpc.RpcError) as caught:
            yield
        assert caught.value.code() == code, caught.value.details()
        assert reason in caught.value.details(), caught.value.details()

    return expectation()
