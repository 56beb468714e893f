"""The server on a port: the protocol as its clients know it, the pages, and who is turned away how."""

import gc
import json
import logging
import socket
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import msgpack
import numpy as np
import pytest
from serving_policies import TellingPolicy, WaitingPolicy, toy_observation
from stand_in_server import as_message, from_message
from toy_evaluation import VariedTask
from toy_policies import SDP, toy_policy
from toy_specs import image_spec
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus
from websockets.sync.client import connect

from embodied.client import PolicyClient, PolicyServerError
from embodied.errors import UserError
from embodied.evaluation.episodes import run_episode
from embodied.evaluation.remote_policy import RemotePolicy, ServerSettings
from embodied.policies.seeded_noise import mixed_seed
from embodied.serving.observation_reader import ObservationReader
from embodied.serving.openpi_server import ListeningSettings
from embodied.serving.policy_server import PolicyServer
from embodied.serving.sessions import SessionSettings
from embodied.serving.warm_up import made_observation


@contextmanager
def served(policy=None, *, keys=None, sessions=None, reader=None, text=False, started=True, **listening):
    policy = policy or TellingPolicy()
    server = PolicyServer(
        policy,
        ObservationReader(policy.spec, keys, **(reader or {})),
        SessionSettings(**{"deadline_periods": 100.0, **(sessions or {})}),
        ListeningSettings(port=0, **listening),
        weights="abc",
        refuses_by_text=text,
    )
    if started:
        server.start(made_observation(policy.spec, {}))
    try:
        yield server
    finally:
        if isinstance(policy, WaitingPolicy):
            policy.go.set()
        if started:
            server.drain(0.0)


def message(**changes):
    return {"state/point": np.zeros(2, np.float32), "state/goal": np.zeros(2, np.float32), **changes}


class Robot:
    """A connection with the test's own packing."""

    def __init__(self, server, **words):
        self.socket = connect(server.address, proxy=None, compression=None, **words)
        self.metadata = self.receive()

    def receive(self):
        frame = self.socket.recv(timeout=10)
        return frame if isinstance(frame, str) else msgpack.unpackb(frame, object_hook=from_message)

    def ask(self, **changes):
        return self.send(message(**changes))

    def send(self, observation):
        self.socket.send(msgpack.packb(observation, default=as_message))
        return self.receive()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.socket.close()


def get(server, path, **headers):
    url = server.address.replace("ws", "http", 1) + path
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


class SeeingPolicy(TellingPolicy):
    """Notes the histories that it is given, as the values of `point`."""

    def __init__(self, history):
        super().__init__(history=history)
        self.seen = []

    def step(self, histories, states, executed):
        assert all(np.isfinite(one.state["point"]).all() for one in histories[0])
        self.seen.append([float(one.state["point"][0]) for one in histories[0]])
        return super().step(histories, states, executed)


def test_a_refused_frame_is_in_no_history_and_the_next_one_is_answered():
    policy = SeeingPolicy(history=3)
    bad = np.full(2, np.nan, np.float32)

    def frame(value):
        return {"state/point": np.full(2, value, np.float32), "state/goal": np.zeros(2, np.float32)}

    with served(policy) as server, Robot(server) as robot:
        policy.seen.clear()
        robot.ask(**frame(1), time_s=0.0)
        for step in (1, 2):
            assert robot.ask(**frame(1 + step), time_s=0.1 * step, observe_only=True)["observed"]
        assert "finite values" in robot.ask(**{"state/point": bad}, time_s=0.3)["error"]["message"]
        after = robot.ask(**frame(5), time_s=0.4)
        assert after["history_repeated"] and policy.seen[-1] == [5, 5, 5], "frames before the gap are too old"
        robot.ask(**frame(6), time_s=0.5, observe_only=True)
        assert not robot.ask(**frame(7), time_s=0.6)["history_repeated"] and policy.seen[-1] == [5, 6, 7]
        short = robot.ask(**frame(9), time_s=1.0, earlier=[{**frame(0), "state/point": bad}, frame(8)])
        assert short["history_repeated"] and policy.seen[-1] == [8, 8, 9]
        wrong = robot.ask(**frame(9), time_s=1.2, earlier=[{"state/point": np.zeros(3)}])
        assert "'state/point' as 2 numbers" in wrong["error"]["message"], "another mistake than a sensor's is told"
        gap = robot.ask(**frame(9), time_s=1.5)
        assert "one observation every 0.100 s" in gap["error"]["message"], "nobody lost a frame here"


