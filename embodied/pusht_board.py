"""The board of Push-T: its measures, the T, and what a task shows of it. Pure geometry, without a simulator.

The simulator (gym-pusht) and the reader of the human demonstrations both compute their observations here, so that they
agree to the last bit. Lengths are pixels of a board of 512 by 512, x to the right and y down; angles are radians,
positive from x to y. A recorded state is [agent x, agent y, block x, block y, block angle].

Letters: T time, N corners of a polygon.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embodied.catalog import nearest
from embodied.errors import UserError
from embodied.types import ActionGroup, ActionSpec, CameraSpec, StateSpec, TaskSpec

BOARD_PX = 512.0
STATE_SIZE = 5
AGENT_RADIUS_PX = 15.0
GOAL_POSE = (256.0, 256.0, np.pi / 4)  # x, y, angle of the block
SUCCESS_COVERAGE = 0.95  # share of the goal that the block must cover (Diffusion Policy, arXiv 2303.04137, sec. V)
CONTROL_HZ = 10.0
HORIZON = 300
CAMERA = "board"
# As gym-pusht draws it, and the code that recorded the human demonstrations did, which it was made from.
RENDERING = {"renderer": "pymunk and pygame", "drawn_px": 512, "action": False}

# The T in the block's frame, whose origin is the middle of the bar's outer edge: bar and stem, float64 [4 2] each.
BAR = np.array([(-60.0, 0.0), (60.0, 0.0), (60.0, 30.0), (-60.0, 30.0)])
STEM = np.array([(-15.0, 30.0), (15.0, 30.0), (15.0, 120.0), (-15.0, 120.0)])
_CORNERS = np.concatenate([BAR, STEM])
CENTRE_OF_MASS = (BAR.mean(axis=0, keepdims=True) + STEM.mean(axis=0, keepdims=True)) / 2  # gym-pusht's, float64 [1 2]
T_AREA_PX = 120.0 * 30.0 + 30.0 * 90.0

_AGENT = StateSpec("agent_position", ("x", "y"), "px")
_BLOCK_POSITION = StateSpec("block_position", ("x", "y"), "px")
_BLOCK_ANGLE = StateSpec("block_angle", ("angle",), "rad")
_KEYPOINTS = StateSpec("block_keypoints", tuple(f"{axis}{corner}" for corner in range(8) for axis in "xy"), "px")
STATE_VECTORS = {
    "pusht/state": (_AGENT, _BLOCK_POSITION, _BLOCK_ANGLE),
    "pusht/keypoints": (_AGENT, _KEYPOINTS),
    "pusht/pixels": (_AGENT,),
}
_TARGET = ActionSpec(
    elements=("target_x", "target_y"),
    units=("px", "px"),
    low=(0.0, 0.0),
    high=(BOARD_PX, BOARD_PX),
    binary=(False, False),
    representation="absolute",
    rotation="none",
    groups=(ActionGroup("target", "position", ("target_x", "target_y"), reference="agent_position"),),
)


def task_spec(task: str, *, horizon: int = HORIZON, cameras: Sequence[str] = (), camera_size: int = 96) -> TaskSpec:
    """The spec of a Push-T task.

    Args:
        task: a key of `STATE_VECTORS`.
        horizon: control steps of one episode.
        cameras: none, or the only one there is (`CAMERA`), which looks straight down.
        camera_size: pixels of its images, both sides.

    Raises:
        UserError: an unknown camera, or a horizon or camera size below 1.
    """
    for name, value in (("horizon", horizon), ("camera_size", camera_size)):
        if value < 1:
            raise UserError(expected=f"task.{name} of at least 1", found=str(value), remedy="raise it")
    for camera in cameras:
        if camera != CAMERA:
            raise UserError(
                expected=f"a camera of {task}", found=f"'{camera}' in task.cameras", remedy=nearest(camera, [CAMERA])
            )
    return TaskSpec(
        task=task,
        state=STATE_VECTORS[task],
        cameras=tuple(CameraSpec(camera, camera_size, camera_size, dict(RENDERING)) for camera in cameras),
        action=_TARGET,
        control_hz=CONTROL_HZ,
        horizon=int(horizon),
    )


def state_vectors(task: str, states: np.ndarray) -> dict[str, np.ndarray]:
    """The named state vectors that a task shows of states [... 5]: float32 [... d] each."""
    states = np.asarray(states, np.float64)
    return {spec.name: _READ[spec.name](states).astype(np.float32) for spec in STATE_VECTORS[task]}


def keypoints(block_poses: np.ndarray) -> np.ndarray:
    """The eight corners of the T's bar and stem on the board, for block poses [... 3]: float64 [... 8 2].

    They are gym-pusht's keypoints, in its order. The human data hold nine others, placed by hand and some of them
    beside the T; both sets are fixed to the block and so say the same, and corners can be computed for any state.
    Unlike the angle, they never jump.
    """
    return placed(_CORNERS, block_poses)


def placed(points: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Points [N 2] of the block's frame on the board, for block poses [... 3]: float64 [... N 2]."""
    poses = np.asarray(poses, np.float64)
    turn, origin = np.exp(1j * poses[..., 2:]), poses[..., :1] + 1j * poses[..., 1:2]
    on_board = turn * points.view(np.complex128)[:, 0] + origin  # the plane as complex numbers
    return on_board[..., None].view(np.float64)


def coverage(block_pose: np.ndarray) -> float:
    """The share of the goal that a block at this pose ([3]) covers, 0 .. 1."""
    goal = np.asarray(GOAL_POSE)
    return (
        sum(
            _overlap_area(placed(part, np.asarray(block_pose)), placed(goal_part, goal))
            for part in (BAR, STEM)
            for goal_part in (BAR, STEM)
        )
        / T_AREA_PX
    )


def graded_reward(covered: float) -> float:
    """Coverage over what success needs, 0 .. 1 (Diffusion Policy's score)."""
    return min(covered / SUCCESS_COVERAGE, 1.0)


# State vector -> how it is read from states [... 5], as float64 [... d].
_READ = {
    _AGENT.name: lambda states: states[..., :2],
    _BLOCK_POSITION.name: lambda states: states[..., 2:4],
    _BLOCK_ANGLE.name: lambda states: states[..., 4:] % (2 * np.pi),
    _KEYPOINTS.name: lambda states: keypoints(states[..., 2:]).reshape(*states.shape[:-1], _KEYPOINTS.size),
}


def _overlap_area(subject: np.ndarray, window: np.ndarray) -> float:
    """The area that two convex polygons [N 2] share, corners in the order of increasing angle (Sutherland-Hodgman)."""
    for start, end in zip(window, np.roll(window, -1, axis=0), strict=True):
        if not len(subject):
            return 0.0
        subject = _clipped(subject, start, end - start)
    x, y = subject.T
    return 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))


def _clipped(polygon: np.ndarray, start: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """What of a convex polygon [N 2] lies on the inner side of an edge."""
    inside = edge[0] * (polygon[:, 1] - start[1]) - edge[1] * (polygon[:, 0] - start[0])
    kept = []
    for index, (corner, depth) in enumerate(zip(polygon, inside, strict=True)):
        before, depth_before = polygon[index - 1], inside[index - 1]
        if (depth >= 0) != (depth_before >= 0):
            kept.append(before + (corner - before) * depth_before / (depth_before - depth))
        if depth >= 0:
            kept.append(corner)
    return np.array(kept).reshape(-1, 2)
