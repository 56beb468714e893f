"""LeRobot's protocol over a real channel: episodes, messages in pieces, refusals with a reason, and its own client."""

import contextlib
import json
import os
import pickle
import random
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from lerobot_pickles import RemotePolicyConfig, TimedAction, TimedObservation, lerobots_names
from serving_policies import TellingPolicy, WaitingPolicy, toy_observation
from toy_evaluation import ExpertPolicy
from toy_specs import image_spec

from embodied.errors import UserError
from embodied.serving import lerobot_messages as messages
from embodied.serving.lerobot_grpc import LeRobotServer, LeRobotSettings
from embodied.serving.lerobot_observation import resized
from embodied.serving.lerobot_peers import SILENT_S, LeRobotPeers, NobodyNew
from embodied.serving.lerobot_values import read_instructions, read_observation
from embodied.serving.registry import SessionsFull
from embodied.serving.sessions import Sessions, SessionSettings

FUZZED = int(os.environ.get("EMBODIED_FUZZ", "300"))  # mutated pickles in a test; 100000 for the long run
MOTORS = ["x.pos", "y.pos", "goal_x.pos", "goal_y.pos"]
INSTRUCTIONS = {"observation.state": {"dtype": "float32", "shape": (4,), "names": MOTORS}}


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


@contextlib.contextmanager
def peers(now_s, most=2, idle_s=120.0):
    """Connections without the network, by a clock of the test's own."""
    sessions = Sessions(TellingPolicy(), SessionSettings())
    sessions.start(toy_observation())
    try:
        yield LeRobotPeers(sessions, most, idle_s, 10.0, clock=lambda: now_s[0]), sessions
    finally:
        sessions.stop()


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
            return pickle.loads(data) if data else []


def refused(code, reason):
    """The call inside ends with this status, and a sentence that has `reason` in it."""

    @contextlib.contextmanager
    def expectation():
        with pytest.raises(grpc.RpcError) as caught:
            yield
        assert caught.value.code() == code, caught.value.details()
        assert reason in caught.value.details(), caught.value.details()

    return expectation()


INVALID = grpc.StatusCode.INVALID_ARGUMENT


def test_an_episode_in_lerobots_words():
    with serving() as (port, _, _), Client(port) as client:
        client.begin(actions=3)
        client.send(1000.0, 0, must_go=True)
        first = client.actions()
        assert [type(action) for action in first] == [TimedAction] * 3, "as many as the client wants"
        assert [(a.timestep, round(a.timestamp, 6)) for a in first] == [(0, 1000.0), (1, 1000.1), (2, 1000.2)]
        assert all(isinstance(a.action, torch.Tensor) and a.action.shape == (3,) for a in first)
        assert first[0].action.tolist() == pytest.approx([0.0, 0.0, 4.0]), "time 0, no step so far"
        client.send(1000.3, 3, pieces=5)
        second = client.actions()
        assert second[0].timestep == 3
        assert second[0].action.tolist() == pytest.approx([0.3, 1.0, 3.0]), "the buffer moves on by 3 control steps"
        assert client.actions() == [], "nothing new"


def test_only_the_newest_observation_is_acted_on_and_one_that_must_go_always_is():
    with serving() as (port, _, _), Client(port) as client:
        client.begin()
        for step in range(4):
            client.send(1000.0 + 0.1 * step, step)
        assert client.actions()[0].timestep == 3 and client.actions() == []
        client.send(1001.0, 3, must_go=True)
        assert client.actions()[0].timestep == 3, "the same step again, as it must go"
        client.send(1001.5, 3)
        assert client.actions()[0].timestep == 3, "a client whose queue ran empty is not left waiting"


def test_observations_from_before_an_answer_are_out_of_date_with_it():
    policy = WaitingPolicy()
    with serving(policy) as (port, _, _), Client(port) as client:
        client.begin()
        policy.begun.clear()
        policy.go.clear()
        client.send(1000.0, 0, must_go=True)
        got = []
        thread = threading.Thread(target=lambda: got.append(client.actions()))
        thread.start()
        assert policy.begun.wait(5)
        client.send(1000.1, 0)  # as the stock client does at every control step until actions come
        policy.go.set()
        thread.join()
        assert got[0][0].timestep == 0 and client.actions() == []
        policy.begun.clear()
        policy.go.clear()
        client.send(1000.5, 4)
        thread = threading.Thread(target=lambda: got.append(client.actions()))
        thread.start()
        assert policy.begun.wait(5)
        client.send(1000.6, 4, must_go=True)
        policy.go.set()
        thread.join()
        assert client.actions()[0].timestep == 4, "must go"


