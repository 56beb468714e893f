"""Hostile frames and hostile peers: each refused with a reason, nobody else disturbed, nothing left behind."""

import threading
import time

import numpy as np
import pytest
from test_policy_server import Robot, served
from toy_policies import SDP, toy_policy

from embodied.benchmarks.hostile_frames import KINDS, hostile_frame
from embodied.benchmarks.serving_fuzz import Witness, fuzz, hostile_sockets

MESSAGE = {"state/point": np.zeros(2, np.float32), "state/goal": np.ones(2, np.float32), "prompt": "go"}


@pytest.fixture(scope="module")
def server():
    policy = toy_policy({**SDP, "history": 1})
    timeouts = {"handshake_timeout_s": 0.5, "idle_timeout_s": 1.0, "send_timeout_s": 0.5}
    pings = {"ping_interval_s": 0.4, "ping_timeout_s": 0.4}
    with served(policy, rate_limit=1e9, largest_frame=2**16, **timeouts, **pings) as running:
        yield running


def settled_threads(wanted):
    """Wait for the threads of closed connections to end."""
    deadline_s = time.monotonic() + 10
    while threading.active_count() > wanted and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return threading.active_count()


def test_every_kind_is_made_and_the_same_seed_makes_the_same_frames():
    made = [[hostile_frame(MESSAGE, np.random.default_rng(seed)) for _ in range(1)] for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]
    generator = np.random.default_rng(0)
    assert {hostile_frame(MESSAGE, generator)[0] for _ in range(500)} == set(KINDS)


def test_hostile_frames_are_refused_with_a_reason_and_a_robot_beside_them_notices_nothing(server):
    before = threading.active_count()
    with Witness(server.address, MESSAGE, 20) as witness:
        counts = fuzz(server.address, MESSAGE, 1500, seed=0)
    assert counts.total("silent") == 0 and counts.without_reason == 0
    assert counts.total("refused") > 1000
    harmless = {"bits flipped", "wrong value", "wrong words", "no array"}
    assert all(counts.by_kind[kind]["answered"] == 0 for kind in set(KINDS) - harmless)
    assert witness.failure is None and witness.rounds >= 1 and witness.differing == 0
    assert settled_threads(before) <= before
    assert server.sessions.open_sessions == 0


def test_peers_that_break_the_rules_below_the_frames_do_not_stay(server):
    before = threading.active_count()
    with Witness(server.address, MESSAGE, 20) as witness:
        lived_s = hostile_sockets(server.address, MESSAGE, timeout_s=10.0)
    assert all(seconds is not None for seconds in lived_s.values()), lived_s
    assert witness.failure is None and witness.differing == 0
    assert settled_threads(before) <= before
    with Robot(server) as robot:
        assert robot.send(MESSAGE)["actions"].shape == (4, 3)
