"""openpi's own client, unmodified, in an environment of its own: its numpy is below 2, ours is not."""

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from test_policy_server import served
from toy_policies import SDP, toy_policy

from embodied.policies.seeded_noise import mixed_seed
from embodied.session import Session
from embodied.types import Observation

ENVIRONMENT = "EMBODIED_OPENPI_VENV"  # a virtual environment with openpi-client, or where to make one
PACKAGES = ("openpi-client==0.1.2", "typing_extensions", "numpy<2")
TOOLS = Path(__file__).parent.parent / "tools"

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def openpi_python():
    folder = os.environ.get(ENVIRONMENT)
    if not folder:
        pytest.skip(f"{ENVIRONMENT} does not name a virtual environment for openpi's client (it is made if need be)")
    python = Path(folder) / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


@pytest.fixture
def make_robot(openpi_python, monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    from openpi_episodes import OpenpiRobot

    return lambda server, key: OpenpiRobot(openpi_python, urlsplit(server.address).port, key)


def driven(robot, requests, dt_s):
    """Actions of a point that goes where it is sent, one request every four steps."""
    robot.reset()
    point, goal, executed = np.zeros(2, np.float32), np.array([0.5, -0.5], np.float32), []
    for step in range(4 * requests):
        observation = {"state/point": point, "state/goal": goal, "prompt": "reach", "time_s": step * dt_s}
        answer = robot.ask(observation)
        assert not answer["stale"]
        executed.append(np.asarray(answer["actions"], np.float32))
        point = (point + 0.1 * np.clip(executed[-1][:2], -1, 1)).astype(np.float32)
    return executed


def in_this_process(policy, requests):
    session, dt_s = Session(policy), policy.spec.dt_s
    session.reset(mixed_seed(0, 1))
    point, goal, executed = np.zeros(2, np.float32), np.array([0.5, -0.5], np.float32), []
    for request in range(requests):
        chunk = session.act(Observation({"point": point, "goal": goal}, time_s=4 * request * dt_s))
        for action in chunk.actions:
            executed.append(action)
            point = (point + 0.1 * np.clip(action[:2], -1, 1)).astype(np.float32)
    return executed


def test_an_unmodified_client_and_broker_drive_a_robot_as_a_session_in_this_process_does(make_robot):
    policy = toy_policy({**SDP, "history": 1})
    with served(policy, text=True, api_key="secret") as server:
        robot = make_robot(server, "secret")
        assert robot.greeting["numpy"].startswith("1.") and robot.greeting["action_steps"] == 4
        executed = driven(robot, 12, policy.spec.dt_s)
        refused = robot.ask({"state/point": np.zeros(5, np.float32)})
        after = robot.ask({"state/point": np.zeros(2, np.float32), "state/goal": np.zeros(2, np.float32)})
        robot.close()
    assert np.array_equal(executed, in_this_process(policy, 12))
    assert "'state/point' as 2 numbers" in refused["error"]
    assert after["server_timing"]["prev_total_ms"] > 0 and len(after["actions"]) == 3