def test_get_actions_waits_for_an_observation():
    with serving(poll_s=5.0) as (port, _, _), Client(port) as client:
        client.begin()
        got = []
        thread = threading.Thread(target=lambda: got.append(client.actions()))
        begun_s = time.monotonic()
        thread.start()
        time.sleep(0.2)
        client.send(1000.0, 0)
        thread.join()
        assert len(got[0]) == 4 and 0.2 <= time.monotonic() - begun_s < 3


def test_ready_begins_an_episode_and_connections_are_sessions():
    with serving() as (port, sessions, _), Client(port) as one, Client(port) as other:
        one.begin()
        other.begin()
        assert sessions.open_sessions == 2
        for step in range(3):
            one.send(1000.0 + step, 4 * step)
            assert one.actions()[0].action[1] == step
        other.send(50.0, 0)
        assert other.actions()[0].action.tolist() == pytest.approx([0.0, 0.0, 4.0]), "knows nothing of the other"
        one.begin()
        one.send(2000.0, 0)
        assert one.actions()[0].action.tolist() == pytest.approx([0.0, 0.0, 4.0])


def test_a_policy_with_a_delay_answers_for_the_steps_after_it():
    policy = TellingPolicy()
    policy.inference_delay = 2
    honest = policy.step

    def step(histories, states, executed):
        chunks, states = honest(histories, states, executed)
        for chunk, (_, count) in zip(chunks, states, strict=True):
            chunk.start_s += 0.2 if count > 1 else 0.0
        return chunks, states

    policy.step = step
    with serving(policy) as (port, _, _), Client(port) as client:
        client.begin()
        client.send(1000.0, 0)
        assert client.actions()[0].timestep == 0
        client.send(1000.4, 4)
        second = client.actions()
        assert second[0].timestep == 6 and second[0].timestamp == pytest.approx(1000.6)


def test_cameras_are_brought_to_the_policys_size():
    policy, seen = TellingPolicy(spec=image_spec("front")), []
    honest = policy.step
    policy.step = lambda histories, *rest: seen.append(histories[0][-1]) or honest(histories, *rest)
    first = toy_observation()
    first.images["front"] = np.zeros((24, 24, 3), np.uint8)
    image = np.random.default_rng(0).integers(0, 255, (48, 72, 3), dtype=np.uint8)
    with serving(policy, first) as (port, _, _), Client(port) as client:
        client.begin()
        client.send(1.0, 0, front=image)
        client.actions()
        with refused(INVALID, "camera images as uint8 [h w 3]"):
            client.send(1.1, 0, front=np.zeros((4, 4, 1), np.uint8))
        with refused(INVALID, "'observation.images.front' in every observation"):
            client.send(1.1, 0)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(pixels, (24, 24), mode="bilinear", align_corners=False)
    assert np.array_equal(seen[-1].images["front"], expected[0].permute(1, 2, 0).numpy())
    assert np.array_equal(seen[-1].state["goal"], [0, 0]) and seen[-1].instruction == "go"
    assert resized(image, 48, 72) is image


def test_a_foreign_robots_names_fit_by_configuration():
    keys = {"state/point": "arm", "state/goal": "target", "instruction": "say"}
    with serving(keys=keys) as (port, _, _), Client(port) as client:
        client.begin(features={})
        client.send(1.0, 0, arm=np.array([1.0, 2.0]), target=[0.0, 1.0], say="hello")
        assert len(client.actions()) == 4


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"x.pos": "left"}, "a number for 'x.pos', which the robot client announced; found str"),
        ({"x.pos": float("nan")}, "finite values"),
        ({"y.pos": np.zeros(2)}, "a number for 'y.pos'"),
        ({"task": 3}, "'task' as a text"),
        ({"note": {"a": 1}}, "a dict among the observed values"),
    ],
)
def test_an_observation_that_does_not_fit_is_refused_and_the_session_goes_on(changes, reason):
    with serving() as (port, _, _), Client(port) as client:
        client.begin()
        with refused(INVALID, reason):
            client.send(1.0, 0, **changes)
        client.send(1.1, 0)
        assert len(client.actions()) == 4


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/this_must_not_exist",)


def test_a_hostile_pickle_is_refused_over_the_wire_and_others_go_on():
    with serving() as (port, _, _), Client(port) as client, Client(port) as other:
        client.begin()
        other.begin()
        for data in (pickle.dumps(Evil()), b"", b"\x80\x04", pickle.dumps({"a": eval})):
            with refused(INVALID, "nothing of it was run"):
                client.send_bytes(data or b"\x00")
        with refused(INVALID, "the name posix.system"):
            client.call("SendPolicyInstructions", messages.PolicySetup(data=pickle.dumps(Evil())))
        other.send(1.0, 0)
        assert len(other.actions()) == 4
    assert not Path("/tmp/this_must_not_exist").exists()


