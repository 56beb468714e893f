"""Push-T drawn in three dimensions: flat pieces on a board, one pixel as one millimetre.

The board's y points down and the scene's z up, so the scene is mirrored: seen from above it looks like the board's own
picture. Letters: T time.
"""

from __future__ import annotations

import numpy as np

from embodied import pusht_board
from embodied.types import Geom, Scene

_M_PER_PX = 0.001
_BOARD_M = pusht_board.BOARD_PX * _M_PER_PX
_THICKNESS_M = 0.002  # half, of block and agent
_PATH_M = 0.01  # height of the agent's origin, so that its path is drawn above everything
_UPRIGHT = (1.0, 0.0, 0.0, 0.0)
_WHITE, _GREEN = (0.93, 0.93, 0.93, 1.0), (0.56, 0.93, 0.56, 1.0)
_SLATE, _BLUE, _GRAY = (0.47, 0.53, 0.60, 1.0), (0.25, 0.41, 0.88, 1.0), (0.60, 0.60, 0.60, 1.0)
_BOARD, _GOAL, _BLOCK, _AGENT = range(4)
_WALL_PX = (5.0, 506.0)  # the walls' middle lines, to both sides
_WALL_RADIUS_PX = 2.0


def body_poses(physics_states: np.ndarray) -> np.ndarray:
    """Poses of the scene's bodies for states [T 5]: float32 [T 4 7], x y z (m) then w x y z."""
    states = np.asarray(physics_states, np.float64).reshape(-1, pusht_board.STATE_SIZE)
    poses = np.zeros((len(states), 4, 7))
    poses[:, _AGENT, 3] = 1.0
    poses[:, _BOARD] = _placed(np.zeros((1, 3)))
    poses[:, _GOAL] = _placed(np.array([pusht_board.GOAL_POSE]))
    poses[:, _BLOCK] = _placed(states[:, 2:])
    poses[:, _AGENT, :3] = agent_position(states)
    return poses.astype(np.float32)


def agent_position(states: np.ndarray) -> np.ndarray:
    """Of the agent in the scene, for states [... 5]: float64 [... 3], m."""
    return np.stack(
        [states[..., 0] * _M_PER_PX, _BOARD_M - states[..., 1] * _M_PER_PX, np.full(states.shape[:-1], _PATH_M)],
        axis=-1,
    )


def _placed(poses_T3: np.ndarray) -> np.ndarray:
    """Poses on the board as poses in the scene, float64 [T 7]."""
    x, y, angle = poses_T3.T
    none = np.zeros_like(x)
    half = -angle / 2  # mirrored
    return np.stack([x * _M_PER_PX, _BOARD_M - y * _M_PER_PX, none, np.cos(half), none, none, np.sin(half)], axis=-1)


def _box(body: int, name: str, low_px: np.ndarray, high_px: np.ndarray, half_m: float, z_m: float, rgba: tuple) -> Geom:
    """A rectangle between two corners of its body's frame, px with y down."""
    x, y = (np.asarray(low_px) + high_px) / 2 * _M_PER_PX
    half_x, half_y = (np.asarray(high_px) - low_px) / 2 * _M_PER_PX
    return Geom(body, name, "box", (float(half_x), float(half_y), half_m), (float(x), -float(y), z_m), _UPRIGHT, rgba)


def _tee(body: int, half_m: float, z_m: float, rgba: tuple) -> list[Geom]:
    parts = {"bar": pusht_board.BAR, "stem": pusht_board.STEM}
    return [
        _box(body, name, corners.min(axis=0), corners.max(axis=0), half_m, z_m, rgba) for name, corners in parts.items()
    ]


def _walls() -> list[Geom]:
    (low, high), radius = _WALL_PX, _WALL_RADIUS_PX
    sides = {
        "left": ((low, low), (low, high)),
        "right": ((high, low), (high, high)),
        "top": ((low, low), (high, low)),
        "bottom": ((low, high), (high, high)),
    }
    return [
        _box(_BOARD, f"wall_{side}", np.subtract(start, radius), np.add(end, radius), _THICKNESS_M, 0.0, _GRAY)
        for side, (start, end) in sides.items()
    ]


def _scene() -> Scene:
    corner = np.full(2, pusht_board.BOARD_PX)
    board = _box(_BOARD, "board", np.zeros(2), corner, _THICKNESS_M / 2, -3 * _THICKNESS_M, _WHITE)
    radius = pusht_board.AGENT_RADIUS_PX * _M_PER_PX
    agent = Geom(_AGENT, "agent", "cylinder", (radius, _THICKNESS_M, 0.0), (0.0, 0.0, -_PATH_M), _UPRIGHT, _BLUE)
    return Scene(
        bodies=("board", "goal", "block", "agent"),
        geoms=(
            board,
            *_walls(),
            *_tee(_GOAL, _THICKNESS_M / 2, -2 * _THICKNESS_M, _GREEN),
            *_tee(_BLOCK, _THICKNESS_M, 0.0, _SLATE),
            agent,
        ),
        tool=_AGENT,
        targets=((_M_PER_PX, 0.0, 0.0), (0.0, -_M_PER_PX, _BOARD_M), (0.0, 0.0, _PATH_M)),
    )


PUSHT_SCENE = _scene()
