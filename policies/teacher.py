"""Experts made from a policy that a user has: what they see, what they may answer, and which file they come from.

One kind of policy, one file beside this one. S values of an observation, A of an action.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embodied.catalog import nearest
from embodied.errors import UserError, first_line
from embodied.fingerprint import fingerprint
from embodied.protocols import Task
from embodied.types import ActionSpec, Observation, TaskSpec


class StateVector:
    """The state vectors that a teacher sees, side by side in the order that it was made for."""

    def __init__(self, spec: TaskSpec, names: Sequence[str] | None, key: str = "expert.observation") -> None:
        """
        Args:
            names: of state vectors of the spec; None: all of them, in the spec's order.
            key: of the configuration that the names come from, for the error message.

        Raises:
            UserError: a name that the task does not have, one given twice, or none at all.
        """
        known = {state.name: state for state in spec.state}
        chosen = list(known) if names is None else list(names)
        for place, name in enumerate(chosen):
            if name not in known or name in chosen[:place]:
                raise UserError(
                    expected=f"names of state vectors of {spec.task} in {key}, each once",
                    found=f"'{name}'" + (" twice" if name in known else ""),
                    remedy=nearest(name, known),
                )
        if not chosen:
            raise UserError(expected=f"state vectors in {key}", found="none", remedy="name some, or leave the key out")
        self._spec = dataclasses.replace(spec, state=tuple(known[name] for name in chosen))

    @property
    def size(self) -> int:
        """S."""
        return self._spec.state_size

    @property
    def layout(self) -> str:
        """In words: "point (2), goal (2)"."""
        return ", ".join(f"{state.name} ({state.size})" for state in self._spec.state)

    def read(self, observation: Observation) -> np.ndarray:
        """float32 [S]."""
        return self._spec.flatten_state(observation.state)


class StateTeacher(ABC):
    """An expert that maps the task's newest observation, one vector, to an action; without memory."""

    def __init__(
        self, task: Task, path: str, observation: Sequence[str] | None = None, sha256: str | None = None
    ) -> None:
        """
        Args:
            task: asked for its observations, never changed.
            path: the policy's file.
            observation: names of the state vectors that the policy was made for, in its order; None: all of them.
            sha256: of the file's content; None: any content.

        Raises:
            UserError: no such file, one of another kind or content, or a policy for observations or actions of other
                sizes.
        """
        self._task = task
        self._action = task.spec.action
        self._state = StateVector(task.spec, observation)
        self._path = checked_path(path, sha256)
        self._load(self._path)

    @abstractmethod
    def _load(self, path: Path) -> None:
        """Read the policy and check that it maps S values to A."""

    @abstractmethod
    def predict(self, state_S: np.ndarray) -> np.ndarray:
        """The policy's action for one observation, float32 [S] to [A], as the policy gives it."""

    def infer_memory(self) -> None:
        """None: the observation says it all."""
        return None

    def act(self, memory: None) -> tuple[np.ndarray, None]:
        """The clean action, float32 [A] within the bounds, for the task's newest observation.

        Raises:
            UserError: the policy answers with another size, or with values that are not finite.
        """
        state_S = self._state.read(self._task.observation())
        return checked_action(self._action, self.predict(state_S), f"the teacher {self._path}"), None

    def _require_sizes(self, inputs: int, outputs: int, found: str) -> None:
        if (inputs, outputs) != (self._state.size, self._action.size):
            raise self._wrong_sizes(found)

    def _wrong_sizes(self, found: str) -> UserError:
        return UserError(
            expected=f"a teacher for {self._task.spec.task}: {self._state.size} values of observation "
            f"({self._state.layout}) to {self._action.size} of action",
            found=f"{found} in {self._path}",
            remedy="name a teacher of this task, or in expert.observation the state vectors that it was made for",
        )


def checked_path(path: str, sha256: str | None) -> Path:
    """The path of a teacher's file or folder.

    Raises:
        UserError: nothing is there, or its content has another hash than `sha256`.
    """
    if not Path(path).exists():
        raise UserError(expected=f"a teacher at {path}", found="no such file", remedy="check expert.path")
    if sha256 is not None and (found := fingerprint(path)) != sha256:
        raise UserError(
            expected=f"a teacher at {path} whose content has the SHA-256 {sha256}",
            found=found,
            remedy="restore the file, or set expert.sha256=null to begin another run with the new one",
        )
    return Path(path)


def checked_action(spec: ActionSpec, action: Any, teacher: str) -> np.ndarray:
    """What a teacher answered, as float32 [A] within the bounds.

    Raises:
        UserError: it has another size, is not finite, or holds no numbers.
    """
    try:
        return spec.clipped(np.asarray(action, dtype=np.float64)).astype(np.float32)
    except UserError as error:
        raise UserError(
            expected=f"{error.expected} from {teacher}", found=error.found, remedy="check that it fits the task"
        ) from error
    except (TypeError, ValueError) as error:
        raise UserError(
            expected=f"{spec.size} numbers from {teacher}", found=repr(action)[:80], remedy="check what it returns"
        ) from error


def wrong_kind(path: Path, expected: str, error: Exception | str) -> UserError:
    """For a file that is not what its option says."""
    return UserError(
        expected=f"{expected} at {path}",
        found=f"something else ({first_line(error)})",
        remedy="check expert.path, or choose the option of `expert` that fits the file",
    )
