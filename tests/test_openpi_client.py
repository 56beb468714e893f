"""openpi's own client, unmodified, in an environment of its own: its numpy is below 2, ours is not."""

import json
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
ROBOT = Path(__file__).with_name("openpi_robot.py")

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


def drive(python, server, requests, key=""):
    command = [str(python), str(ROBOT), str(urlsplit(server.address).port), str(requests), key]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


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


def test_an_unmodified_client_and_broker_drive_a_robot_as_a_session_in_this_process_does(openpi_python):
    policy = toy_policy({**SDP, "history": 1})
    with served(policy, text=True, api_key="secret") as server:
        seen = drive(openpi_python, server, 12, "secret")
    assert seen["numpy"].startswith("1.") and seen["metadata"]["action_steps"] == 4
    assert np.array_equal(np.asarray(seen["executed"], np.float32), in_this_process(policy, 12))
    assert "'state/point' as 2 numbers" in seen["refused"] and seen["answered_after_the_refusal"] == 4
    assert seen["timing"]["server_timing"]["prev_total_ms"] > 0 and seen["stale"] == 0
