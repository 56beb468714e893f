"""robosuite's hard resets without two things that took most of their time and changed nothing.

A hard reset frees the last episode's simulation by a collection of all garbage, which takes the longer the more its
process holds. And it compiles the robot alone, beside the world with the robot in it, for controllers that these worlds
do not have: each time the same model.
"""

from __future__ import annotations

import functools
from typing import Any
from xml.etree import ElementTree

from embodied.sim.opengl import MjModel, mujoco


def free_without_collection(environment: Any) -> None:
    """Let a robosuite environment's simulations go when nothing holds them any more: no cycle does."""

    def destroy() -> None:
        if environment.sim is not None:
            vars(environment.sim).clear()  # whoever still has it finds it empty, as after robosuite's own
            environment.sim = None

    environment._destroy_sim = destroy


def compile_each_robot_once() -> None:
    """Let robosuite's robots share the model that is compiled of them alone; nothing changes it."""
    from robosuite.models.robots.robot_model import RobotModel

    def set_mujoco_model(robot: Any, mujoco_model: MjModel | None = None) -> None:
        if mujoco_model is None:
            mujoco_model = _compiled(ElementTree.tostring(robot.root, encoding="unicode"))
        robot.mujoco_model = mujoco_model

    RobotModel.set_mujoco_model = set_mujoco_model  # type: ignore[method-assign]


@functools.lru_cache(maxsize=8)
def _compiled(xml: str) -> MjModel:
    return mujoco.MjModel.from_xml_string(xml)
