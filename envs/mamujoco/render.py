"""Pictures of MuJoCo's scenes without a display, through EGL or OSMesa."""

from __future__ import annotations

import ctypes.util
import importlib
import os
import sys
import weakref
from typing import Any

import mujoco
import numpy as np

LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}
"""MuJoCo's ways to draw without a display on Linux, and the system library that each needs."""


def contexts(model: mujoco.MjModel, size: int) -> tuple[Any, mujoco.MjrContext]:
    """OpenGL's and MuJoCo's contexts for pictures of size x size pixels, by MUJOCO_GL or whatever is there.

    RuntimeError with one sentence if there is none.
    """
    wish = os.environ.get("MUJOCO_GL", "").lower()
    there = [name for name, library in LIBRARIES.items() if ctypes.util.find_library(library)]
    other = {"darwin": "cgl", "win32": "glfw"}.get(sys.platform)
    # Only one can be loaded into a process: the first that is there.
    name = wish or other or (there[0] if there else "")
    reason = "neither EGL nor OSMesa was found"
    if name:
        try:
            opengl = importlib.import_module(f"mujoco.{name}").GLContext(size, size)
            opengl.make_current()
            return opengl, mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150.value)
        except Exception as error:  # whatever a driver, a missing library or a wrong name leads to
            reason = " ".join(f"{name} failed with {type(error).__name__}: {error}".split()).rstrip(".")
    raise RuntimeError(
        f"No picture can be drawn: {reason}. Install EGL or OSMesa (Debian, Ubuntu: libegl1 or libosmesa6) "
        "and set MUJOCO_GL to egl or osmesa."
    )


def free(opengl: Any, context: mujoco.MjrContext) -> None:
    """Free both. Left to itself, MuJoCo's context would do so in whichever context of OpenGL's is current."""
    opengl.make_current()
    context.free()
    opengl.free()


class Renderer:
    """Draws one model as seen by its camera "track", which follows the robot, or else from afar."""

    def __init__(self, model: mujoco.MjModel, size: int) -> None:
        self.model, self.size = model, size
        self._gl, self._context = contexts(model, size)
        self._free = weakref.finalize(self, free, self._gl, self._context)
        self._free.atexit = False  # then OpenGL is gone before
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._camera = mujoco.MjvCamera()
        track = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA.value, "track")
        if track >= 0:
            self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED.value, track
        else:
            mujoco.mjv_defaultFreeCamera(model, self._camera)

    def draw(self, data: mujoco.MjData) -> np.ndarray:
        """A picture (size, size, 3) uint8 of `data`, after mj_forward."""
        self._gl.make_current()
        all_kinds = mujoco.mjtCatBit.mjCAT_ALL.value
        options, drag = mujoco.MjvOption(), mujoco.MjvPerturb()
        mujoco.mjv_updateScene(self.model, data, options, drag, self._camera, all_kinds, self._scene)
        area = mujoco.MjrRect(0, 0, self.size, self.size)
        mujoco.mjr_render(area, self._scene, self._context)
        picture = np.empty((self.size, self.size, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(picture, None, area, self._context)
        return picture[::-1].copy()  # OpenGL's first row is the lowest

    def close(self) -> None:
        """Free what OpenGL holds; more than once does no harm."""
        self._free()
