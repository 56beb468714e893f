"""`embodied eval`: a checkpoint on addressed starts, over processes, with intervals and latency."""

from __future__ import annotations

import functools
import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf, open_dict

from embodied.catalog import make_task
from embodied.console import Progress, say
from embodied.errors import UserError
from embodied.evaluation.latency import measure_latency
from embodied.evaluation.runner import RESULTS, EvaluationPlan, ResultFile, evaluate
from embodied.evaluation.statistics import bootstrap_mean_interval, wilson_interval
from embodied.policies.denoising_policy import DenoisingPolicy
from embodied.policies.policy_file import WEIGHTS, PolicyDescription, load_policy
from embodied.policies.seeded_noise import mixed_seed
from embodied.replay.rollout_file import SavedRollout, save_rollout
from embodied.run_directory import RunDirectory, find_run
from embodied.training.checkpoint import find_checkpoint
from embodied.types import Json, Observation, Rollout


def run(config: DictConfig) -> Path:
    """Evaluate the checkpoint that `config.run` names (conf/eval.yaml).

    Raises:
        UserError: no such checkpoint, settings that it cannot run with, or a run to resume that was of another one.
    """
    config = _as_it_began(config)
    check(config)
    checkpoint = _resolve(config)
    settings = {name: value for name, value in config.policy.items() if value is not None}
    policy, description = load_policy(checkpoint)
    policy.configure(**settings)
    # The weights' hash makes the run's name: the same checkpoint under another path is the same evaluation, and a
    # retrained one is not. So do the settings that hold, whether they were given or are the checkpoint's own.
    weights = hashlib.sha256((checkpoint / WEIGHTS).read_bytes()).hexdigest()
    run_time = {name: getattr(policy, name) for name in policy.run_time_settings}
    with open_dict(config):
        config.update({"weights": weights, "setting": policy.label, "run_time": run_time})
    stem = f"{description.spec.task}-{description.network['name']}-{policy.label}"
    directory = RunDirectory.open("eval", stem, config, volatile=["run", "policy"])
    with directory.lock():
        if directory.is_finished:
            say(f"{directory.path} is finished already (force=true makes a new one beside it)")
            return directory.path / "summary.json"
        if directory.config.weights != weights or dict(directory.config.run_time) != run_time:
            raise UserError(
                expected=f"the weights and settings that {directory.path} began with",
                found=f"others in {checkpoint}",
                remedy="name the checkpoint that it began with, or evaluate this one without resume=",
            )
        return _evaluate(directory, checkpoint, settings, policy, description)


def _as_it_began(config: DictConfig) -> DictConfig:
    """Of a resumed evaluation the checkpoint and the policy's settings are those that it began with."""
    if config.resume is None:
        return config
    began = find_run(str(config.resume), commands=["eval"], run_root=config.run_root) / "config.yaml"
    saved = OmegaConf.load(began)
    return OmegaConf.merge(config, {"run": saved.run, "policy": saved.policy})  # type: ignore[return-value]


def check(config: DictConfig) -> None:
    """Check numbers (conf/evaluation) before anything takes time.

    Raises:
        UserError: a number below what makes sense.
    """
    for name, least in (("episodes", 1), ("recordings", 0), ("latency_observations", 1), ("first_start", 0)):
        if config[name] < least:
            raise UserError(
                expected=f"{name} of at least {least}", found=str(config[name]), remedy=f"set {name}={least} or more"
            )


def _resolve(config: DictConfig) -> Path:
    """The checkpoint that run= names: a path, or the name of a training run under run_root."""
    named = Path(config.run)
    under_root = Path(config.run_root) / "train" / named
    return find_checkpoint(
        named.parent if named.name == "summary.json" else under_root if under_root.is_dir() else named
    )


def make_policy(checkpoint: Path, settings: dict[str, Any]) -> DenoisingPolicy:
    """A policy for a worker process, with one thread: the processes already use the cores."""
    import torch

    torch.set_num_threads(1)
    policy, _ = load_policy(checkpoint)
    policy.configure(**settings)
    return policy


