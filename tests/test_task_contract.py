"""What every task promises, checked for each one in the catalogue and for a Gymnasium environment brought in."""

from __future__ import annotations

from importlib import resources

import gymnasium
import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf

from embodied.action_groups import check_groups
from embodied.catalog import EXPERTS, TASKS, make_expert, make_task, names
from embodied.errors import UserError
from embodied.protocols import Expert, Task
from embodied.pusht_board import GOAL_POSE
from embodied.sim.gymnasium_adapter import from_gymnasium
from embodied.types import TaskSpec

PENDULUM = "gymnasium/pendulum"
# Without an expert of their own, and too hard for random actions: tests of their own show their success.
BEYOND_RANDOM_ACTIONS = ("adroit/door", "adroit/hammer", "adroit/pen", "adroit/relocate")
NAMED_PENDULUM = "gymnasium/Pendulum-v1"  # the same through conf/task/gymnasium.yaml
# Of Meta-World's fifty: one object, two of them, and one without rotation that the package's reset shows misplaced.
QUICK_METAWORLD = ("metaworld/reach-v3", "metaworld/hammer-v3", "metaworld/window-open-v3")
STEPS = 12


def is_heavy(name: str) -> bool:
    return name.startswith("metaworld/") and name not in QUICK_METAWORLD


SINGLE = [name for name in names(TASKS) if not name.endswith("/*")]
CATALOGUE = [pytest.param(name, marks=pytest.mark.heavy) if is_heavy(name) else name for name in SINGLE]


def load_config(option: str) -> DictConfig:
    config = OmegaConf.load(str(resources.files("embodied.conf") / "task" / f"{option}.yaml"))
    assert isinstance(config, DictConfig)
    return config


def build(name: str) -> Task:
    if name == PENDULUM:
        env = gymnasium.make("Pendulum-v1", max_episode_steps=None)
        return from_gymnasium(
            env,
            task=PENDULUM,
            control_hz=20,
            horizon=60,
            success=lambda observation, reward, info: observation[0] > 0,
        )
    config = load_config("gymnasium" if name == NAMED_PENDULUM else name)
    if name == NAMED_PENDULUM:
        config.update(id="Pendulum-v1", control_hz=20, success_reward=-1.0)
    assert config.name == name
    return make_task(OmegaConf.to_container(config, resolve=True))


@pytest.fixture(scope="module", params=[*CATALOGUE, PENDULUM, NAMED_PENDULUM])
def task(request):
    task = build(request.param)
    yield task
    task.close()


@pytest.fixture
def expert(task):
    """The task's expert; None for a task without one."""
    return make_expert(task) if task.spec.task in names(EXPERTS) else None


def bring_near_success(task: Task, start_id: int) -> None:
    """Reset to a start; where random actions never succeed and no expert is, to a state that they leave solved."""
    if task.spec.task.startswith("pusht/"):
        task.reset_to(np.array([50.0, 50.0, *GOAL_POSE]))  # type: ignore[attr-defined]
    else:
        task.reset(start_id)


def fixed_actions(task: Task, seed: int = 0, count: int = STEPS) -> np.ndarray:
    spec = task.spec.action
    return np.random.default_rng(seed).uniform(spec.low, spec.high, (count, spec.size)).astype(np.float32)


def numbers(observation) -> list[np.ndarray]:
    return [*observation.state.values(), *observation.images.values(), np.float64(observation.time_s)]


def roll(task: Task, start_id: int, actions: np.ndarray) -> list[np.ndarray]:
    """Everything that an episode shows, in one list."""
    shown = numbers(task.reset(start_id))
    for action in actions:
        step = task.step(action)
        shown += [*numbers(step.observation), np.float64(step.reward), np.bool_(step.info["success"])]
        shown.append(task.physics_state())
    return shown


