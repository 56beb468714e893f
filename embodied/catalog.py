"""What can be named on the command line or in a checkpoint. Lazy, so that naming a thing imports nothing."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

from embodied.errors import UserError

TASKS = {
    "robosuite/lift": "embodied.sim.lift:LiftTask",
}
EXPERTS = {
    "robosuite/lift": "embodied.sim.lift:LiftExpert",
}
# By task family: the environment as its own users run it, to measure ours against.
BARE_ENVIRONMENTS = {
    "robosuite": "embodied.sim.robosuite_bare:BareRobosuite",
}
POLICIES = {
    "diffusion": "embodied.policies.diffusion:DiffusionPolicy",
    "sdp": "embodied.policies.sdp:StreamingDiffusionPolicy",
}
NETWORKS = {
    "transformer": "embodied.policies.networks.transformer:Transformer1d",
    "unet": "embodied.policies.networks.unet:Unet1d",
}


def nearest(name: str, known: Iterable[str]) -> str:
    """`known` in words, the nearest to `name` first, for an error message."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    listing = ", ".join(names) or "(none)"
    return f"did you mean '{close[0]}'? known: {listing}" if close else f"known: {listing}"


def lookup(kind: str, registry: dict[str, str], name: str) -> Any:
    """The object that `name` stands for in `registry`; imports its module.

    Raises:
        UserError: an unknown name; lists the known ones and the nearest.
    """
    if name not in registry:
        raise UserError(expected=f"the name of a {kind}", found=f"'{name}'", remedy=nearest(name, registry))
    module, _, attribute = registry[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def make(kind: str, registry: dict[str, str], config: Mapping[str, Any], *given: Any, **supplied: Any) -> Any:
    """Build what `config["name"]` stands for, with the rest of `config` as keyword arguments.

    Args:
        given, supplied: further arguments, which are the program's to give and not the user's.

    Raises:
        UserError: an unknown name, or settings that it does not take.
    """
    settings = {key: value for key, value in config.items() if key != "name"}
    constructor = lookup(kind, registry, config["name"])
    signature = inspect.signature(constructor)
    try:
        signature.bind(*given, **settings, **supplied)
    except TypeError as error:
        own = [name for name in list(signature.parameters)[len(given) :] if name not in supplied]
        raise UserError(
            expected=f"settings that {kind} '{config['name']}' takes: {', '.join(own)}",
            found=str(error),
            remedy=f"compare with conf/{kind}/",
        ) from error
    return constructor(*given, **settings, **supplied)


def make_task(config: dict[str, Any]) -> Any:
    """The task of a conf/task configuration."""
    return make("task", TASKS, config)


def make_expert(task: Any) -> Any:
    """The expert for a task.

    Raises:
        UserError: the task has none.
    """
    name = task.spec.task
    if name not in EXPERTS:
        raise UserError(
            expected=f"an expert for task {name}",
            found="none",
            remedy="name a store with data.store=..., or another task",
        )
    return lookup("expert", EXPERTS, name)(task)


def task_config(name: str) -> dict[str, Any]:
    """The settings of a task as conf/task has them.

    Raises:
        UserError: an unknown task.
    """
    if name not in TASKS:
        raise UserError(expected="the name of a task", found=f"'{name}'", remedy=nearest(name, TASKS))
    from omegaconf import OmegaConf

    text = (resources.files("embodied.conf") / "task" / f"{name}.yaml").read_text(encoding="utf-8")
    return OmegaConf.to_container(OmegaConf.create(text))  # type: ignore[return-value]
