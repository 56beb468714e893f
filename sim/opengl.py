"""Which OpenGL back end MuJoCo draws with: chosen here and nowhere else.

MuJoCo decides at import, and robosuite overwrites MUJOCO_GL with "egl" at import. Both are imported inside
`without_opengl` (everybody else takes `mujoco` from here), so that simulating without cameras never loads a GL
library; a renderer asks `choose_backend` for a back end and creates its context from that back end's own module.
"""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from embodied.errors import UserError

VARIABLE = "MUJOCO_GL"
PACKAGES = {"egl": "libegl1 libgl1-mesa-dri", "osmesa": "libosmesa6"}  # Debian's names; tried in this order
_PROBE_TIMEOUT_S = 60.0
# A library may be there and still fail to draw, so that the probe draws: one white sphere, read back.
_PROBE = """
import importlib, sys
import mujoco, numpy
context = importlib.import_module("mujoco." + sys.argv[1]).GLContext(16, 16)
context.make_current()
model = mujoco.MjModel.from_xml_string(
    "<mujoco><visual><headlight ambient='1 1 1'/><global offwidth='16' offheight='16'/></visual>"
    "<worldbody><geom size='1' rgba='1 1 1 1'/></worldbody></mujoco>"
)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
drawing = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, drawing)
scene, camera = mujoco.MjvScene(model, 10), mujoco.MjvCamera()
mujoco.mjv_defaultFreeCamera(model, camera)
mujoco.mjv_updateScene(model, data, mujoco.MjvOption(), None, camera, mujoco.mjtCatBit.mjCAT_ALL, scene)
view, pixels = mujoco.MjrRect(0, 0, 16, 16), numpy.zeros((16, 16, 3), numpy.uint8)
mujoco.mjr_render(view, scene, drawing)
mujoco.mjr_readPixels(pixels, None, view, drawing)
sys.exit(None if pixels.max() > 0 else "the picture is black")
"""


@dataclass(frozen=True)
class Backend:
    """What the probe found about one back end."""

    name: str  # "egl" or "osmesa"
    works: bool
    reason: str  # why it does not work; empty if it does
    packages: str  # Debian packages that bring it


Probe = Callable[[str], Backend]


@contextmanager
def without_opengl() -> Iterator[None]:
    """Inside, `import mujoco` and `import robosuite` load no GL library; MUJOCO_GL is as before afterwards."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "disabled"
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


with without_opengl():
    mujoco: Any = importlib.import_module("mujoco")
# Its compiled classes have no type stubs, so that annotations can only name them.
MjModel = Any
MjData = Any


@functools.cache
def probe_backend(name: str) -> Backend:
    """Draw one picture in a process of its own, so that a back end that fails leaves nothing behind in this one."""
    environment = {key: value for key, value in os.environ.items() if key not in (VARIABLE, "PYOPENGL_PLATFORM")}
    environment[VARIABLE] = name
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, name],
            env=environment,
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Backend(name, False, f"no picture within {_PROBE_TIMEOUT_S:.0f} s", PACKAGES[name])
    lines = done.stderr.strip().splitlines()
    reason = "" if done.returncode == 0 else (lines[-1] if lines else f"exit code {done.returncode}")
    return Backend(name, done.returncode == 0, reason, PACKAGES[name])


def available_backends(probe: Probe = probe_backend) -> list[Backend]:
    """Every back end with what its probe found, for `doctor`; takes about a second each."""
    return [probe(name) for name in PACKAGES]


def choose_backend(probe: Probe = probe_backend) -> str:
    """The back end to draw with: the user's MUJOCO_GL, or else the first of EGL and OSMesa that works.

    Raises:
        UserError: MUJOCO_GL names something else, or no candidate works; names the Debian packages to install.
    """
    asked = os.environ.get(VARIABLE, "").strip().lower()
    if asked and asked not in PACKAGES:
        raise UserError(
            expected=f"{VARIABLE} to be one of {', '.join(PACKAGES)}, or unset, when cameras are asked for",
            found=f"{VARIABLE}={asked}",
            remedy=f"unset {VARIABLE}, or leave the cameras out: task.cameras=[]",
        )
    tried = []
    for name in [asked] if asked else list(PACKAGES):
        backend = probe(name)
        if backend.works:
            return name
        tried.append(backend)
    packages = ", or ".join(f"`apt-get install {PACKAGES[name]}` ({name})" for name in PACKAGES)
    raise UserError(
        expected="a working OpenGL back end, because cameras are asked for",
        found="; ".join(f"{backend.name} fails ({backend.reason})" for backend in tried),
        remedy=f"install one: {packages}" + (f" and unset {VARIABLE}" if asked else "") + "; or leave the cameras "
        "out: task.cameras=[]",
    )


def create_context(backend: str, width: int, height: int) -> Any:
    """A GL context of a back end that `choose_backend` returned, made current; `.free()` gives it back."""
    context = importlib.import_module(f"mujoco.{backend}").GLContext(width, height)
    context.make_current()
    return context
