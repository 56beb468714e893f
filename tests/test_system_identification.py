"""Dynamics are found again from logs of a world that has them."""

import dataclasses

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from embodied.catalog import make_expert
from embodied.errors import UserError
from embodied.sim.system_identification import LoggedEpisode, identify, log_episode, tracking_error
from embodied.sim.tabletop_model import Dynamics
from embodied.sim.tabletop_pick import PickCanTask

STEPS = 30
OTHER = Dynamics(stiffness=(0.6,), damping=(1.3,), delay_steps=2)


def logged(task, starts=(0,)):
    """Where the expert's own actions lead, open loop."""
    logs = []
    for start in starts:
        expert, actions = make_expert(task), []
        task.reset(start)
        for _ in range(STEPS):
            actions.append(expert.act(None)[0])
            task.step(actions[-1])
        logs.append(log_episode(task, start, np.array(actions)))
    return logs


@pytest.fixture(scope="module")
def task():
    return PickCanTask()


@pytest.fixture(scope="module")
def logs():
    other = PickCanTask()
    other.set_dynamics(OTHER)
    return logged(other)


def test_a_replay_follows_the_episode_that_was_logged(task):
    episode = logged(task)[0]
    error = tracking_error(task, Dynamics(), [episode])
    assert error.position_m == 0 and error.rotation_rad == pytest.approx(0, abs=1e-7)


def test_errors_are_of_the_pose_in_metres_and_radians(task):
    episode = logged(task)[0]
    moved = dataclasses.replace(
        episode,
        position=episode.position + np.array([0.003, 0.0, -0.004]),
        quaternion=(Rotation.from_rotvec([0, 0, 0.2]) * Rotation.from_quat(episode.quaternion)).as_quat(),
    )
    error = tracking_error(task, Dynamics(), [moved])
    assert error.position_m == pytest.approx(0.005) and error.rotation_rad == pytest.approx(0.2)
    # The paper's own measure of an angle is half of it.
    a, b = np.eye(3), Rotation.from_rotvec([0, 0, 0.2]).as_matrix()
    assert 2 * np.arcsin(np.linalg.norm(a - b) / (2 * np.sqrt(2))) == pytest.approx(0.2)


def test_delay_and_the_servos_response_are_found_again(task, logs):
    counted = []
    found = identify(task, logs, counted.append, delays=(1, 2))
    assert found.dynamics.delay_steps == 2
    # A servo's response to slow targets shows the ratio of the two.
    ratio = found.dynamics.damping[0] / found.dynamics.stiffness[0]
    assert ratio == pytest.approx(1.3 / 0.6, rel=0.1)
    assert found.after.position_m < 0.05 * found.before.position_m and found.before.position_m > 0.005
    assert counted == list(range(1, found.replays + 1))
    assert task.dynamics == Dynamics(), "the task's own dynamics are expected to be put back"


def test_where_nothing_differs_nothing_is_changed(task):
    found = identify(task, logged(task), delays=(0,))
    assert found.before.position_m == 0 and found.after.position_m < 1e-6
    assert found.dynamics.stiffness[0] == pytest.approx(1, abs=1e-3) and found.dynamics.friction == pytest.approx(1)


def test_without_logs_there_is_nothing_to_fit(task):
    with pytest.raises(UserError, match="at least one logged episode; found none"):
        identify(task, [])


@pytest.mark.parametrize(
    ("actions", "positions", "quaternions"),
    [((0, 7), (0, 3), (0, 4)), ((3, 7), (2, 3), (3, 4)), ((3, 7), (3, 3), (3, 3))],
)
def test_logs_of_other_shapes_are_named(actions, positions, quaternions):
    with pytest.raises(UserError, match="a position .* and a quaternion .* after each of at least one action; found"):
        LoggedEpisode(0, np.zeros(actions), np.zeros(positions), np.zeros(quaternions))
