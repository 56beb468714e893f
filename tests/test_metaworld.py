"""Meta-World's tasks: their configurations, what their state vectors say, and the package's experts."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from embodied.catalog import TASKS, make_expert, make_task, names
from embodied.errors import UserError
from embodied.sim import metaworld_world
from embodied.sim.metaworld_bare import BareMetaworld
from embodied.sim.metaworld_world import SCALAR_LAST, MetaworldTask, environment_names, import_metaworld
from embodied.sim.opengl import available_backends

# Solved from each of the starts below: pushing, gripping, a hinge, a tool.
SOLVED = ("push-v3", "pick-place-v3", "door-open-v3", "hammer-v3")


@pytest.fixture
def tool():
    """tools/metaworld_configs.py, as a module."""
    path = Path(__file__).parents[1] / "tools" / "metaworld_configs.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def make():
    """Tasks by environment name, closed afterwards."""
    made = []

    def build(environment: str, **settings) -> MetaworldTask:
        made.append(MetaworldTask(environment=environment, **settings))
        return made[-1]

    yield build
    for task in made:
        task.close()


def test_every_environment_of_the_package_has_the_configuration_that_the_tool_writes(tool):
    folder = resources.files("embodied.conf") / "task" / "metaworld"
    written = {entry.name: entry.read_text() for entry in folder.iterdir() if entry.name.endswith(".yaml")}
    expected = {tool.file_name(name): tool.config_text(name) for name in environment_names()}
    assert written == expected and len(written) == 50


def test_the_tool_writes_them_again_and_removes_what_the_package_no_longer_has(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "FOLDER", tmp_path)
    (tmp_path / "gone-v2.yaml").write_text("name: metaworld/gone-v2\n")
    tool.main()
    assert sorted(path.stem for path in tmp_path.iterdir()) == environment_names()


def test_the_package_has_an_expert_for_every_environment():
    assert sorted(import_metaworld().policies.ENV_POLICY_MAP) == environment_names()


def test_the_order_of_every_quaternion_is_the_one_that_the_environments_code_has():
    """SciPy's `as_quat` gives x y z w; everything else in the package is MuJoCo's w x y z."""
    classes = import_metaworld().ALL_V3_ENVIRONMENTS
    scipys = {name for name, kind in classes.items() if "as_quat" in inspect.getsource(kind._get_quat_objects)}
    assert scipys == SCALAR_LAST


@pytest.mark.parametrize(("environment", "body"), [("pick-place-v3", "obj"), ("basketball-v3", "bsktball")])
def test_a_turned_object_has_the_quaternion_of_its_body(make, environment, body):
    task = make(environment)
    task.reset(0)
    first = task.model.jnt_qposadr[task.model.body(body).jntadr[0]]
    task.data.qpos[first + 3 : first + 7] = [0.9, 0.1, 0.3, -0.3]  # of length 1
    state = task.step(np.zeros(4)).observation.state
    spec = next(spec for spec in task.spec.state if spec.name == "object_quaternion")
    scalar_first = state["object_quaternion"][[spec.elements.index(letter) for letter in "wxyz"]]
    assert abs(scalar_first @ task.data.body(body).xquat) == pytest.approx(1.0, abs=1e-5)
    assert abs(scalar_first[1]) > 0.05, "the object is expected to lie turned"


def test_state_vectors_are_meta_worlds_own_by_name(make):
    task = make("hammer-v3")
    assert [(spec.name, spec.size, spec.unit) for spec in task.spec.state] == [
        ("eef_position", 3, "m"),
        ("gripper_opening", 1, "0.1 m"),
        ("object_1_position", 3, "m"),
        ("object_1_quaternion", 4, "quaternion wxyz"),
        ("object_2_position", 3, "m"),
        ("object_2_quaternion", 4, "quaternion wxyz"),
        ("goal_position", 3, "m"),
    ]
    state = task.reset(1).state
    np.testing.assert_allclose(state["object_1_position"], task.data.body("hammer").xpos, atol=1e-6)
    np.testing.assert_allclose(state["object_2_position"], task.data.body("nail_link").xpos, atol=1e-6)
    np.testing.assert_allclose(state["goal_position"], task.data.site("goal").xpos, atol=1e-6)


def test_the_goal_is_seen_and_differs_from_start_to_start(make):
    task = make("reach-v3")
    goals = [task.reset(start_id).state["goal_position"] for start_id in range(3)]
    assert all(np.linalg.norm(goals[a] - goals[b]) > 0.01 for a in range(3) for b in range(a))
    np.testing.assert_allclose(goals[2], task.model.site("goal").pos, atol=1e-6)


def test_steps_and_rewards_are_the_packages_own(make):
    task = make("hammer-v3")
    bare = BareMetaworld({"environment": "hammer-v3", "cameras": [], "camera_size": 96})
    task.reset(5)
    bare.reset(5)
    for action in np.random.default_rng(0).uniform(-1, 1, (20, 4)).astype(np.float32):
        step, ((vector, reward, _, _, info), images) = task.step(action), bare.step(action)
        shown = np.concatenate([step.observation.state[spec.name] for spec in task.spec.state])
        assert np.array_equal(shown, np.concatenate([vector[:18], vector[-3:]]).astype(np.float32))
        assert step.reward == reward and step.info["success"] == bool(info["success"]) and images == []
    bare.close()


def test_replays_show_the_goal_where_it_is(make):
    task = make("reach-v3")
    for start_id in range(2):
        goal_position = task.reset(start_id).state["goal_position"]
        scene = task.scene()
        goal = next(geom for geom in scene.geoms if geom.name == "goal")
        assert scene.bodies[goal.body] == "world"
        np.testing.assert_allclose(goal.position, goal_position, atol=1e-6)


@pytest.mark.parametrize("environment", ["drawer-open-v3", "window-close-v3", "lever-pull-v3"])
def test_objects_are_shown_where_they_stand_at_the_start(make, environment):
    """The package's own first observation is up to 20 cm off: it moves the object last, without its poses."""
    task = make(environment)
    before = task.reset(0).state["object_position"]
    after = task.step(np.zeros(4)).observation.state["object_position"]
    assert np.linalg.norm(after - before) < 0.005


