"""What robosuite's resets no longer do changes nothing but their time."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from embodied.catalog import make_task
from embodied.sim.global_random import GlobalRandomStream
from embodied.sim.robosuite_world import import_robosuite

OPTIONS = {"has_renderer": False, "has_offscreen_renderer": False, "use_camera_obs": False, "use_object_obs": False}


@pytest.fixture(scope="module")
def task():
    task = make_task({"name": "robosuite/lift"})
    task.reset(0)
    yield task
    task.close()


def test_a_simulation_is_gone_with_its_episode_without_a_collection_of_garbage(task):
    gc.collect()
    gc.disable()
    try:
        simulation, model = weakref.ref(task._env.sim), weakref.ref(task._env.sim.model)
        task.reset(1)
        assert simulation() is None and model() is None
    finally:
        gc.enable()


def test_the_garbage_of_others_is_left_alone(task, monkeypatch):
    monkeypatch.setattr(gc, "collect", lambda *_: pytest.fail("a reset collected garbage"))
    task.reset(2)


def test_the_robot_is_compiled_once_and_as_robosuite_compiles_it(task):
    first = task._env.robots[0].robot_model.mujoco_model
    task.reset(3)
    robot = task._env.robots[0].robot_model
    assert robot.mujoco_model is first
    compiled = robot.get_model()
    assert compiled.nv == first.nv > 0
    np.testing.assert_array_equal(compiled.body_mass, first.body_mass)
    np.testing.assert_array_equal(compiled.jnt_range, first.jnt_range)  # the robot has been placed since, so no poses


def test_another_robot_is_another_model(task):
    other = make_task({"name": "robosuite/lift", "robot": "UR5e"})
    ours, others = (each._env.robots[0].robot_model.mujoco_model for each in (task, other))
    other.close()
    assert ours.nv != others.nv


def test_starts_are_robosuite_s_own(task, monkeypatch):
    task.reset(7)
    robot = import_robosuite().models.robots.robot_model.RobotModel
    monkeypatch.setattr(robot, "set_mujoco_model", lambda self: setattr(self, "mujoco_model", self.get_model()))
    with GlobalRandomStream():
        plain = import_robosuite().make("Lift", robots="Panda", hard_reset=True, renderer="mujoco", **OPTIONS)
        np.random.seed(7)
        plain.reset()
    np.testing.assert_array_equal(task.data.qpos, plain.sim.data.qpos)
    np.testing.assert_array_equal(task.model.geom_size, plain.sim.model.geom_size)
    plain.close()
