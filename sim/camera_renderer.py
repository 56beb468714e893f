"""Camera images from MuJoCo, drawn lean: no shadows, reflections or multisampling, a buffer of the image's size."""

from __future__ import annotations

import atexit
import functools
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from embodied.catalog import nearest
from embodied.errors import UserError
from embodied.sim.opengl import MjData, MjModel, choose_backend, create_context, mujoco
from embodied.types import CameraSpec

_MAX_GEOMS = 2000  # more than any of the scenes holds
# What a drawing context takes from the model once and for all; the rest is read anew for every picture.
_UPLOADED = ("mesh_vert", "mesh_face", "mesh_normal", "mesh_texcoord", "tex_data", "mat_texid", "mat_texrepeat")

# What of the drawing is switched off; recorded with the cameras, since a policy sees the difference.
_FLAGS = {"shadows": mujoco.mjtRndFlag.mjRND_SHADOW, "reflections": mujoco.mjtRndFlag.mjRND_REFLECTION}
_SAMPLES = 0  # of multisampling

_open_renderers: weakref.WeakSet[CameraRenderer] = weakref.WeakSet()


def camera_specs(names: Sequence[str], size: int, *, visual_group: int | None = None) -> tuple[CameraSpec, ...]:
    """Specs of square cameras that state how a `CameraRenderer` draws them, on whichever back end."""
    rendering = {
        "renderer": "mujoco",
        **dict.fromkeys(_FLAGS, False),
        "samples": _SAMPLES,
        "sites": False,
        "geom_group": visual_group,
    }
    return tuple(CameraSpec(name, size, size, rendering) for name in names)


def checked_cameras(cameras: Sequence[str], known: Sequence[str], task: str) -> tuple[str, ...]:
    """The cameras that a user names.

    Raises:
        UserError: one that the task does not have, or one twice.
    """
    for place, camera in enumerate(cameras):
        if camera not in known:
            raise UserError(
                expected=f"the name of a camera of {task}",
                found=f"'{camera}' in task.cameras",
                remedy=nearest(str(camera), known),
            )
        if camera in list(cameras)[:place]:
            raise UserError(
                expected="every camera once in task.cameras", found=f"'{camera}' twice", remedy="name it once"
            )
    return tuple(cameras)


class CameraRenderer:
    """Draws the same cameras of one model after another; one per task, used from one thread."""

    def __init__(self, cameras: Sequence[CameraSpec], *, visual_group: int | None = None) -> None:
        """
        Args:
            cameras: what to draw; at least one.
            visual_group: draw this geom group alone; None: those that MuJoCo shows by default.

        Raises:
            UserError: no OpenGL back end works.
        """
        self.backend = choose_backend()
        self._cameras = tuple(cameras)
        self._width = max(camera.width for camera in cameras)
        self._height = max(camera.height for camera in cameras)
        self._context: Any = create_context(self.backend, self._width, self._height)
        _open_renderers.add(self)
        _close_all_at_exit()
        self._options = mujoco.MjvOption()
        if visual_group is not None:
            self._options.geomgroup[:] = 0
            self._options.geomgroup[visual_group] = 1
        self._options.sitegroup[:] = 0
        self._model: MjModel | None = None
        self._drawing: Any = None
        self._scene: Any = None

    def render(self, model: MjModel, data: MjData) -> dict[str, np.ndarray]:
        """Images of all cameras, uint8 [h w 3] each, row 0 at the top; `data` must hold up-to-date poses."""
        self._context.make_current()
        if model is not self._model:
            self._load(model)
        mujoco.mj_camlight(model, data)
        return {camera.name: self._draw(camera, model, data) for camera in self._cameras}

    def close(self) -> None:
        if self._context is None:
            return
        self._context.make_current()
        if self._drawing is not None:
            self._drawing.free()
            self._drawing = None
        self._context.free()
        self._context = None

    def _load(self, model: MjModel) -> None:
        """Make ready for another model; the settings apply to drawing alone, never to physics."""
        model.vis.quality.offsamples = _SAMPLES
        model.vis.global_.offwidth, model.vis.global_.offheight = self._width, self._height
        if self._drawing is None or not _same_uploads(self._model, model):
            self._upload(model)
        self._scene = mujoco.MjvScene(model, maxgeom=_MAX_GEOMS)
        for flag in _FLAGS.values():
            self._scene.flags[flag] = 0
        self._model = model

    def _upload(self, model: MjModel) -> None:
        if self._drawing is not None:
            self._drawing.free()
        self._drawing = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._drawing)

    def _draw(self, spec: CameraSpec, model: MjModel, data: MjData) -> np.ndarray:
        camera = mujoco.MjvCamera()
        camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        camera.fixedcamid = model.camera(spec.name).id
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(model, data, self._options, None, camera, everything, self._scene)
        view = mujoco.MjrRect(0, 0, spec.width, spec.height)
        pixels = np.empty((spec.height, spec.width, 3), dtype=np.uint8)
        mujoco.mjr_render(view, self._scene, self._drawing)
        mujoco.mjr_readPixels(pixels, None, view, self._drawing)
        return np.ascontiguousarray(pixels[::-1])  # OpenGL's row 0 is at the bottom


@functools.cache
def _close_all_at_exit() -> None:
    """Free what the user left open before EGL itself shuts down; called after EGL has registered its own end."""

    def close_all() -> None:
        for renderer in list(_open_renderers):
            renderer.close()

    atexit.register(close_all)


def _same_uploads(one: MjModel, other: MjModel) -> bool:
    """Whether a drawing context made for one model serves the other: most resets change poses and sizes alone."""
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in _UPLOADED)
