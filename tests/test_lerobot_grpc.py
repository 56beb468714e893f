"""LeRobot's protocol over a real channel: episodes, observations and their refusals, and its own client."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from lerobot_client import INVALID, Client, refused, serving
from lerobot_pickles import TimedAction
from serving_policies import TellingPolicy, WaitingPolicy, toy_observation
from toy_evaluation import ExpertPolicy
from toy_specs import image_spec

from embodied.serving.lerobot_grpc import LeRobotServer, LeRobotSettings
from embodied.serving.lerobot_observation import resized
from embodied.serving.sessions import Sessions, SessionSettings


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


def test_a_policy_that_is_not_ready_or_fails_says_so():
    sessions = Sessions(TellingPolicy(), SessionSettings())
    server = LeRobotServer(sessions, LeRobotSettings(port=0))
    port = server.start()
    with Client(port) as client, refused(grpc.StatusCode.UNAVAILABLE, "a policy that is warmed up"):
        client.begin()
    server.stop()


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
