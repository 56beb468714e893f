"""How smooth a rollout's executed actions are: the jerk of what they command, and the jump where two chunks meet."""

from __future__ import annotations

import numpy as np

from embodied.action_noise import half_ranges
from embodied.types import ActionSpec, Json, Rollout


def smoothness(rollout: Rollout, spec: ActionSpec, inference_delay: int, delay_steps: int) -> Json:
    """Root mean squares over the episode's steps and over the elements that are not binary, in half action ranges.

    `jerk` is the third difference of the commanded position, per control step cubed: of the action itself where it is
    absolute, of its running sum where it is a delta. `seam_jump` is the change of the action from the last one of a
    chunk to the first one of the next, `step_change` that between two actions of one chunk. What is measured is what
    the policy asked for, before noise on the execution.

        action      a0   a1   a2   a3 | a4   a5   a6   a7 | a8 ...
        step_change    ..   ..   ..        ..   ..   ..
        seam_jump                    ..                  ..

    Args:
        spec: of the actions.
        inference_delay: of the policy, control steps.
        delay_steps: of the evaluation.

    Returns:
        `jerk`, `seam_jump`, `step_change`; null where the episode has no such step, or all elements are binary.
    """
    half_A = half_ranges(spec)
    moving = half_A > 0
    action_TA = rollout.episode.action[:, moving].astype(np.float64) / half_A[moving]
    change_TA = np.diff(action_TA, axis=0)
    order = 2 if spec.representation == "absolute" else 1  # of the differences still to be taken
    at_seam = np.zeros(len(change_TA), bool)
    seams = seam_steps(rollout, inference_delay, delay_steps)
    at_seam[seams[(seams > 0) & (seams <= len(change_TA))] - 1] = True
    return {
        "jerk": _root_mean_square(np.diff(change_TA, n=order, axis=0)),
        "seam_jump": _root_mean_square(change_TA[at_seam]),
        "step_change": _root_mean_square(change_TA[~at_seam]),
    }


def seam_steps(rollout: Rollout, inference_delay: int, delay_steps: int) -> np.ndarray:
    """Control steps at which the first action of a chunk was executed, int64 [C - 1]; of all chunks but the first.

    A chunk of a policy that plans for a delay begins so many steps after its observation, or, if it comes later than
    planned, when it is there. The others are for the step at which they come.
    """
    return rollout.chunk_steps[1:] + (max(inference_delay, delay_steps) if inference_delay else 0)


def _root_mean_square(values: np.ndarray) -> float | None:
    return float(np.sqrt(np.square(values).mean())) if values.size else None