def test_actions_move_the_hand_by_their_unit_and_work_the_fingers(make):
    task = make("reach-v3")
    first = task.reset(0).state
    for _ in range(10):
        state = task.step(np.array([0.0, 0.5, 0.0, 1.0])).observation.state
    for _ in range(10):
        state = task.step(np.array([0.0, 0.0, 0.0, 1.0])).observation.state
    moved = state["eef_position"] - first["eef_position"]
    np.testing.assert_allclose(moved, [0.0, 10 * 0.5 * 0.01, 0.0], atol=0.01)
    assert state["gripper_opening"][0] < first["gripper_opening"][0] - 0.3
    assert task.spec.action.units[:3] == ("0.01 m",) * 3
    assert task.spec.control_hz == 80.0


@pytest.mark.parametrize("environment", SOLVED)
def test_the_packages_expert_solves_its_task(environment):
    task = make_task({"name": f"metaworld/{environment}", "environment": environment})
    expert = make_expert(task)
    for start_id in range(2):
        task.reset(start_id)
        steps = (task.step(expert.act(None)[0]) for _ in range(task.spec.horizon))
        assert any(step.info["success"] for step in steps), start_id
    task.close()


def test_asking_the_expert_changes_nothing(make):
    task = make("door-open-v3")  # its policy writes into the observation that it is given
    observation, before = task.reset(0), task.physics_state()
    answers = [make_expert(task).act(None)[0] for _ in range(2)]
    assert np.array_equal(*answers) and np.array_equal(task.physics_state(), before)
    assert np.array_equal(task.observation().state["object_position"], observation.state["object_position"])


def test_cameras_show_the_scene(make):
    if not any(backend.works for backend in available_backends()):
        pytest.skip("needs OpenGL: apt-get install libegl1 libgl1-mesa-dri, or libosmesa6")
    task = make("reach-v3", cameras=["corner2", "gripperPOV"], camera_size=32)
    images = task.reset(0).images
    assert [image.shape for image in images.values()] == [(32, 32, 3)] * 2
    assert all(image.std() > 10 for image in images.values())
    later = [task.step(np.ones(4)) for _ in range(20)][-1].observation.images
    assert not np.array_equal(later["gripperPOV"], images["gripperPOV"])
    task.reset(1)
    again = task.reset(0).images
    assert all(np.array_equal(again[name], images[name]) for name in images)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"environment": "reech-v3"}, r"Meta-World environment; found 'reech-v3'; did you mean 'reach-v3'"),
        ({"horizon": 501}, r"task\.horizon from 1 to 500; found 501"),
        ({"horizon": 0}, r"task\.horizon from 1 to 500; found 0"),
        ({"cameras": ["corner9"]}, r"'corner9' in task\.cameras; did you mean 'corner"),
        ({"cameras": ["corner", "corner"]}, r"every camera once"),
        ({"cameras": ["corner"], "camera_size": 0}, r"task\.camera_size of at least 1; found 0"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        MetaworldTask(**({"environment": "reach-v3"} | settings))


def test_a_start_id_is_not_negative(make):
    with pytest.raises(UserError, match="start id from 0 to 4294967295; found -1"):
        make("reach-v3").reset(-1)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "metaworld", None)
    import_metaworld.cache_clear()
    with pytest.raises(UserError, match=r"package metaworld.*pip install 'embodied-policies\[tasks\]'"):
        metaworld_world.environment_names()
    import_metaworld.cache_clear()


def test_every_configuration_names_its_own_task():
    assert {name for name in names(TASKS) if name.startswith("metaworld/")} == {
        f"metaworld/{environment}" for environment in environment_names()
    }