def chunk(state, data=b"x"):
    return messages.Observation(transfer_state=state, data=data)


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        ([], "no last chunk"),
        ([chunk(messages.BEGIN)], "no last chunk"),
        ([chunk(messages.MIDDLE)], "chunk 0 as TRANSFER_MIDDLE"),
        ([chunk(messages.BEGIN), chunk(messages.BEGIN)], "chunk 1 as TRANSFER_BEGIN"),
        ([chunk(0)], "chunk 0 as TRANSFER_UNKNOWN"),
        ([chunk(9)], "chunk 0 as 9"),
        ([chunk(messages.BEGIN, bytes(800)), *[chunk(messages.MIDDLE, bytes(800))] * 3], "more than 2000 bytes"),
        ([chunk(messages.BEGIN, b""), *[chunk(messages.MIDDLE, b"")] * 1100], "or 1024 chunks"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_chunks_that_make_no_message_are_refused(stream, reason):
    with serving(largest_observation_bytes=2000) as (port, _, _), Client(port) as client:
        client.begin()
        with refused(INVALID, reason):
            client.call("SendObservations", iter(stream))


def test_a_slow_sender_is_ended_and_one_that_sends_too_many_is_refused():
    go = threading.Event()

    def slow():
        yield chunk(messages.BEGIN)
        go.wait(20)

    def send_slowly(outcomes):
        try:
            client.call("SendObservations", slow())
        except grpc.RpcError as error:
            outcomes.append(error.code())

    with serving(observation_s=1.0) as (port, _, _), Client(port) as client:
        client.begin()
        outcomes, begun_s = [], time.monotonic()
        threads = [threading.Thread(target=send_slowly, args=(outcomes,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        with refused(INVALID, "at most 2 observations of a client at a time"):
            client.send(1.0, 0)
        for thread in threads:
            thread.join()
        assert outcomes == [grpc.StatusCode.CANCELLED] * 2 and time.monotonic() - begun_s < 10
        go.set()
        client.send(1.0, 0)
        assert len(client.actions()) == 4


def test_connections_are_limited_and_forgotten_when_idle():
    with serving(most_connections=1, idle_s=0.8) as (port, sessions, _), Client(port) as one, Client(port) as other:
        one.begin()
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "at most 1 connections of LeRobot's protocol"):
            other.begin()
        deadline_s = time.monotonic() + 10
        while sessions.open_sessions and time.monotonic() < deadline_s:
            time.sleep(0.05)
        other.begin()
        assert sessions.open_sessions == 1


def called(connections, *names):
    for name in names:
        with connections.calling(name):
            pass


def test_a_new_connection_takes_the_place_of_the_one_that_is_silent_longest():
    now_s = [0.0]
    with peers(now_s) as (connections, sessions):
        called(connections, "first")
        now_s[0] = 1.0
        called(connections, "second")
        now_s[0] = SILENT_S - 0.1
        with pytest.raises(SessionsFull):
            called(connections, "third")
        now_s[0] = SILENT_S
        called(connections, "third")
        with pytest.raises(SessionsFull):
            called(connections, "first")  # it is the one that was forgotten; the second one's time is not yet over
        called(connections, "second", "third")
        assert sessions.open_sessions == 2


def test_a_robot_that_asks_keeps_its_place_however_long_its_call_takes():
    now_s = [0.0]
    with peers(now_s, most=1, idle_s=100.0) as (connections, sessions):
        with connections.calling("robot") as robot:
            now_s[0] = 1000.0
            connections.look()
            with pytest.raises(SessionsFull):
                called(connections, "other")
        now_s[0] += SILENT_S - 0.1
        with pytest.raises(SessionsFull):
            called(connections, "other")
        with connections.calling("robot") as same:
            assert same is robot and sessions.open_sessions == 1


def test_who_has_no_key_is_refused_and_a_public_address_needs_one():
    with serving(api_key="secret") as (port, _, _):
        for metadata in ((), (("authorization", "Api-Key guess"),)):
            with Client(port, metadata) as client, refused(grpc.StatusCode.UNAUTHENTICATED, "Api-Key"):
                client.begin()
        with Client(port, (("authorization", "Api-Key secret"),)) as client:
            client.begin()
    with pytest.raises(UserError, match="an API key for the public address 0.0.0.0"):
        LeRobotServer(Sessions(TellingPolicy(), SessionSettings()), LeRobotSettings(host="0.0.0.0"))


def test_a_policy_that_is_not_ready_or_fails_says_so():
    sessions = Sessions(TellingPolicy(), SessionSettings())
    server = LeRobotServer(sessions, LeRobotSettings(port=0))
    port = server.start()
    with Client(port) as client, refused(grpc.StatusCode.UNAVAILABLE, "a policy that is warmed up"):
        client.begin()
    server.stop()


def test_a_server_that_ends_lets_its_robots_finish_and_nobody_new_in():
    with serving() as (port, sessions, server), Client(port) as robot, Client(port) as other:
        robot.begin()
        draining = threading.Thread(target=server.drain, args=(3.0,))
        begun_s = time.monotonic()
        draining.start()
        time.sleep(0.2)
        with refused(grpc.StatusCode.UNAVAILABLE, "found one that is about to end"):
            other.begin()
        robot.send(1000.0, 0)
        assert len(robot.actions()) == 4 and draining.is_alive()
        draining.join()
        assert time.monotonic() - begun_s >= 3.0 and sessions.open_sessions == 0
        with pytest.raises(grpc.RpcError):
            robot.actions()


def test_a_server_that_ends_does_not_wait_for_robots_that_are_silent():
    now_s = [0.0]
    with peers(now_s) as (connections, _):
        with connections.calling("robot"):
            pass
        now_s[0] = SILENT_S
        connections.drain(1e9)  # the clock stands still: it would wait for ever
        with pytest.raises(NobodyNew), connections.calling("other"):
            pass


def test_an_ipv6_address_is_listened_on():
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    server = LeRobotServer(Sessions(TellingPolicy(), SessionSettings()), LeRobotSettings(host="::1", port=0))
    try:
        with socket.create_connection(("::1", server.start()), timeout=10):
            pass
    finally:
        server.stop()


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = LeRobotServer(Sessions(TellingPolicy(), SessionSettings()), LeRobotSettings(port=port))
        with pytest.raises(UserError, match=f"127.0.0.1:{port} to be free"):
            server.start()


def mutated(data, rng):
    """One to eight changes: bits, bytes, cuts, insertions, repeated pieces."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(data)) if data else 0
        kind = rng.randrange(5)
        if kind == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[at] = rng.randrange(256)
        elif kind == 2:
            del data[at : at + rng.randrange(1, 9)]
        elif kind == 3:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        else:
            begin = rng.randrange(len(data)) if data else 0
            data[at:at] = data[begin : begin + rng.randrange(1, 60)]
    return bytes(data)


@pytest.mark.timeout(0 if FUZZED > 10_000 else 120)
def test_mutated_pickles_are_read_or_refused_and_nothing_else_happens():
    values = {"a": 1.0, "b": np.float32(2), "c": np.zeros((2, 3), np.uint8), "d": torch.zeros(3), "e": [1, 2], "f": "x"}
    with lerobots_names():
        seeds = [
            (read_observation, pickle.dumps(TimedObservation(1.0, 2, values, True), protocol)) for protocol in (4, 5)
        ]
        seeds += [(read_instructions, pickle.dumps(RemotePolicyConfig("act", "x", INSTRUCTIONS, 8)))]
    rng, read, slowest_s = random.Random(0), 0, 0.0
    for index in range(FUZZED):
        function, data = seeds[index % len(seeds)]
        begun_s = time.perf_counter()
        with contextlib.suppress(UserError):
            function(mutated(data, rng))
            read += 1
        slowest_s = max(slowest_s, time.perf_counter() - begun_s)
    assert 0 < read < FUZZED / 2 and slowest_s < 2.0


def test_mutated_observations_over_the_wire_leave_the_server_as_it_was():
    rng = random.Random(1)
    with lerobots_names():
        data = pickle.dumps(TimedObservation(1.0, 2, dict.fromkeys(MOTORS, 0.0), True))
    codes = []
    with serving(most_connections=4) as (port, _, _), Client(port) as client, Client(port) as other:
        client.begin()
        other.begin()
        for index in range(100):
            try:
                client.send_bytes(mutated(data, rng))
            except grpc.RpcError as error:
                codes.append(error.code())
            if index % 20 == 0:
                other.send(10.0 + index, index)
                assert len(other.actions()) == 4
    assert set(codes) == {INVALID} and len(codes) > 50


@pytest.mark.heavy
def test_lerobots_own_robot_client_drives_a_task_to_success(tmp_path):
    """The stock `RobotClient`, unchanged, in a process of its own: LeRobot takes long to import."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)]),
        "HF_LEROBOT_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
    }
    with serving(ExpertPolicy()) as (port, _, _):
        done = subprocess.run(
            [sys.executable, str(Path(__file__).parent / "lerobot_robot.py"), f"127.0.0.1:{port}", "20", "3"],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["success"] and len(result["commands"]) > 5