def record_rollout(folder: Path, title: str, task: Any, rollout: Rollout) -> str:
    """Keep a rollout and its Rerun recording in the run directory; returns the recording's name within it."""
    from embodied.replay.recording import write_recording  # seconds to import, which most worker processes save

    start = rollout.episode.seed
    rollouts, recordings = folder / "rollouts", folder / "recordings"
    rollouts.mkdir(exist_ok=True)
    recordings.mkdir(exist_ok=True)
    saved = SavedRollout(rollout, task.scene(), task.body_poses(rollout.episode.physics), task.spec)
    save_rollout(rollouts / f"{start}.npz", saved.rollout, saved.scene, saved.body_poses, saved.spec)
    write_recording(recordings / f"{start}.rrd", saved, f"{title}, start {start}")
    return f"recordings/{start}.rrd"


def _evaluate(
    directory: RunDirectory,
    checkpoint: Path,
    settings: dict[str, Any],
    policy: DenoisingPolicy,
    description: PolicyDescription,
) -> Path:
    config = directory.config
    plan = EvaluationPlan(
        make_task=functools.partial(make_task, description.task),
        make_policy=functools.partial(make_policy, checkpoint, settings),
        record=functools.partial(record_rollout, directory.path, f"{description.spec.task}, {policy.label}"),
        policy_seed=functools.partial(mixed_seed, config.policy_seed),
        starts=range(config.first_start, config.first_start + config.episodes),
        recordings=config.recordings,
    )
    begun_s = time.perf_counter()
    done = len(ResultFile(directory.path / RESULTS).read())
    with Progress(f"eval {policy.label}", config.episodes, "episodes", done=done) as progress:

        def report(rows: list[Json]) -> None:
            ran = [row["success_ever"] for row in rows if row["error"] is None]
            progress.advance(len(rows) - progress.done, **({"success": float(np.mean(ran))} if ran else {}))

        rows, rollout = evaluate(plan, directory.path, config.workers, report)
    timings = {
        "wall_s": time.perf_counter() - begun_s,
        "latency": measure_latency(policy, observations_of(rollout), config.latency_observations),
    }
    result = {**_figures(rows), **_facts(policy, description, checkpoint), "timings": timings}
    summary = directory.write_summary(result)
    ever, latency = result["success"]["ever"], timings["latency"]["observation_ms"]
    calls = policy.calls_per_observation
    say(
        f"{policy.label}: success {ever['k']}/{ever['n']} [{ever['low']:.3f}, {ever['high']:.3f}], "
        f"{_graded(result)}{calls} network calls and {latency['p50']:.2f} ms an observation (p95 {latency['p95']:.2f})"
    )
    return summary


def _graded(result: Json) -> str:
    """The mean maximum reward in words; nothing where rewards are all 0 or 1 and say no more than success does."""
    if all(row["return"] == round(row["return"]) for row in result["episodes"]):
        return ""
    reward = result["mean_max_reward"]
    return f"mean maximum reward {reward['mean']:.3f} [{reward['low']:.3f}, {reward['high']:.3f}], "


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


def _figures(rows: list[Json]) -> Json:
    ran = [row for row in rows if row["error"] is None]

    def success(key: str) -> Json:
        k, n = sum(row[key] for row in ran), len(ran)
        low, high = wilson_interval(k, n)
        return {"k": k, "n": n, "rate": k / n, "low": low, "high": high}

    steps = [row["first_success"] for row in ran if row["first_success"] is not None]
    return {
        "episodes": rows,
        "success": {"ever": success("success_ever"), "last": success("success_last")},
        "mean_return": float(np.mean([row["return"] for row in ran])),
        "mean_max_reward": _mean_max_reward([row["max_reward"] for row in ran]),
        "mean_steps_to_success": float(np.mean(steps)) if steps else None,
        "errors": len(rows) - len(ran),
    }


def _mean_max_reward(rewards: list[float]) -> Json:
    """The score of tasks whose reward is graded, such as Push-T: of each episode its best step."""
    low, high = bootstrap_mean_interval(rewards)
    return {"mean": float(np.mean(rewards)), "n": len(rewards), "low": low, "high": high}


def _facts(policy: DenoisingPolicy, description: PolicyDescription, checkpoint: Path) -> Json:
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
        "network_calls_per_action": calls / policy.action_steps,
        "first_observation_calls": policy.first_observation_calls,
    }