def test_an_answer_has_what_openpis_clients_read_and_what_is_needed_to_align_it():
    with served() as server, Robot(server) as robot:
        assert robot.metadata["action_steps"] == 4 and robot.metadata["spec"]["task"] == "toy/reach"
        first = robot.ask(request_id=7, client_time_s=1.5)
        second = robot.ask(executed=2)
    assert first["actions"].shape == (4, 3) and first["actions"].dtype == np.float32
    assert first["request_id"] == 7 and first["client_time_s"] == 1.5 and "request_id" not in second
    assert (first["start_s"], first["dt_s"], first["valid_actions"]) == (0.0, 0.1, 4)
    assert (second["asked_s"], second["episode"], second["policy"]) == (pytest.approx(0.2), 1, "abc")
    assert not (first["stale"] or first["late"])
    timing = second["server_timing"]
    assert timing["prev_total_ms"] > 0 and "prev_total_ms" not in first["server_timing"]
    assert timing["received_s"] < timing["sent_s"] and timing["infer_ms"] <= timing["total_ms"]
    assert second["policy_timing"]["batch"] == 1
    arrays = [value for value in first.values() if isinstance(value, np.ndarray)]
    assert all(len(array) >= 4 for array in arrays)  # openpi's broker takes row after row of each


def test_an_episode_over_the_wire_is_that_of_a_policy_in_this_process():
    policy = toy_policy({**SDP, "history": 1})
    with served(policy) as server:
        far = run_episode(VariedTask(), RemotePolicy(policy.spec, ServerSettings(server.address)), 1, 0)
    near = run_episode(VariedTask(), policy, 1, mixed_seed(0, 1))
    assert np.array_equal(far.episode.executed, near.episode.executed)


def test_a_connection_is_a_session_and_a_new_one_begins_anew():
    with served() as server:
        for _ in range(2):
            with Robot(server) as robot:
                assert [robot.ask()["actions"][0, 1] for _ in range(2)] == [0, 1]


@pytest.mark.parametrize("first, second", [({}, {"reset": True}), ({"episode_id": 1}, {"episode_id": 2})])
def test_a_key_resets(first, second):
    with served() as server, Robot(server) as robot:
        counts = [robot.ask(**words)["actions"][0, 1] for words in (first, first, second)]
    assert counts == [0, 1, 0]


def test_several_keys_on_one_connection_are_several_robots():
    with served() as server, Robot(server) as robot:
        counts = [robot.ask(session=key)["actions"][0, 1] for key in ("left", "right", "left")]
        assert counts == [0, 0, 1]
        with Robot(server) as other:
            assert other.ask(session="left").startswith("expected session 'left' to be free; found another client")
            with pytest.raises(ConnectionClosed, match="1008"):
                other.receive()
        assert robot.ask(session="left")["actions"][0, 1] == 2


def test_of_two_clients_that_claim_one_session_the_first_goes_on():
    with served() as server, Robot(server) as first, Robot(server) as second:
        before = first.ask(session="arm")
        said = second.ask(session="arm")
        assert isinstance(said, str) and "arm" in said, said
        with pytest.raises(ConnectionClosed) as closed:
            second.receive()
        assert closed.value.rcvd.code == 1008
        after = first.ask(session="arm")
        assert before["session"] == after["session"] == "arm" and after["episode"] == before["episode"]
        assert 'reason="session_taken"} 1.0' in get(server, "/metrics")[1]


