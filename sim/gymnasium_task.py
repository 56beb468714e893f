"""A Gymnasium environment named on the command line as a task, and the expert named with it."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

import gymnasium

from embodied.errors import UserError
from embodied.protocols import Expert
from embodied.sim.global_random import GlobalRandomStream
from embodied.sim.gymnasium_adapter import GymnasiumTask, SuccessCheck
from embodied.sim.opengl import without_opengl

FAMILY = "gymnasium"


class NamedGymnasiumTask(GymnasiumTask):
    """An environment of Gymnasium's registry as a `Task`; see `from_gymnasium` for what it can be."""

    def __init__(
        self,
        *,
        id: str,
        control_hz: float,
        arguments: Mapping[str, Any] | None = None,
        horizon: int | None = None,
        success_key: str | None = None,
        success_reward: float | None = None,
        instruction: str = "",
        expert: str | None = None,
    ) -> None:
        """
        Args:
            id: as in `gymnasium.make`; "module:Name-v0" imports a module that registers it first.
            control_hz: steps of the environment a second.
            arguments: of the environment's constructor.
            horizon: control steps of one episode; None: the environment's own limit.
            success_key: a key of every step's info that says whether the task is solved.
            success_reward: a step with at least this reward solves the task; instead of `success_key`.
            instruction: what the task asks for, in words.
            expert: "module:Class", called with this task; None for a task without one.

        Raises:
            UserError: an unknown id, arguments that the environment does not take, no success signal or two of them,
                no horizon, a control rate that is not positive, or spaces that no task can have.
        """
        name = f"{FAMILY}/{id}"
        success = _success(name, success_key, success_reward)
        if control_hz <= 0:
            raise UserError(expected="task.control_hz above 0", found=str(control_hz), remedy="set the true rate")
        env = _make(id, arguments or {})
        try:
            horizon = _own_limit(env, name) if horizon is None else horizon
            super().__init__(env, name, control_hz, horizon, success, instruction)
        except UserError:
            env.close()
            raise
        self.expert = expert


def expert_of(task: NamedGymnasiumTask) -> Expert:
    """The expert that the task's configuration names.

    Raises:
        UserError: it names none, or one that cannot be imported.
    """
    if task.expert is None:
        raise UserError(
            expected=f"an expert for {task.spec.task}",
            found="task.expert=null",
            remedy="name one with task.expert=module:Class, or recorded data with data.store=...",
        )
    module, _, attribute = task.expert.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)(task)
    except (ImportError, AttributeError, ValueError) as error:
        if not _is_about(error, module, attribute):
            raise
        raise UserError(
            expected="task.expert=module:Class that can be imported",
            found=f"'{task.expert}' ({error})",
            remedy="correct the name, or put the module's folder on PYTHONPATH",
        ) from error


def _is_about(error: Exception, module: str, attribute: str) -> bool:
    """Whether an error says that the expert is not there, and not that its code is wrong."""
    if isinstance(error, ModuleNotFoundError):
        return error.name is not None and f"{module}.".startswith(f"{error.name}.")
    if isinstance(error, AttributeError):
        return error.name == attribute and getattr(error.obj, "__name__", None) == module
    return not module or not attribute


def _success(name: str, key: str | None, reward: float | None) -> SuccessCheck | str:
    if (key is None) == (reward is None):
        raise UserError(
            expected=f"a success signal for {name}",
            found="none" if key is None else "two",
            remedy="set task.success_key (of the environment's info) or task.success_reward (at least so much a step)",
        )
    if key is not None:
        return key
    return lambda _observation, step_reward, _info: step_reward >= reward


def _own_limit(env: gymnasium.Env, name: str) -> int:
    limit = gymnasium.spec(env.spec.id).max_episode_steps if env.spec is not None else None
    if limit is None:
        raise UserError(
            expected=f"a horizon for {name}", found="an environment without a limit", remedy="set task.horizon"
        )
    return limit


def _make(id: str, arguments: Mapping[str, Any]) -> gymnasium.Env:
    """The environment without Gymnasium's own time limit: the task's horizon ends its episodes."""
    try:
        with without_opengl(), GlobalRandomStream():  # constructors import simulators, and may draw
            return gymnasium.make(id, max_episode_steps=-1, **arguments)
    except (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv, ModuleNotFoundError) as error:
        raise UserError(expected="an environment for task.id", found=f"'{id}'", remedy=_nearest(id, error)) from error
    except gymnasium.error.DependencyNotInstalled as error:
        raise UserError(
            expected=f"everything that {id} needs to be installed", found=str(error), remedy="install it"
        ) from error
    except (TypeError, ValueError) as error:
        raise UserError(
            expected=f"arguments that {id} takes", found=f"{dict(arguments)} ({error})", remedy="set task.arguments"
        ) from error


def _nearest(id: str, error: Exception) -> str:
    """Registries are long, so that only the closest ids are named."""
    close = difflib.get_close_matches(id, list(gymnasium.registry), n=3, cutoff=0.5)
    if isinstance(error, ModuleNotFoundError):
        return f"install the package ({error}), or put it on PYTHONPATH"
    hint = "name the module that registers another one as module:Name-v0"
    return f"did you mean {' or '.join(repr(name) for name in close)}? {hint}" if close else hint
