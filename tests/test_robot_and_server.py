"""The thin client against the real server: bit by bit what the evaluation executes, in every mode."""

import contextlib
import dataclasses

import numpy as np
import pytest
from delayed_link import DelayedLink
from serving_policies import toy_observation
from test_robot_controller import after, executed
from toy_policies import DIFFUSION, SDP, toy_policy
from toy_specs import ReachTask
from virtual_link import drive

from embodied.client import PolicyClient
from embodied.evaluation.episodes import run_episode
from embodied.robot.controller import RobotController
from embodied.robot.messages import ServedPolicy
from embodied.robot.server_link import ServerLink
from embodied.serving.observation_reader import ObservationReader
from embodied.serving.openpi_server import ListeningSettings
from embodied.serving.policy_server import PolicyServer
from embodied.serving.sessions import SessionSettings

OVERLAPPED = {**SDP, "largest_delay": 2, "inference_delay": 2, "initialization": "denoise"}
CHUNKING = {**DIFFUSION, "path": "flow", "sampler": "rtc", "inference_delay": 2}
KEYS = {"state/point": "observation/point", "instruction": "say"}


@contextlib.contextmanager
def linked(policy, keys=None):
    server = PolicyServer(
        policy, ObservationReader(policy.spec, keys), SessionSettings(deadline_periods=50), ListeningSettings(port=0)
    )
    server.start(toy_observation())
    link = ServerLink(lambda: PolicyClient(server.address, answer_timeout_s=20.0))
    try:
        yield link
    finally:
        link.close()
        server.drain(0.1)


@pytest.mark.parametrize(
    ("settings", "taken", "keys"),
    [(SDP, 1, None), (SDP, 0, KEYS), (OVERLAPPED, 2, None), (OVERLAPPED, 3, KEYS), (CHUNKING, 2, None)],
    ids=["synchronous", "at once", "prefix", "prefix, late", "real-time chunking"],
)
def test_a_robot_executes_a_served_policy_as_the_evaluation_executes_it(settings, taken, keys):
    policy = toy_policy(settings)
    with linked(policy, keys) as real:
        link = DelayedLink(real, after(taken))
        controller = RobotController(ServedPolicy.from_metadata(real.metadata), link)
        episodes = []
        for start in (3, 4):
            link.settle()
            episodes.append(executed(drive(ReachTask(), controller, link, start)))
    for start, found in zip((3, 4), episodes, strict=True):
        expected = run_episode(ReachTask(), policy, start, start, delay_steps=taken).episode.executed
        assert np.array_equal(found, expected), "in the second episode too: the server was reset"
    assert controller.mode == ("overlapped" if policy.inference_delay else "synchronous")
    assert abs(real.offset.offset_s) <= real.offset.error_s, "both clocks are the monotonic one of this machine"
    assert all(reply.answer["stale"] is False for reply in link.replies)


@pytest.mark.parametrize("history", [1, 2, 3])
def test_an_observation_that_the_server_refuses_stops_the_robot_and_the_next_one_moves_it(history):
    policy = toy_policy({**SDP, "history": history})
    with linked(policy) as real:
        link = DelayedLink(real, after(0))
        controller = RobotController(ServedPolicy.from_metadata(real.metadata), link)
        task = ReachTask()
        observation, steps = task.reset(1), []
        controller.reset(1)
        for t in range(12):
            link.tick(observation.time_s)
            if t == 4:
                observation = dataclasses.replace(observation, state={**observation.state, "point": np.full(2, np.nan)})
            steps.append(controller.step(observation))
            observation = task.step(steps[-1].action).observation
    assert "".join(step.source[0] for step in steps[:7]) == "ccccfcc", "it is in no history that the next one brings"
    assert "finite values" in steps[4].fault and "nan" in steps[4].fault and controller.counts.faults == 1
