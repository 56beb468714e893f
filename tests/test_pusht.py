"""Push-T: gym-pusht's own starts, geometry and coverage, and the human demonstrations replayed in it."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import zarr
from pusht_data import human_demonstrations

from embodied import pusht_board
from embodied.errors import UserError
from embodied.sim import pusht
from embodied.sim.pusht import PushTKeypoints, PushTPixels, PushTState, import_gym_pusht

SOME_EPISODES = (0, 1, 50, 120, 205)  # of the human ones


@pytest.fixture(scope="module")
def task():
    task = PushTKeypoints()
    yield task
    task.close()


@pytest.fixture
def peer():
    return import_gym_pusht().PushTEnv()


@pytest.fixture(scope="module")
def human():
    """Recorded states [T 5], actions [T 2], images and episode ends."""
    group = zarr.open_group(human_demonstrations(), mode="r", zarr_format=2)
    return group["data/state"][:], group["data/action"][:], group["data/img"], group["meta/episode_ends"][:]


def random_states(count: int) -> np.ndarray:
    """The agent in a corner, beside the block."""
    generator = np.random.default_rng(0)
    return generator.uniform([20, 20, 200, 200, -4], [40, 40, 310, 310, 4], (count, 5))


def worst_error(task, human, episode: int) -> float:
    """Of agent and block position, px, when the recorded actions are replayed open-loop from the recorded start."""
    states, actions, _, ends = human
    first, end = ends[episode - 1] if episode else 0, ends[episode]
    task.reset_to(states[first])
    worst = 0.0
    for row in range(first, end - 1):
        task.step(actions[row])
        worst = max(worst, float(np.abs(task.physics_state()[:4] - states[row + 1, :4]).max()))
    return worst


def test_starts_are_those_of_gym_pusht(task, peer):
    for start_id in (0, 100000):
        expected, _ = peer.reset(seed=start_id)
        task.reset(start_id)
        found = task.physics_state()
        np.testing.assert_array_equal(found[:4], expected[:4])
        assert found[4] % (2 * np.pi) == expected[4]


def test_keypoints_and_coverage_are_those_of_gym_pusht(task):
    env = task._env
    seen = []
    for state in [*random_states(40), [0, 0, *pusht_board.GOAL_POSE]]:
        observation = task.reset_to(np.array(state))
        theirs = env.get_keypoints(env._block_shapes)
        np.testing.assert_allclose(pusht_board.keypoints(task.physics_state()[2:]), theirs, atol=1e-9)
        np.testing.assert_allclose(observation.state["block_keypoints"].reshape(8, 2), theirs, rtol=1e-6)
        seen.append(pusht_board.coverage(task.physics_state()[2:]))
        assert seen[-1] == pytest.approx(env._get_coverage(), abs=1e-9)
    assert seen[-1] == pytest.approx(1.0) and min(seen) < 0.3 < max(seen[:-1]) < 0.95


def test_reward_is_coverage_over_what_success_needs(task):
    x, y, angle = pusht_board.GOAL_POSE
    for aside_px, solved in ((0.0, True), (1.0, True), (6.0, False)):
        task.reset_to(np.array([30.0, 30.0, x + aside_px, y, angle]))
        step = task.step(np.array([30.0, 30.0]))
        covered = step.info["coverage"]
        assert covered == pytest.approx(pusht_board.coverage(task.physics_state()[2:]), abs=1e-9)
        assert step.reward == pytest.approx(min(covered / 0.95, 1.0))
        assert step.info["success"] is (covered >= 0.95) is solved and not step.terminated


def test_a_given_state_is_taken_as_it_is(task):
    """Other than gym-pusht's own option, which turns the block about its centre of mass after placing it."""
    states = random_states(5)
    for state in states:
        task.reset_to(state)
        np.testing.assert_allclose(task.physics_state(), state, atol=1e-6)
    peer = import_gym_pusht().PushTEnv()
    moved = [np.abs(peer.reset(options={"reset_to_state": state})[0][2:4] - state[2:4]).max() for state in states]
    assert max(moved) > 20


def test_the_agent_goes_to_its_target(task):
    task.reset_to(np.array([100.0, 400.0, 256.0, 150.0, 0.0]))
    for _ in range(12):
        step = task.step(np.array([200.0, 420.0]))
    np.testing.assert_allclose(step.observation.state["agent_position"], [200, 420], atol=0.5)


def test_the_tasks_show_different_things_of_one_state():
    state = random_states(1)[0]
    shown = {}
    for made in (PushTState(), PushTKeypoints(), PushTPixels(cameras=["board"])):
        shown[made.name] = made.reset_to(state)
    np.testing.assert_array_equal(shown["pusht/state"].state["block_position"], np.float32(state[2:4]))
    assert 0 <= shown["pusht/state"].state["block_angle"][0] < 2 * np.pi
    assert list(shown["pusht/pixels"].state) == ["agent_position"]
    image = shown["pusht/pixels"].images["board"]
    assert image.shape == (96, 96, 3)
    column, row = (state[:2] / 512 * 96).astype(int)
    red, _, blue = image[row, column].astype(int)
    assert blue > red + 100, "the agent is blue"


@pytest.mark.parametrize("episode", SOME_EPISODES)
def test_human_demonstrations_replay_exactly(task, human, episode):
    assert worst_error(task, human, episode) < 1e-3


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_nearly_all_human_demonstrations_replay_exactly(task, human):
    """Contacts are chaotic: in two of 206 episodes a rounding grows to 0.0012 and 0.17 px."""
    errors = np.array([worst_error(task, human, episode) for episode in range(len(human[3]))])
    assert (errors < 1e-3).sum() >= 204 and errors.max() < 1.0


def test_images_are_those_of_the_human_demonstrations(human):
    states, _, images, _ = human
    task = PushTPixels(cameras=["board"])
    for row in (0, 100, 160):
        shown = task.reset_to(states[row]).images["board"]
        assert np.abs(shown.astype(float) - images[row]).mean() < 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": 0}, r"task\.horizon of at least 1; found 0"),
        ({"cameras": ["bord"]}, r"a camera of pusht/keypoints; found 'bord' in task\.cameras; did you mean 'board'"),
        ({"cameras": ["board"], "camera_size": 0}, r"task\.camera_size of at least 1; found 0"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        PushTKeypoints(**settings)


def test_wrong_starts_and_states_are_named(task):
    with pytest.raises(UserError, match="start id from 0"):
        task.reset(-1)
    for wrong in ([1.0, 2.0], [1.0, 2.0, np.nan, 4.0, 5.0]):
        with pytest.raises(UserError, match="5 finite values: agent x, agent y"):
            task.reset_to(np.array(wrong))


def test_without_gym_pusht_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gym_pusht.envs.pusht", None)
    pusht.import_gym_pusht.cache_clear()
    try:
        with pytest.raises(UserError, match=r"gym-pusht for the tasks .*; pip install 'embodied-policies\[tasks\]'"):
            PushTState()
    finally:
        pusht.import_gym_pusht.cache_clear()
