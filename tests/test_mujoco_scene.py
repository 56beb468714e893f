"""Scenes and poses from any MuJoCo model, against facts of a model that fits on a page."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from embodied.errors import UserError
from embodied.sim.mujoco_scene import MujocoScene

MODEL = """
<mujoco>
  <asset>
    <mesh name="wedge" vertex="0 0 0  1 0 0  0 1 0  0 0 1"/>
    <texture name="half" type="2d" builtin="checker" rgb1="1 0 0" rgb2="0 0 1" width="64" height="64"/>
    <material name="painted" rgba="0.2 0.4 0.6 0.8"/>
    <material name="checked" texture="half" rgba="1 1 1 1"/>
  </asset>
  <worldbody>
    <geom name="floor" type="plane" size="0 0 1" material="checked" group="1"/>
    <body name="arm" pos="0 0 1">
      <joint name="swing" type="hinge" axis="0 0 1"/>
      <geom name="look" type="box" size=".1 .2 .3" pos="1 0 0" material="painted" group="1"/>
      <geom name="hit" type="sphere" size=".5" group="0" mass="1"/>
      <body name="tool" pos="2 0 0"><geom name="unseen" size=".01" group="3"/></body>
    </body>
    <body name="marker" mocap="true" pos="5 5 5"><geom name="wedge" type="mesh" mesh="wedge" rgba="0 1 0 1" group="1"/>
    </body>
    <body name="ghost"><geom name="ghost" size=".1" rgba="1 1 1 0" group="1"/></body>
  </worldbody>
</mujoco>
"""


@pytest.fixture(scope="module")
def model():
    return mujoco.MjModel.from_xml_string(MODEL)


def geoms(scene) -> dict:
    return {geom.name: geom for geom in scene.geoms}


def test_draws_the_visual_group_alone(model):
    scene = MujocoScene(model, tool_body="tool", visual_group=1).scene
    assert list(geoms(scene)) == ["floor", "look", "wedge"]
    assert scene.bodies == ("world", "arm", "tool", "marker")
    assert scene.bodies[scene.tool] == "tool"
    assert [scene.bodies[geom.body] for geom in scene.geoms] == ["world", "arm", "marker"]


@pytest.mark.parametrize("group", [None, 5])
def test_falls_back_to_what_mujoco_shows(model, group):
    assert list(geoms(MujocoScene(model, visual_group=group).scene)) == ["floor", "look", "hit", "wedge"]


def test_sizes_and_placement_are_mujocos(model):
    look = geoms(MujocoScene(model, visual_group=1).scene)["look"]
    assert look.kind == "box"
    assert look.size == (0.1, 0.2, 0.3)
    assert look.position == (1.0, 0.0, 0.0)
    assert look.quaternion == (1.0, 0.0, 0.0, 0.0)


def test_an_endless_plane_gets_the_models_extent(model):
    floor = geoms(MujocoScene(model, visual_group=1).scene)["floor"]
    assert floor.size[:2] == pytest.approx((model.stat.extent,) * 2)


def test_colours_come_from_geom_material_and_texture(model):
    drawn = geoms(MujocoScene(model, visual_group=1).scene)
    assert drawn["wedge"].rgba == pytest.approx((0, 1, 0, 1))
    assert drawn["look"].rgba == pytest.approx((0.2, 0.4, 0.6, 0.8))
    assert drawn["floor"].rgba == pytest.approx((0.5, 0, 0.5, 1), abs=0.01)


def test_a_placed_mesh_is_where_its_vertices_were_written(model):
    scene = MujocoScene(model, visual_group=1)
    wedge = geoms(scene.scene)["wedge"]
    assert wedge.vertices.dtype == np.float32 and wedge.faces.dtype == np.uint32 and wedge.faces.shape == (4, 3)
    rotation = np.empty(9)
    mujoco.mju_quat2Mat(rotation, np.array(wedge.quaternion))
    placed = wedge.vertices @ rotation.reshape(3, 3).T + wedge.position
    expected = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    assert {tuple(row) for row in placed.round(4) + 0.0} == {tuple(map(float, row)) for row in expected}


def test_poses_follow_joints_and_mocap(model):
    scene = MujocoScene(model, tool_body="tool", visual_group=1)
    data = mujoco.MjData(model)
    states = [scene.physics_state(data)]
    data.qpos[0] = np.pi / 2
    data.mocap_pos[0] = [0, 0, 7]
    states.append(scene.physics_state(data))
    poses = scene.body_poses(np.array(states))
    assert poses.shape == (2, 4, 7) and poses.dtype == np.float32
    tool, marker = scene.scene.bodies.index("tool"), scene.scene.bodies.index("marker")
    np.testing.assert_allclose(poses[:, tool, :3], [[2, 0, 1], [0, 2, 1]], atol=1e-6)
    np.testing.assert_allclose(poses[:, tool, 3:], [[1, 0, 0, 0], [2**-0.5, 0, 0, 2**-0.5]], atol=1e-6)
    np.testing.assert_allclose(poses[:, marker, :3], [[5, 5, 5], [0, 0, 7]], atol=1e-6)


def test_asking_for_poses_leaves_the_live_simulation_alone(model):
    scene, data = MujocoScene(model), mujoco.MjData(model)
    data.qpos[0] = 1.0
    before = scene.physics_state(data)
    scene.body_poses(np.zeros((1, len(before))) + 0.5)
    assert np.array_equal(scene.physics_state(data), before)


def test_states_of_another_model_are_refused(model):
    with pytest.raises(UserError, match=r"physics states of shape \[T 9\].*found shape \[3, 4\]"):
        MujocoScene(model).body_poses(np.zeros((3, 4)))


def test_an_unknown_tool_lists_the_bodies(model):
    with pytest.raises(UserError, match="'hand'; known: world, arm, tool, marker, ghost"):
        MujocoScene(model, tool_body="hand")
