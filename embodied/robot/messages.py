"""What is said between a robot and a policy server of this project: requests and answers, as Python values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from embodied.errors import UserError
from embodied.types import ActionChunk, Json, Observation, TaskSpec

PROMPT = "prompt"


@dataclass(frozen=True)
class ServedPolicy:
    """What a server states of its policy when a robot connects."""

    spec: TaskSpec
    action_steps: int  # Ta
    inference_delay: int  # d; above 0 the next chunk is asked for while the last one runs
    history: int
    keys: Mapping[str, str]  # our name of an observed value -> the server's

    @staticmethod
    def from_metadata(metadata: Json, spec: TaskSpec | None = None) -> ServedPolicy:
        """
        Args:
            spec: what the robot shows and takes; None: whatever the server says.

        Raises:
            UserError: the server does not state what a controller needs to know, or its policy is for another robot.
        """
        try:
            keys = metadata.get("keys") or {}
            served = ServedPolicy(
                TaskSpec.from_json(metadata["spec"]),
                *(int(metadata[name]) for name in ("action_steps", "inference_delay", "history")),
                keys={str(ours): str(theirs) for ours, theirs in keys.items()},
            )
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise _foreign(f"metadata without them ({type(error).__name__}: {str(error)[:80]})") from error
        if served.action_steps < 1 or served.inference_delay < 0 or served.history < 1:
            raise _foreign(
                f"action_steps {served.action_steps}, inference_delay {served.inference_delay}, history "
                f"{served.history}"
            )
        if spec is not None and (differences := served.spec.differences(spec)):
            raise UserError(
                expected=f"a policy for {spec.task}",
                found=f"one for {served.spec.task} ({'; '.join(differences[:3])})",
                remedy="serve a policy that was trained for this robot",
            )
        return served

    def observed(self, observation: Observation) -> Json:
        """The values of an observation under the names that the server reads."""
        values: Json = {f"state/{name}": value for name, value in observation.state.items()}
        values |= {f"images/{name}": value for name, value in observation.images.items()}
        values["instruction"] = observation.instruction
        return {self.keys.get(name, PROMPT if name == "instruction" else name): value for name, value in values.items()}


@dataclass(frozen=True)
class AnsweredChunk:
    """An answer: actions on the robot's time line, and what they were computed from."""

    chunk: ActionChunk  # without actions that only hold still
    observed_s: float  # of the observation that it was computed from; the robot's clock
    stale: bool  # an earlier chunk: the one that was asked for was not ready by the deadline

    @staticmethod
    def from_answer(answer: Json) -> AnsweredChunk | None:
        """None for a stale answer that holds no action of use.

        Raises:
            UserError: it is no answer of a server of this project.
        """
        try:
            actions = np.asarray(answer["actions"], np.float32)
            start_s, dt_s, observed_s = (float(answer[name]) for name in ("start_s", "dt_s", "observed_s"))
            valid = int(answer.get("valid_actions", len(actions)))
            stale = bool(answer.get("stale", False))
        except (LookupError, TypeError, ValueError) as error:
            raise UserError(
                expected="an answer with actions, start_s, dt_s and observed_s",
                found=f"one without ({type(error).__name__}: {str(error)[:80]})",
                remedy="serve the policy with embodied serve",
            ) from error
        if valid < 1:
            return None
        return AnsweredChunk(ActionChunk(actions[:valid], start_s, dt_s), observed_s, stale)


def _foreign(found: str) -> UserError:
    return UserError(
        expected="a server that states its policy's spec, action_steps, inference_delay and history",
        found=found,
        remedy="serve the policy with embodied serve; openpi's own client speaks to other servers",
    )