def test_nothing_is_kept_of_requests_refusals_and_connections_that_are_over(caplog):
    """A server's memory over many of them (`embodied bench serve` makes a million), in Python objects."""
    caplog.set_level(logging.CRITICAL, "embodied.serving")  # pytest keeps what is logged

    def objects_after(rounds):
        for _ in range(rounds):
            assert "actions" in robot.ask()
            assert "actions" in robot.ask(session="arm")
            assert "error" in robot.ask(**{"state/point": np.full(2, np.nan, np.float32)})
            with Robot(server) as passing:
                assert "actions" in passing.ask()
        ends_s = time.monotonic() + 10
        while threading.active_count() > threads and time.monotonic() < ends_s:  # of the last connection
            time.sleep(0.01)
        gc.collect()
        return len(gc.get_objects())

    with served() as server, Robot(server) as robot:
        robot.ask()
        threads = threading.active_count()
        objects_after(20)
        before = objects_after(20)
        assert objects_after(200) - before < 50


def test_a_foreign_robots_names_fit_the_spec_by_configuration():
    keys = {"state": "observation/state", "images/front": "observation/image", "instruction": "task"}
    spec = image_spec("front")
    policy = toy_policy({**SDP, "history": 1}, spec=spec, encoder={"name": "conv_small", "crop": 0.9,
                        "keypoints": 4, "features": 8})  # fmt: skip
    image = np.zeros((24, 24, 3), np.uint8)
    with served(policy, keys=keys) as server, Robot(server) as robot:
        flat = {"observation/state": np.zeros(4), "observation/image": image, "task": "go"}
        nested = {"observation": {"state": np.zeros(4), "image": image}, "reset": True, "seed": 1}
        assert robot.send({**flat, "seed": 1, "reset": True})["actions"].shape == (4, 3)
        assert np.isfinite(robot.send(nested)["actions"]).all()
        assert (
            "'observation/image' as uint8 [24, 24, 3]; found uint8 [12, 24, 3]"
            in robot.send({**flat, "observation/image": image[:12]})["error"]["message"]
        )


