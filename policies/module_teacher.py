"""A teacher that is a class of the user's own: `module:Class`, an `Expert` that is called with the task."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from embodied.catalog import nearest
from embodied.errors import UserError
from embodied.policies.teacher import checked_action
from embodied.protocols import Task


class ModuleTeacher:
    """Passes on what the user's expert says, once its actions are checked. Its memory is the expert's own."""

    def __init__(self, task: Task, target: str, settings: Mapping[str, Any] | None = None) -> None:
        """
        Args:
            target: "module:Class"; the module is found as Python finds it, and in the working directory.
            settings: keyword arguments of the class, beside the task.

        Raises:
            UserError: no such module or class, one that cannot be built, or that is no expert.
        """
        self._action = task.spec.action
        self._target = target
        expert_class = _load_class(target)
        try:
            self._expert = expert_class(task, **(settings or {}))
        except TypeError as error:
            raise UserError(
                expected=f"{target} to be callable with the task and expert.settings",
                found=str(error),
                remedy="take the task as the first argument, and every setting by its name",
            ) from error
        missing = [name for name in ("infer_memory", "act") if not callable(getattr(self._expert, name, None))]
        if missing:
            raise UserError(
                expected=f"{target} to be an expert, with infer_memory() and act(memory)",
                found=f"no {' and no '.join(missing)}",
                remedy="see Expert in embodied/protocols.py",
            )

    def infer_memory(self) -> Any:
        """The expert's own."""
        return self._expert.infer_memory()

    def act(self, memory: Any) -> tuple[np.ndarray, Any]:
        """The clean action, float32 [A] within the bounds, and the memory for the next one.

        Raises:
            UserError: the expert returns something else, or an action of another size or not finite.
        """
        answer = self._expert.act(memory)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise UserError(
                expected=f"(action, memory) from act of {self._target}",
                found=f"a {type(answer).__name__}",
                remedy="return both; memory may be None",
            )
        action, memory = answer
        return checked_action(self._action, action, self._target), memory


def _load_class(target: str) -> Any:
    module_name, colon, name = target.partition(":")
    if not (module_name and colon and name):
        raise UserError(expected="expert.target as module:Class", found=f"'{target}'", remedy="name both")
    # A console script does not look into the working directory by itself. It comes last and hides nothing; it stays,
    # because the module may import its neighbours later.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            expected=f"to import '{module_name}' of expert.target={target}",
            found=str(error),
            remedy="install it, or run from the directory that holds it",
        ) from error
    if not hasattr(module, name):
        classes = [known for known, value in vars(module).items() if isinstance(value, type)]
        raise UserError(expected=f"a class of {module_name}", found=f"no '{name}'", remedy=nearest(name, classes))
    return getattr(module, name)
