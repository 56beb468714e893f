"""Tasks as Gymnasium environments and back again."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from embodied.errors import UserError
from embodied.protocols import Task
from embodied.sim.gymnasium_adapter import as_gymnasium, from_gymnasium
from embodied.sim.lift import LiftTask


@pytest.fixture(scope="module")
def lift_env():
    env = as_gymnasium(LiftTask())
    yield env
    env.close()


def pendulum(**settings) -> Task:
    settings = {"task": "test/pendulum", "control_hz": 20, "horizon": 40, "success": "upright"} | settings
    return from_gymnasium(gymnasium.make("Pendulum-v1", max_episode_steps=None), **settings)


class Toy(gymnasium.Env):
    """A camera, a state and a discrete thing, as asked for."""

    def __init__(self, observation_space=None, action_space=None):
        self.observation_space = observation_space or spaces.Dict(
            {
                "front": spaces.Box(0, 255, (8, 6, 3), np.uint8),
                "joints": spaces.Box(-1, 1, (2, 2), np.float64),
                "mask": spaces.Box(0, 255, (8, 6, 1), np.uint8),
            }
        )
        self.action_space = action_space or spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        done = bool(action[0] > 0.5)
        return self.observation_space.sample(), float(np.random.random()), done, False, {"won": done}


def test_lift_passes_gymnasiums_own_check(lift_env):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(lift_env, skip_render_check=True)  # it offers no render mode
    # A pose has no honest bound, so that the boxes are unbounded and the checker says so; nothing else may come up.
    assert all("infinity" in str(warning.message) for warning in caught), [str(w.message) for w in caught]


def test_a_seed_is_a_start_id(lift_env):
    observation, info = lift_env.reset(seed=11)
    assert info == {"start_id": 11}
    again, _ = lift_env.reset(seed=11)
    assert all(np.array_equal(observation[name], again[name]) for name in observation)
    assert all(lift_env.observation_space[name].contains(value) for name, value in observation.items())


def test_without_a_seed_the_environments_generator_chooses(lift_env):
    chosen = []
    for _ in range(2):
        lift_env.reset(seed=5)
        chosen.append([lift_env.reset()[1]["start_id"] for _ in range(2)])
    assert chosen[0] == chosen[1]
    assert len(set(chosen[0])) == 2


def test_steps_report_success(lift_env):
    lift_env.reset(seed=0)
    _, reward, terminated, truncated, info = lift_env.step(np.zeros(7, np.float32))
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert info == {"success": False, "success_ever": False}


def test_images_and_states_are_told_apart():
    task = from_gymnasium(Toy(), task="test/toy", control_hz=10, horizon=5, success="won", instruction="win")
    assert [(camera.name, camera.height, camera.width) for camera in task.spec.cameras] == [("front", 8, 6)]
    assert [(state.name, state.size) for state in task.spec.state] == [("joints", 4), ("mask", 48)]
    observation = task.reset(0)
    assert observation.images["front"].shape == (8, 6, 3) and observation.images["front"].dtype == np.uint8
    assert observation.state["joints"].shape == (4,) and observation.instruction == "win"


def test_a_single_image_is_a_camera():
    env = Toy(spaces.Box(0, 255, (8, 6, 3), np.uint8))
    task = from_gymnasium(env, task="test/toy", control_hz=10, horizon=5, success="won")
    assert [camera.name for camera in task.spec.cameras] == ["image"] and not task.spec.state
    assert task.reset(0).images["image"].shape == (8, 6, 3)


def test_a_named_success_signal_and_termination_pass_through():
    task = from_gymnasium(Toy(), task="test/toy", control_hz=10, horizon=5, success="won")
    task.reset(0)
    assert not task.step(np.array([0.0, 0.0])).info["success"]
    step = task.step(np.array([1.0, 0.0]))
    assert step.terminated and step.info["success"] and step.info["success_ever"]
    with pytest.raises(UserError, match="after an episode's end"):
        task.step(np.array([0.0, 0.0]))


def test_draws_from_the_global_state_are_addressed_too():
    rewards = []
    for _ in range(2):
        task = from_gymnasium(Toy(), task="test/toy", control_hz=10, horizon=5, success="won")
        task.reset(3)
        rewards.append([task.step(np.zeros(2)).reward for _ in range(3)])
        np.random.random(7)
    assert rewards[0] == rewards[1]
    assert len(set(rewards[0])) == 3


def test_there_and_back_again():
    env = as_gymnasium(pendulum(success=lambda observation, reward, info: observation[0] > 0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(env, skip_render_check=True)
    task = from_gymnasium(env, task="test/twice", control_hz=20, horizon=40, success="success")
    observation = task.reset(4)
    assert np.array_equal(
        observation.state["observation"],
        pendulum(success=lambda observation, reward, info: False).reset(4).state["observation"],
    )


def test_no_success_signal_is_refused():
    with pytest.raises(UserError, match=r"a success signal for test/pendulum; found none; name a key"):
        pendulum(success=None)


def test_a_success_key_that_never_comes_is_refused():
    task = pendulum(success="upright")
    task.reset(0)
    with pytest.raises(UserError, match=r"'upright' in the info of every step .*found keys \(none\)"):
        task.step(np.zeros(1))


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (lambda: Toy(spaces.Discrete(3)), "Box observations.*Discrete"),
        (lambda: Toy(spaces.Dict({"a": spaces.Discrete(3)})), "Box observations.*Discrete"),
        (lambda: Toy(action_space=spaces.Discrete(3)), "bounded Box of actions.*Discrete"),
        (lambda: Toy(action_space=spaces.Box(-np.inf, np.inf, (2,))), "bounded Box of actions"),
        (lambda: gymnasium.make("Pendulum-v1"), r"own limit of 200 steps; found 300"),
    ],
)
def test_environments_that_do_not_fit_are_refused(env, message):
    with pytest.raises(UserError, match=message):
        from_gymnasium(env(), task="test/toy", control_hz=10, horizon=300, success="won")
