"""Who acts in an evaluation: a checkpoint, a policy behind a server, or an expert."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from embodied.catalog import CHUNK_EXECUTOR, in_words, make_executor, make_expert, make_task
from embodied.commands.collect import with_teacher_content
from embodied.configuration import plain
from embodied.errors import UserError
from embodied.evaluation.expert_policy import ExpertPolicy
from embodied.evaluation.latency import latency_summary, measure_latency
from embodied.evaluation.remote_policy import RemotePolicy, ServerSettings
from embodied.fingerprint import fingerprint
from embodied.policies.denoising_policy import DenoisingPolicy
from embodied.policies.lerobot_diffusion import LeRobotDiffusion
from embodied.policies.policy_file import WEIGHTS, PolicyDescription, load_configured
from embodied.protocols import Policy, Task, TimedPolicy
from embodied.serving.access import API_KEY_VARIABLE
from embodied.training.checkpoint import find_checkpoint
from embodied.types import Json, Observation, Rollout, TaskSpec

TRAINING = ("train", "distill")  # the commands whose runs hold checkpoints


@dataclass(frozen=True)
class EvaluatedPolicy:
    """What the evaluation needs to know of who acts."""

    stem: str  # of the run directory's name
    label: str  # with the executor, if it is not the plain one
    task: Json  # configuration
    identity: Json  # what of it the configuration does not say: part of the run's name and of what may be resumed
    facts: Json  # for the summary
    make_policy: Callable[[Task], Policy]  # importable by worker processes
    latency: Callable[[Rollout], Json]  # of a rollout's observations


def evaluated_policy(config: DictConfig) -> EvaluatedPolicy:
    """The one that the configuration names (conf/eval.yaml).

    Raises:
        UserError: none or several, a checkpoint with a task beside it, something else without a task, or what is named
            is not there or does not fit.
    """
    named = [
        word
        for word, given in (
            (f"run={config.run}", config.run is not None),
            (f"server.address={config.server.address}", config.server.address is not None),
            (f"lerobot.path={config.lerobot.path}", config.lerobot.path is not None),
            ("expert=" + str((config.get("expert") or {}).get("name")), config.get("expert") is not None),
        )
        if given
    ]
    if len(named) != 1:
        raise UserError(
            expected="one policy to evaluate: run=, server.address=, lerobot.path= or expert=",
            found=" and ".join(named) or "none",
            remedy="name one, for example embodied eval outputs/train/<run>",
        )
    has_task = config.get("task") is not None
    if config.run is not None:
        if has_task:
            raise UserError(
                expected="a checkpoint alone, which says its task",
                found=f"task={config.task.name} beside it",
                remedy="leave task= out",
            )
        return _checkpoint(config)
    if not has_task:
        raise UserError(
            expected=f"the task in which {named[0]} acts", found="none", remedy="add task=, for example robosuite/lift"
        )
    if config.lerobot.path is not None:
        return _lerobot(config)
    return _server(config) if config.server.address is not None else _expert(config)


def _checkpoint(config: DictConfig) -> EvaluatedPolicy:
    checkpoint = resolved_checkpoint(config.run, config.run_root)
    executor = plain(config.executor)
    settings = {name: value for name, value in config.policy.items() if value is not None}
    policy, description = load_configured(checkpoint, settings)
    # The weights' hash makes the run's name: the same checkpoint under another path is the same evaluation, and a
    # retrained one is not. So do the settings that hold, whether they were given or are the checkpoint's own.
    weights = fingerprint(checkpoint / WEIGHTS)
    run_time = {name: getattr(policy, name) for name in policy.run_time_settings}
    steps = _steps_between_chunks(policy, executor)
    label = _label(policy, executor)
    return EvaluatedPolicy(
        stem=f"{description.spec.task}-{description.network['name']}-{label}",
        label=label,
        task=description.task,
        identity={"weights": weights, "setting": policy.label, "run_time": run_time},
        facts={**_facts(policy, description, checkpoint, steps), "executor": executor},
        make_policy=functools.partial(make_policy, checkpoint.absolute(), settings),
        latency=functools.partial(_measured_latency, policy, config.latency_observations, steps),
    )


def _label(policy: Policy, executor: Json) -> str:
    return policy.label if executor == CHUNK_EXECUTOR else f"{policy.label} {in_words(executor)}"


def resolved_checkpoint(run: str, run_root: str) -> Path:
    """The checkpoint that a user means: a path, or the name of a run of `train` or `distill` under run_root."""
    named = Path(run)
    if named.name == "summary.json":
        return find_checkpoint(named.parent)
    under_root = [path for command in TRAINING if (path := Path(run_root) / command / named).is_dir()]
    return find_checkpoint(under_root[0] if under_root else named)


def make_policy(checkpoint: Path, settings: dict[str, Any], task: Task) -> DenoisingPolicy:
    """A policy for a worker process, with one thread: the processes already use the cores."""
    import torch

    torch.set_num_threads(1)
    policy, _ = load_configured(checkpoint, settings)
    return policy


def observations_of(rollout: Rollout) -> list[Observation]:
    """The observations of a rollout, one every control step."""
    episode = rollout.episode
    return [
        Observation(
            state={name: rows[t] for name, rows in episode.state.items()},
            images={name: rows[t] for name, rows in episode.images.items()},
            instruction=episode.instruction,
            time_s=float(episode.time_s[t]),
        )
        for t in range(episode.length)
    ]


def _steps_between_chunks(policy: Policy, executor: Json) -> int:
    """Control steps from one chunk to the next.

    Raises:
        UserError: an unknown executor, or settings that it cannot work with.
    """
    return make_executor(executor, policy).steps_between_chunks(policy.action_steps)


def _facts(
    policy: DenoisingPolicy, description: PolicyDescription, checkpoint: Path, steps_between_chunks: int
) -> Json:
    calls = policy.calls_per_observation
    return {
        "task": description.spec.task,
        "policy": description.policy["name"],
        "network": description.network["name"],
        "encoder": description.encoder["name"],
        "setting": policy.label,
        "run_time_settings": {name: getattr(policy, name) for name in policy.run_time_settings},
        "checkpoint": {
            "run": str(checkpoint),
            "step": description.step,
            **{key: description.provenance[key] for key in ("config_hash", "method_hash", "seed")},
        },
        "parameters": sum(parameter.numel() for parameter in policy.parameters()),
        "horizon": description.spec.horizon,
        "action_steps": policy.action_steps,
        "history": policy.history,
        "buffer": policy.horizon,
        "network_calls_per_observation": calls,
        "network_calls_per_action": calls / steps_between_chunks,
        "first_observation_calls": policy.first_observation_calls,
    }


def _server(config: DictConfig) -> EvaluatedPolicy:
    settings = ServerSettings(**plain(config.server), api_key=os.environ.get(API_KEY_VARIABLE))
    task = plain(config.task)
    spec = task_spec(task)
    policy = RemotePolicy(spec, settings)
    executor = plain(config.executor)
    return EvaluatedPolicy(
        stem=f"{spec.task}-server",
        label=_label(policy, executor),
        task=task,
        # Our own server says which weights it serves; of one that says nothing the address has to do.
        identity={"setting": policy.label, **{key: policy.metadata.get(key) for key in ("weights", "policy")}},
        facts={**_foreign_facts("server", settings.address, policy, spec), "executor": executor},
        make_policy=functools.partial(_remote_policy, settings),
        latency=functools.partial(_latency_of, _steps_between_chunks(policy, executor)),
    )


def _remote_policy(settings: ServerSettings, task: Task) -> RemotePolicy:
    return RemotePolicy(task.spec, settings)


def _lerobot(config: DictConfig) -> EvaluatedPolicy:
    task, executor, settings = plain(config.task), plain(config.executor), plain(config.lerobot)
    spec = task_spec(task)
    policy = LeRobotDiffusion(spec, **settings)
    steps = _steps_between_chunks(policy, executor)
    calls = policy.calls_per_observation
    return EvaluatedPolicy(
        stem=f"{spec.task}-lerobot",
        label=_label(policy, executor),
        task=task,
        identity={"setting": policy.label, "weights": fingerprint(settings["path"])},
        facts={
            **_foreign_facts("lerobot", settings["path"], policy, spec),
            "parameters": policy.parameters,
            "buffer": policy.horizon,
            "network_calls_per_observation": calls,
            "network_calls_per_action": calls / steps,
            "first_observation_calls": calls,
            "executor": executor,
        },
        make_policy=functools.partial(_lerobot_policy, settings),
        latency=functools.partial(_measured_latency, policy, config.latency_observations, steps),
    )


def _lerobot_policy(settings: Json, task: Task) -> LeRobotDiffusion:
    """For a worker process, with one thread: the processes already use the cores."""
    import torch

    torch.set_num_threads(1)
    return LeRobotDiffusion(task.spec, **settings)


def _expert(config: DictConfig) -> EvaluatedPolicy:
    config = with_teacher_content(config)
    task, expert, executor = plain(config.task), plain(config.expert), plain(config.executor)
    label = f"expert {expert['name']}"
    built = make_task(task)
    try:
        policy = _expert_policy(expert, label, built)  # settings that do not fit are named here
        facts = _foreign_facts("expert", label, policy, built.spec)
        stem = f"{built.spec.task}-expert-{expert['name']}"
    finally:
        built.close()
    return EvaluatedPolicy(
        stem=stem,
        label=_label(policy, executor),
        task=task,
        identity={"setting": label, "teacher": expert.get("sha256")},
        facts={**facts, "network_calls_per_observation": 0, "network_calls_per_action": 0, "executor": executor},
        make_policy=functools.partial(_expert_policy, expert, label),
        latency=functools.partial(_latency_of, _steps_between_chunks(policy, executor)),
    )


def _expert_policy(expert: Json, label: str, task: Task) -> ExpertPolicy:
    return ExpertPolicy(task, make_expert(task, expert), label)


def task_spec(config: Json) -> TaskSpec:
    """Of the task that this configuration makes."""
    task = make_task(config)
    try:
        return task.spec
    finally:
        task.close()


def _foreign_facts(kind: str, source: str, policy: Policy, spec: TaskSpec) -> Json:
    """For the summary; null is what nobody here can know of it."""
    return {
        "task": spec.task,
        "policy": kind,
        "network": None,
        "setting": policy.label,
        "run_time_settings": {},
        "checkpoint": {"run": source, "step": None, "config_hash": None, "method_hash": source, "seed": None},
        "parameters": None,
        "horizon": spec.horizon,
        "action_steps": policy.action_steps,
        "history": policy.history,
        "buffer": None,
        "network_calls_per_observation": None,
        "network_calls_per_action": None,
        "first_observation_calls": None,
    }


def _measured_latency(policy: TimedPolicy, observations: int, steps_between_chunks: int, rollout: Rollout) -> Json:
    """Of so many observations of one episode, alone in this process."""
    return measure_latency(policy, observations_of(rollout), observations, steps_between_chunks=steps_between_chunks)


def _latency_of(steps_between_chunks: int, rollout: Rollout) -> Json:
    """Of the chunks of one episode, as they were asked for in it; the first one apart."""
    first_ms, *rest = (float(value) for value in rollout.latency_ms)
    samples = rest or [first_ms]
    return {
        "observation_ms": latency_summary(samples),
        "action_ms": latency_summary([value / steps_between_chunks for value in samples]),
        "first_observation_ms": first_ms,
        "threads": 1,
    }