REFUSED = {
    "missing": ({"state/point": None}, "'state/point' as 2 numbers"),
    "shape": ({"state/point": np.zeros(3)}, "as 2 numbers (x, y in m); found float64 [3]"),
    "dtype": ({"state/point": np.zeros(2, bool)}, "found bool [2]"),
    "nan": ({"state/point": np.array([0, np.nan])}, "finite values in 'state/point'; found [0.0, nan]"),
    "too large": ({"state/point": np.array([0, 1e300])}, "finite values"),
    "far away": ({"state/point": np.array([0, 700.0])}, "y of 'state/point' between -51 and 51 (m)"),
    "executed": ({"executed": 9}, "executed a whole number between 0 and 4"),
    "deadline": ({"deadline_s": float("nan")}, "'deadline_s' as a finite number"),
    "session": ({"session": 3}, "'session' as a text"),
    "reset": ({"reset": "yes"}, "'reset' as true or false"),
    "prompt": ({"prompt": 3}, "'prompt' as a text"),
    "earlier": ({"earlier": [3]}, "'earlier' as a list of observations"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_observation_is_refused_in_a_sentence_and_the_session_lives_on(name):
    changes, expected = REFUSED[name]
    limits = {"state/point": {"minimum": [-1, -1], "maximum": [1, 1]}}
    with served(reader={"statistics": limits, "range_margin": 25.0}) as server, Robot(server) as robot:
        robot.ask()
        refused = robot.ask(request_id="x", **changes)
        assert expected in refused["error"]["message"] and "actions" not in refused
        assert refused["request_id"] == "x"
        assert robot.ask()["actions"][0, 1] == 1


def test_a_key_that_is_missing_is_named_with_those_that_came():
    with served() as server, Robot(server) as robot:
        said = robot.send({"observation/state": np.zeros(4)})["error"]["message"]
    assert said == (
        "expected 'state/point' in every observation; found the keys observation/state; send it, or say how the "
        "robot calls it: observation_keys={state/point: ...}"
    )


def test_a_refusal_may_be_a_text_that_openpis_client_raises():
    with served(text=True) as server, Robot(server) as robot:
        assert robot.send({}).startswith("expected 'state/point' in every observation; found no keys")
        assert robot.ask()["actions"].shape == (4, 3)


def test_a_client_that_never_gets_it_right_is_sent_away():
    with served() as server, Robot(server) as robot:
        replies = [robot.send({}) for _ in range(100)]
        assert replies[-1].startswith("100 refused requests one after the other; the last one: expected")
        with pytest.raises(ConnectionClosed, match="1008"):
            robot.receive()


def test_a_client_that_asks_too_often_is_told_so():
    with served(rate_limit=0.1) as server, Robot(server) as robot:
        first, second = robot.ask(), robot.ask()
        assert 'reason="rate"} 1.0' in server.sessions.metrics.text().decode()
    assert "actions" in first and "at most 0.1 requests a second" in second["error"]["message"]


def test_a_stale_answer_begins_with_the_action_of_now():
    policy = WaitingPolicy()
    with served(policy) as server, Robot(server) as robot:
        robot.ask(time_s=0.0)
        policy.go.clear()
        answer = robot.ask(time_s=0.1, deadline_s=0.02)
    assert answer["stale"] and answer["reason"] == "deadline" and answer["valid_actions"] == 3
    assert len(answer["actions"]) == 4 and answer["start_s"] == pytest.approx(0.1)
    assert answer["actions"][3].tolist() == [0.0, 0.0, 4.0]  # no motion, and the gripper as it was


def test_ready_only_after_the_warm_up_while_robots_may_connect_before():
    policy = WaitingPolicy()
    policy.go.clear()
    with served(policy, started=False) as server:
        thread = threading.Thread(target=server.start, args=(toy_observation(),))
        thread.start()
        with Robot(server) as robot:
            assert robot.metadata["action_steps"] == 4
            assert get(server, "/healthz") == (503, "warming up\n")
            threading.Timer(0.1, policy.go.set).start()
            assert robot.ask()["actions"].shape == (4, 3)
        thread.join()
        assert get(server, "/healthz") == (200, "OK\n")
        server.drain(0.0)


def test_the_pages_say_what_is_wanted_and_what_happened():
    with served(keys={"state/point": "position"}) as server, Robot(server) as robot:
        robot.send({"position": np.zeros(2), "state/goal": np.zeros(2)})
        robot.send({})
        spec = json.loads(get(server, "/spec")[1])
        status, metrics = get(server, "/metrics")
        assert get(server, "/")[0] == 426 and get(server, "/healthz")[0] == 200
    assert spec["observation"]["position"] == {
        "shape": [2], "dtype": "float32", "elements": ["x", "y"], "unit": "m"}  # fmt: skip
    assert spec["actions"]["units"] == ["0.1 m", "0.1 m", "closed"] and spec["control_hz"] == 10.0
    assert status == 200
    values = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
    assert float(values["embodied_request_seconds_count"]) == 1
    assert float(values["embodied_sessions"]) == 1
    assert float(values['embodied_dropped_requests_total{reason="refused"}']) == 1


def test_a_request_that_its_session_refuses_is_counted_once():
    with served() as server, Robot(server) as robot:
        robot.ask(time_s=5.0)
        assert "order of time" in robot.ask(time_s=1.0)["error"]["message"]
        lines = get(server, "/metrics")[1].splitlines()
    assert [line for line in lines if line.startswith("embodied_dropped_requests_total")] == [
        'embodied_dropped_requests_total{reason="refused"} 1.0'
    ]


def test_without_the_key_there_is_health_alone():
    with served(api_key="secret") as server:
        for words in ({}, {"additional_headers": {"Authorization": "Api-Key wrong"}}):
            with pytest.raises(InvalidStatus, match="HTTP 401") as refused:
                Robot(server, **words)
            assert b"a header 'Authorization: Api-Key ...'" in refused.value.response.body
        said = "found one that turns us away: a header 'Authorization: Api-Key .*' with the right key .*\\(HTTP 401\\)"
        with pytest.raises(PolicyServerError, match=said):
            PolicyClient(server.address, api_key="secre")
        assert get(server, "/healthz")[0] == 200
        assert get(server, "/spec")[0] == get(server, "/metrics")[0] == 401
        assert get(server, "/spec", Authorization="Api-Key secret")[0] == 200
        client = PolicyClient(server.address, api_key="secret")
        assert client.infer(message())["actions"].shape == (4, 3)
        client.close()


def test_a_key_beyond_ascii_is_a_wrong_one_or_the_right_one():
    head = b"GET /spec HTTP/1.1\r\nHost: robot\r\nAuthorization: Api-Key "
    with served(api_key="schl\u00fcssel") as server:
        for key, status in ((b"schl\xfcssel", b"401"), (b"\xff\xfe", b"401"), (b"schl\xc3\xbcssel", b"200")):
            with socket.create_connection(("127.0.0.1", int(server.address.rpartition(":")[2])), timeout=10) as peer:
                peer.sendall(head + key + b"\r\n\r\n")
                assert peer.recv(4096).split()[1] == status


def test_more_connections_than_allowed_are_turned_away_and_the_others_go_on():
    with served(most_connections=2) as server, Robot(server) as robot, Robot(server):
        with pytest.raises((OSError, InvalidMessage, ConnectionClosed)):
            Robot(server, open_timeout=2)
        assert 'reason="connections_full"} 1.0' in server.sessions.metrics.text().decode()
        assert robot.ask()["actions"].shape == (4, 3)


def test_a_frame_above_the_limit_ends_its_connection_alone():
    with served(largest_frame=10_000) as server, Robot(server) as robot, Robot(server) as other:
        with pytest.raises(ConnectionClosed, match="1009"):
            robot.ask(padding=b"\0" * 20_000)
        assert other.ask()["actions"].shape == (4, 3)
        assert 'reason="frame_too_large"} 1.0' in get(server, "/metrics")[1]


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"to listen on 127.0.0.1, port {port}; found Address already in use"):
            PolicyServer(
                TellingPolicy(),
                ObservationReader(TellingPolicy().spec),
                SessionSettings(),
                ListeningSettings(port=port),
            )


def test_a_request_that_is_being_computed_at_the_end_is_answered():
    policy = WaitingPolicy()
    with served(policy, started=False) as server:
        server.start(toy_observation())
        with Robot(server) as robot:
            policy.go.clear()
            policy.begun.clear()
            robot.socket.send(msgpack.packb(message(), default=as_message))
            assert policy.begun.wait(10)
            draining = threading.Thread(target=server.drain, args=(0.0,))
            draining.start()
            threading.Timer(0.3, policy.go.set).start()
            assert robot.receive()["actions"].shape == (4, 3)
            with pytest.raises(ConnectionClosed, match="1001"):
                robot.receive()
            draining.join()


def test_a_server_that_begins_to_drain_says_so_and_goes_on_for_those_who_are_here():
    with served() as server, Robot(server) as robot:
        server.begin_drain(5.0)
        assert get(server, "/healthz") == (503, "draining\n")
        with pytest.raises(InvalidStatus, match="HTTP 503"):
            Robot(server)
        assert robot.ask()["actions"].shape == (4, 3)


def test_a_drained_server_answers_what_it_has_and_lets_nobody_in():
    policy = WaitingPolicy()
    with served(policy, started=False) as server:
        server.start(toy_observation())
        with Robot(server) as robot:
            robot.ask()
            draining = threading.Thread(target=server.drain, args=(3.0,))
            draining.start()
            time.sleep(0.1)
            assert get(server, "/healthz") == (503, "draining\n")
            with pytest.raises(InvalidStatus, match="HTTP 503"):
                Robot(server)
            assert robot.ask()["actions"][0, 1] == 1
            with pytest.raises(ConnectionClosed, match="1001"):
                robot.receive()
            draining.join()
        with pytest.raises(OSError):
            socket.create_connection(server._server._server.socket.getsockname(), timeout=1)
