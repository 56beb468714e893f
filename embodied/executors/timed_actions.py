"""A chunk's actions, checked and on the time axis."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from embodied.errors import MisfitError, UserError
from embodied.types import ActionChunk, ActionSpec


@dataclass(frozen=True)
class TimedActions:
    """Actions, each for one control step.

    start_s          +dt_s          +2 dt_s
      | values[0]      | values[1]   | values[2] ...
    """

    values: np.ndarray  # float32 [n A]
    start_s: float
    dt_s: float

    def step_at(self, time_s: float) -> int:
        """The control step that this time falls on, counted from the first action; negative before it."""
        return round((time_s - self.start_s) / self.dt_s)

    def steps_left(self, time_s: float) -> int:
        """Control steps from this time to the end of the last action; not above 0 once all are past."""
        return len(self.values) - self.step_at(time_s)

    def covers(self, time_s: float) -> bool:
        """Whether one of them is for this time."""
        return 0 <= self.step_at(time_s) < len(self.values)

    def at(self, time_s: float) -> np.ndarray:
        """The action for a time that they cover, float32 [A]."""
        return self.values[self.step_at(time_s)]


def timed_actions(chunk: ActionChunk, spec: ActionSpec) -> TimedActions:
    """The actions that a chunk hands out.

    Raises:
        UserError: they have another size than the spec says, there is none, they are not finite, or the chunk does not
            say what times they are for.
    """
    _check_values(chunk.actions, spec, "action")
    if not math.isfinite(chunk.start_s) or not (math.isfinite(chunk.dt_s) and chunk.dt_s > 0):
        raise UserError(
            expected="a chunk with a start and a control period, in s",
            found=f"start_s = {chunk.start_s}, dt_s = {chunk.dt_s}",
            remedy="set start_s and dt_s of every chunk that the policy hands out",
        )
    return TimedActions(chunk.actions, chunk.start_s, chunk.dt_s)


def timed_prediction(chunk: ActionChunk, spec: ActionSpec, least: int, executor: str) -> TimedActions:
    """A chunk's actions and, behind them, its clean preview.

    Args:
        least: actions of the preview that have to be clean.
        executor: that needs them, for the error.

    Raises:
        UserError: as `timed_actions`, of the preview too.
        MisfitError: there is no preview, or its first `least` actions are noisy or not there.
    """
    timed = timed_actions(chunk, spec)
    if chunk.preview is None:
        raise _no_prediction("chunks without a preview", executor)
    actions, levels = chunk.preview.actions, chunk.preview.levels
    if len(levels) != len(actions):
        raise UserError(
            expected=f"a level for each of the {len(actions)} actions of a preview",
            found=f"{len(levels)} levels",
            remedy="use a policy that says how noisy each action of its preview is",
        )
    noisy = np.flatnonzero(~(np.asarray(levels) <= 0))  # so that what is no number is not clean
    clean = int(noisy[0]) if len(noisy) else len(levels)
    if len(noisy) and clean < max(least, 1):
        raise _no_prediction(f"a preview with noise (level {levels[clean]:.2f}) from its action {clean} on", executor)
    if clean < least:
        raise MisfitError(
            expected=f"at least {least} actions predicted beyond a chunk's own {len(timed.values)}, for executor "
            f"{executor}",
            found=str(clean),
            remedy="ask for less of them in the executor's settings, or train with a larger policy.horizon",
        )
    if not clean:
        return timed
    _check_values(actions[:clean], spec, "predicted action")
    return TimedActions(np.concatenate([timed.values, actions[:clean]]), timed.start_s, timed.dt_s)


def _no_prediction(found: str, executor: str) -> MisfitError:
    return MisfitError(
        expected=f"a policy that predicts clean actions beyond those of a chunk, for executor {executor}",
        found=found,
        remedy="use executor=chunk, or a policy that cleans its whole horizon at once, such as policy=diffusion",
    )


def _check_values(values: np.ndarray, spec: ActionSpec, name: str) -> None:
    if values.ndim != 2 or values.shape[1] != spec.size or not len(values):
        raise UserError(
            expected=f"a chunk of actions with {spec.size} values each ({', '.join(spec.elements)})",
            found=f"shape {values.shape}",
            remedy="use a policy that was trained for this task",
        )
    if not np.isfinite(values).all():
        step, element = np.argwhere(~np.isfinite(values))[0]
        raise UserError(
            expected="finite actions",
            found=f"{values[step, element]} in '{spec.elements[element]}' of {name} {step}",
            remedy="look for NaN or infinity in the observation, or train again",
        )
