"""Push-T: a round agent pushes a T-shaped block onto its goal. gym-pusht's physics, with addressed starts."""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from embodied import pusht_board
from embodied.errors import UserError
from embodied.sim.moved_object import BASE, Move, check_variant, planned_move
from embodied.sim.pusht_scene import PUSHT_SCENE, agent_position, body_poses
from embodied.sim.simulated_task import SimulatedTask, check_start
from embodied.types import Observation, Scene, Step

FARTHEST_MOVE_PX, LARGEST_TURN_RAD = 80.0, 0.6  # of the block in the variant `moved`
BLOCK_MARGIN_PX = 100.0  # from the walls, as for the starts of gym-pusht
_QUIET = "PYGAME_HIDE_SUPPORT_PROMPT"


@functools.cache
def import_gym_pusht() -> Any:
    """The module of gym-pusht's environment, without what it and pygame print when they are imported.

    Raises:
        UserError: it is not installed.
    """
    before = os.environ.get(_QUIET)
    os.environ[_QUIET] = "1"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("gym_pusht.envs.pusht")
    except ImportError as error:
        raise UserError(
            expected="gym-pusht for the tasks pusht/...",
            found=f"{type(error).__name__}: {error}",
            remedy="pip install 'embodied-policies[tasks]'",
        ) from error
    finally:
        if before is None:
            del os.environ[_QUIET]
        else:
            os.environ[_QUIET] = before


class PushTTask(SimulatedTask):
    """Cover at least 95 % of the goal with the block. Actions are target positions of the agent, in px.

    Starts are those of gym-pusht's own `reset(seed=start_id)`. The reward is the coverage over 0.95, at most 1; `info`
    holds "coverage" (0 .. 1). The physics state is [agent x, agent y, block x, block y, block angle], px and rad.
    """

    name: ClassVar[str]  # the catalogue's
    instruction: ClassVar[str] = "push the T onto its outline"
    _move: Move | None = None  # of the present episode

    def __init__(
        self,
        *,
        horizon: int = pusht_board.HORIZON,
        cameras: Sequence[str] = (),
        camera_size: int = 96,
        variant: str = BASE,
    ) -> None:
        """
        Args:
            horizon: control steps of one episode.
            cameras: ["board"] for images of the board from above; needs no OpenGL.
            camera_size: pixels, both sides.
            variant: "moved": the block is moved once in an episode (`moved_object`).

        Raises:
            UserError: an unknown camera or variant, a horizon or camera size below 1, or no gym-pusht.
        """
        check_variant(self.name, variant)
        self.variant = variant
        self.spec = pusht_board.task_spec(self.name, horizon=horizon, cameras=cameras, camera_size=camera_size)
        self._env = import_gym_pusht().PushTEnv(
            obs_type="pixels" if self.spec.cameras else "state",
            observation_width=camera_size,
            observation_height=camera_size,
        )

    def reset(self, start_id: int) -> Observation:
        """Go to the addressed start. The same id gives bit-equal observations, whatever came before.

        Raises:
            UserError: the id is negative or too large for a seed (2**32).
        """
        check_start(start_id)
        shown, _ = self._env.reset(seed=int(start_id))
        self._move = planned_move(self.variant, start_id, self.spec.horizon, FARTHEST_MOVE_PX, LARGEST_TURN_RAD)
        return self._begin(shown)

    def reset_to(self, state: np.ndarray) -> Observation:
        """Begin an episode at a given state, for example the first one of a demonstration.

        Args:
            state: float [5], as `physics_state` returns it; agent and block stand still, and are pushed apart where
                they overlap.

        Raises:
            UserError: another shape, or a value that is not finite.
        """
        state = np.asarray(state, np.float64)
        if state.shape != (pusht_board.STATE_SIZE,) or not np.isfinite(state).all():
            raise UserError(
                expected="5 finite values: agent x, agent y, block x, block y (px), block angle (rad)",
                found=str(state.tolist()),
                remedy="give a state as `physics_state` returns it",
            )
        # gym-pusht sets the position before the angle, and setting the angle turns the block about its centre of mass.
        centre = pusht_board.CENTRE_OF_MASS
        aimed = np.concatenate([state[:2], (pusht_board.placed(centre, state[2:]) - centre)[0], state[4:]])
        shown, _ = self._env.reset(options={"reset_to_state": aimed})
        self._move = None
        return self._begin(shown)

    def step(self, action: np.ndarray) -> Step:
        target = self._command(action)
        if self._move is not None and self._steps == self._move.step:
            self._move_block(self._move)
        # As the physics' own vector: the same numbers, without an array in each of gym-pusht's ten physics steps.
        shown, *_, info = self._env.step(import_gym_pusht().Vec2d(*target.tolist()))
        covered = float(info["coverage"])
        success = covered >= pusht_board.SUCCESS_COVERAGE
        self._advance(success)
        reward = pusht_board.graded_reward(covered)
        return self._outcome(self._observe(shown), reward, success, coverage=covered)

    def physics_state(self) -> np.ndarray:
        """float64 [5]: agent x, agent y, block x, block y (px), block angle (rad)."""
        agent, block = self._env.agent, self._env.block
        return np.array([*agent.position, *block.position, block.angle])

    def scene(self) -> Scene:
        """Board, goal, block and agent, one px drawn as one mm; see `sim/pusht_scene.py`."""
        return PUSHT_SCENE

    def body_poses(self, physics_states: np.ndarray) -> np.ndarray:
        return body_poses(physics_states)

    def eef_position(self) -> np.ndarray:
        """Of the agent in the scene, float64 [3], m."""
        return agent_position(self.physics_state())

    def close(self) -> None:
        self._env.close()

    def _move_block(self, move: Move) -> None:
        """Within the board; where the block then overlaps the agent, the physics push them apart."""
        block = self._env.block
        block.angle += move.turn  # about the centre of mass, which changes the position
        low, high = BLOCK_MARGIN_PX, pusht_board.BOARD_PX - BLOCK_MARGIN_PX
        position = np.clip(np.array(block.position) + move.shift, low, high)
        block.position = import_gym_pusht().Vec2d(*position.tolist())
        block.velocity, block.angular_velocity = (0.0, 0.0), 0.0
        self._env.space.reindex_shapes_for_body(block)

    def _begin(self, shown: np.ndarray) -> Observation:
        self._begin_episode()
        return self._observe(shown)

    def _observe(self, shown: np.ndarray) -> Observation:
        """`shown` is gym-pusht's own observation: the image of the board, if the task has a camera."""
        self._observation = Observation(
            state=pusht_board.state_vectors(self.name, self.physics_state()),
            images={camera.name: np.array(shown) for camera in self.spec.cameras},
            instruction=self.instruction,
            time_s=self._time_s,
        )
        return self._observation


class PushTState(PushTTask):
    """Shows the agent's position and the block's pose. The angle jumps from 2 pi to 0, where keypoints do not."""

    name = "pusht/state"


class PushTKeypoints(PushTTask):
    """Shows the agent's position and the corners of the block (`pusht_board.keypoints`)."""

    name = "pusht/keypoints"


class PushTPixels(PushTTask):
    """Shows the agent's position; the block is to be seen in the image."""

    name = "pusht/pixels"