def equal(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def assert_follows_spec(spec: TaskSpec, observation) -> None:
    assert list(observation.state) == [state.name for state in spec.state]
    assert list(observation.images) == [camera.name for camera in spec.cameras]
    for state in spec.state:
        assert observation.state[state.name].shape == (state.size,)
        assert observation.state[state.name].dtype == np.float32
        assert np.isfinite(observation.state[state.name]).all()
    for camera in spec.cameras:
        assert observation.images[camera.name].shape == (camera.height, camera.width, 3)
        assert observation.images[camera.name].dtype == np.uint8


def test_is_a_task_whose_spec_has_names_and_units(task):
    assert isinstance(task, Task)
    spec = task.spec
    assert TaskSpec.from_json(spec.to_json()) == spec
    for state in spec.state:
        assert state.unit and all(state.elements) and len(set(state.elements)) == state.size
    action = spec.action
    assert len(action.units) == len(action.low) == len(action.high) == len(action.binary) == action.size > 0
    assert all(action.units) and len(set(action.elements)) == action.size
    assert np.all(np.array(action.low) < np.array(action.high))
    check_groups(spec)
    turned = [group.kind for group in action.groups or ()].count("rotation")
    assert (turned == 0) if action.rotation == "none" else (action.groups is None or turned > 0)
    assert spec.horizon > 0 and spec.control_hz > 0


def test_observations_follow_the_spec(task):
    observation = task.reset(0)
    assert_follows_spec(task.spec, observation)
    assert observation.time_s == 0.0
    for index, action in enumerate(fixed_actions(task, count=3)):
        step = task.step(action)
        assert_follows_spec(task.spec, step.observation)
        assert step.observation.time_s == pytest.approx((index + 1) * task.spec.dt_s)


def test_observations_are_not_overwritten_by_later_steps(task):
    observation = task.reset(1)
    before = [array.copy() for array in numbers(observation)]
    for action in fixed_actions(task, count=3):
        task.step(action)
    task.reset(2)
    assert equal(numbers(observation), before)


def test_the_newest_observation_can_be_asked_for_again(task):
    first = task.reset(1)
    assert equal(numbers(task.observation()), numbers(first))
    newest = task.step(fixed_actions(task)[0]).observation
    assert equal(numbers(task.observation()), numbers(newest)) and not equal(numbers(newest), numbers(first))


def test_the_same_start_gives_the_same_episode_whatever_came_before(task):
    first = roll(task, 7, fixed_actions(task))
    assert equal(roll(task, 7, fixed_actions(task)), first)
    roll(task, 8, fixed_actions(task, seed=1, count=5))
    np.random.seed(12345)
    np.random.random(3)
    assert equal(roll(task, 7, fixed_actions(task)), first)


def test_the_same_start_is_the_same_in_another_instance(task):
    other = build(task.spec.task)
    try:
        assert equal(roll(other, 7, fixed_actions(other)), roll(task, 7, fixed_actions(task)))
    finally:
        other.close()


def test_different_starts_differ(task):
    firsts = [np.concatenate(list(task.reset(start_id).state.values())) for start_id in range(4)]
    assert all(not np.array_equal(firsts[a], firsts[b]) for a in range(4) for b in range(a))


def test_the_global_random_state_is_left_alone(task):
    np.random.seed(3)
    before = np.random.get_state()
    roll(task, 0, fixed_actions(task, count=2))
    after = np.random.get_state()
    assert before[0] == after[0] and np.array_equal(before[1], after[1]) and before[2:] == after[2:]


def test_runs_to_its_horizon_and_no_further(task):
    task.reset(0)
    still = np.zeros(task.spec.action.size, np.float32)
    steps = [task.step(still) for _ in range(task.spec.horizon)]
    assert [step.truncated for step in steps] == [False] * (task.spec.horizon - 1) + [True]
    assert not any(step.terminated for step in steps)
    with pytest.raises(UserError, match=r"expected reset .* after .*; call task\.reset"):
        task.step(still)
    task.reset(0)
    assert not task.step(still).truncated


def succeeds(task: Task, expert: Expert | None, start_id: int) -> bool:
    """Run an episode, with the expert or with random actions, until some steps after its first success."""
    bring_near_success(task, start_id)
    ever, since = False, 0
    for action in fixed_actions(task, count=task.spec.horizon):
        info = task.step(action if expert is None else expert.act(expert.infer_memory())[0]).info
        ever |= info["success"]
        since += ever
        assert info["success_ever"] is ever
        if since == 10:
            break
    return ever


def test_success_ever_remembers_success(task, expert):
    ever = False
    for start_id in range(5):  # few experts succeed from every start
        ever = ever or succeeds(task, expert, start_id)
    assert ever or task.spec.task in BEYOND_RANDOM_ACTIONS, "one of these starts is expected to succeed"
    task.reset(1)
    info = task.step(np.zeros(task.spec.action.size)).info
    assert info["success_ever"] is info["success"], "a reset is expected to forget"


def test_actions_are_clipped_to_the_bounds(task):
    spec = task.spec.action
    shown = []
    for factor in (1.0, 7.0):
        task.reset(0)
        shown.append(numbers(task.step(np.array(spec.high) * factor).observation))
    assert equal(*shown)


@pytest.mark.parametrize("wrong", ["short", "batched", "nan", "infinite"])
def test_wrong_actions_are_refused_and_change_nothing(task, wrong):
    size = task.spec.action.size
    action = np.zeros({"short": (size - 1,), "batched": (1, size)}.get(wrong, (size,)))
    if wrong in ("nan", "infinite"):
        action[0] = np.nan if wrong == "nan" else np.inf
    task.reset(0)
    before = task.physics_state()
    with pytest.raises(UserError, match=f"an action of {size} values" if wrong in ("short", "batched") else "finite"):
        task.step(action)
    assert np.array_equal(task.physics_state(), before)


def test_recorded_physics_states_give_the_scene_again(task):
    task.reset(5)
    scene = task.scene()
    states, live = [task.physics_state()], [tool_position(task)]
    for action in fixed_actions(task):
        task.step(action)
        states.append(task.physics_state())
        live.append(tool_position(task))
    assert states[0].dtype == np.float64
    poses = task.body_poses(np.array(states))
    assert poses.shape == (len(states), len(scene.bodies), 7) and poses.dtype == np.float32
    if not scene.bodies:
        return
    assert all(geom.body < len(scene.bodies) for geom in scene.geoms)
    np.testing.assert_allclose(np.linalg.norm(poses[..., 3:], axis=-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(poses[:, scene.tool, :3], live, atol=1e-6)
    assert np.ptp(poses[:, scene.tool, :3], axis=0).max() > 1e-3, "the tool is expected to move"
    task.reset(5)
    assert np.array_equal(task.body_poses(np.array(states)), poses)


def tool_position(task: Task) -> np.ndarray:
    """The live end effector; a task with bodies has a state vector of that name."""
    return task.eef_position() if hasattr(task, "eef_position") else np.zeros(3)


def test_the_expert_acts_within_bounds_on_the_state_alone(task, expert):
    if expert is None:
        return
    spec = task.spec.action
    task.reset(3)
    labels = []
    for action in fixed_actions(task):
        label, _ = expert.act(expert.infer_memory())
        assert label.shape == (spec.size,) and label.dtype == np.float32
        assert np.all(label >= spec.low) and np.all(label <= spec.high)
        assert np.array_equal(expert.act(expert.infer_memory())[0], label), "asking must not change the answer"
        labels.append(label)
        task.step(action)
    task.reset(4)  # somewhere else, and then the same states again with an expert that has seen other things
    for _ in range(3):
        task.step(expert.act(expert.infer_memory())[0])
    task.reset(3)
    for action, label in zip(fixed_actions(task), labels, strict=True):
        assert np.array_equal(expert.act(expert.infer_memory())[0], label)
        task.step(action)
