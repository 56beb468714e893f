"""The back end is chosen in one place, asked for only by cameras, and its absence is explained."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from embodied.errors import UserError
from embodied.sim import opengl
from embodied.sim.camera_renderer import CameraRenderer
from embodied.sim.opengl import Backend, available_backends, choose_backend, mujoco
from embodied.types import CameraSpec

SCENE = """
<mujoco>
  <visual><headlight ambient="1 1 1" diffuse="0 0 0" specular="0 0 0"/></visual>
  <worldbody>
    <camera name="front" pos="0 -3 0" xyaxes="1 0 0 0 0 1"/>
    <geom name="above" type="box" size=".5 .5 .5" pos="0 0 1" rgba="1 0 0 1"/>
    <geom name="below" type="box" size=".5 .5 .5" pos="0 0 -1" rgba="0 0 1 1" group="1"/>
  </worldbody>
</mujoco>
"""


def probe(*working: str):
    """A probe that finds these back ends working, and notes what it was asked."""

    def probed(name: str) -> Backend:
        probed.asked.append(name)
        reason = "" if name in working else f"no {name} here"
        return Backend(name, name in working, reason, opengl.PACKAGES[name])

    probed.asked = []
    return probed


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)


def test_egl_is_preferred_and_osmesa_the_second_choice():
    first = probe("egl", "osmesa")
    assert choose_backend(first) == "egl"
    assert first.asked == ["egl"]
    assert choose_backend(probe("osmesa")) == "osmesa"


def test_the_users_choice_is_respected(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    chosen = probe("egl", "osmesa")
    assert choose_backend(chosen) == "osmesa"
    assert chosen.asked == ["osmesa"]


def test_without_a_back_end_the_packages_and_the_alternative_are_named():
    with pytest.raises(UserError) as error:
        choose_backend(probe())
    message = str(error.value)
    for part in ("no egl here", "no osmesa here", "libegl1 libgl1-mesa-dri", "libosmesa6", "task.cameras=[]"):
        assert part in message


def test_a_users_choice_that_fails_says_to_unset_it(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(UserError, match="unset MUJOCO_GL"):
        choose_backend(probe("osmesa"))


def test_an_unknown_choice_is_named(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    with pytest.raises(UserError, match=r"found MUJOCO_GL=disabled; unset MUJOCO_GL.*task\.cameras=\[\]"):
        choose_backend(probe("egl"))


def test_doctor_sees_every_back_end():
    found = available_backends(probe("osmesa"))
    assert [(backend.name, backend.works, backend.packages) for backend in found] == [
        ("egl", False, "libegl1 libgl1-mesa-dri"),
        ("osmesa", True, "libosmesa6"),
    ]


def test_a_failing_probe_has_a_reason_and_leaves_no_trace(monkeypatch):
    monkeypatch.setattr(opengl, "_PROBE", "raise SystemExit('it broke')")
    assert opengl.probe_backend.__wrapped__("egl") == Backend("egl", False, "it broke", opengl.PACKAGES["egl"])
    monkeypatch.setattr(opengl, "_PROBE", "import os; os.abort()")
    assert not opengl.probe_backend.__wrapped__("egl").works


NO_OPENGL = """
import os, sys, warnings
from embodied.sim.lift import LiftTask
filters = list(warnings.filters)
task = LiftTask(horizon=1)
task.reset(0)
task.step([0] * 7)
assert os.environ.get("MUJOCO_GL") == sys.argv[1], os.environ.get("MUJOCO_GL")
assert warnings.filters == filters
assert not {"OpenGL", "mujoco.egl", "mujoco.osmesa"} & sys.modules.keys()
if sys.platform == "linux":
    with open("/proc/self/maps") as maps:
        loaded = maps.read()
    assert not [library for library in ("libEGL", "libGL.", "libGLX", "libOSMesa") if library in loaded]
"""


def test_a_task_without_cameras_touches_no_opengl_and_says_nothing(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    command = [sys.executable, "-W", "default", "-c", NO_OPENGL, "egl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and done.stderr == ""


@pytest.fixture(scope="module")
def drawing():
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


@pytest.fixture
def need_backend():
    if not any(backend.works for backend in available_backends()):
        pytest.skip("needs OpenGL: apt-get install libegl1 libgl1-mesa-dri, or libosmesa6")


def test_pictures_are_upright_and_in_colour(drawing, need_backend):
    renderer = CameraRenderer([CameraSpec("front", 48, 64)])
    picture = renderer.render(*drawing)["front"]
    assert picture.shape == (48, 64, 3) and picture.dtype == np.uint8
    red, _, blue = (picture[..., channel].astype(int) for channel in range(3))
    assert (red - blue)[8, 32] > 100, "the red box is above"
    assert (blue - red)[40, 32] > 100, "the blue box is below"
    assert np.array_equal(renderer.render(*drawing)["front"], picture)
    renderer.close()
    renderer.close()


def test_only_the_visual_group_is_drawn(drawing, need_backend):
    renderer = CameraRenderer([CameraSpec("front", 48, 64)], visual_group=1)
    picture = renderer.render(*drawing)["front"].astype(int)
    assert picture[8, 32].max() == 0 and picture[40, 32, 2] > 100
    renderer.close()


def test_another_model_is_drawn_as_itself(drawing, need_backend):
    renderer = CameraRenderer([CameraSpec("front", 48, 64)])
    renderer.render(*drawing)
    other = mujoco.MjModel.from_xml_string(SCENE.replace('rgba="1 0 0 1"', 'rgba="0 1 0 1"'))
    data = mujoco.MjData(other)
    mujoco.mj_forward(other, data)
    pixel = renderer.render(other, data)["front"][8, 32].astype(int)
    assert pixel[1] - pixel[0] > 100
    renderer.close()


def test_lift_shows_its_cameras(need_backend):
    from embodied.sim.lift import LiftTask

    task = LiftTask(cameras=["agentview", "robot0_eye_in_hand"], camera_size=32)
    images = task.reset(0).images
    assert list(images) == [camera.name for camera in task.spec.cameras] == ["agentview", "robot0_eye_in_hand"]
    again = task.reset(0).images
    for name, image in images.items():
        assert image.shape == (32, 32, 3) and image.dtype == np.uint8
        assert image.std() > 5, "a picture is expected, not one colour"
        assert np.array_equal(again[name], image)
    red = images["agentview"].astype(int)
    assert ((red[..., 0] - red[..., 1]) > 60).any(), "the red cube is expected in view"
    task.close()
