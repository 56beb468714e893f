"""`embodied eval`: a checkpoint, a policy server or an expert on addressed starts, with intervals and latency."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf, open_dict

from embodied.catalog import CHUNK_EXECUTOR, chosen_variants, make_task, nearest
from embodied.commands.eval_report import write_report
from embodied.commands.evaluated_policy import EvaluatedPolicy, evaluated_policy
from embodied.console import Progress, say
from embodied.errors import UserError
from embodied.evaluation.breakdown import by_axis, by_protocol, by_variant, overall
from embodied.evaluation.result_file import BASE, RESULTS, EpisodeAddress, ResultFile
from embodied.evaluation.runner import EvaluationPlan, MakePool, Recordings, evaluate
from embodied.policies.seeded_noise import mixed_seed
from embodied.process_pool import pool_of
from embodied.protocols import Task, Variant
from embodied.ray_pool import RayPool
from embodied.replay.rollout_file import SavedRollout, save_rollout
from embodied.run_directory import RunDirectory, find_run
from embodied.types import Json, Rollout

HOW = ("engine", "ray_address")  # keys of conf/evaluation that change no result
RECORDED_AS = ("rerun", "video")


def run(config: DictConfig) -> Path:
    """Evaluate what the configuration names (conf/eval.yaml).

    Raises:
        UserError: nothing that can be evaluated so, or a run to resume that was of another policy.
    """
    config = _as_it_began(config)
    check(config)
    policy = evaluated_policy(config)
    variants = chosen_variants(policy.facts["task"], config.variants)
    with open_dict(config):
        config.update(policy.identity)
    directory = RunDirectory.open("eval", policy.stem, config, volatile=["run", "policy", "lerobot.path", *HOW])
    with directory.lock():
        if directory.is_finished:
            say(f"{directory.path} is finished already (force=true makes a new one beside it)")
            return directory.path / "summary.json"
        began = OmegaConf.to_container(OmegaConf.masked_copy(directory.config, list(policy.identity)))
        if began != policy.identity:
            raise UserError(
                expected=f"the weights and settings that {directory.path} began with",
                found=f"others in {policy.facts['checkpoint']['run']}",
                remedy="name the checkpoint that it began with, or evaluate this one without resume=",
            )
        return _evaluate(directory, policy, variants)


def _as_it_began(config: DictConfig) -> DictConfig:
    """Of a resumed evaluation the policy, its settings and its task are those that it began with."""
    if config.resume is None:
        return config
    began = find_run(str(config.resume), commands=["eval"], run_root=config.run_root) / "config.yaml"
    saved = OmegaConf.load(began)
    kept = {key: saved[key] for key in ("run", "policy", "server", "lerobot", "task", "expert") if key in saved}
    merged = OmegaConf.merge(config, kept)
    merged.executor = saved.get("executor", CHUNK_EXECUTOR)  # whole: settings of two executors do not go together
    return merged  # type: ignore[return-value]


def check(config: DictConfig) -> None:
    """Check the keys of conf/evaluation before anything takes time.

    Raises:
        UserError: a number below what makes sense, or a word that means nothing.
    """
    leasts = {"episodes": 1, "latency_observations": 1, "first_start": 0, "delay_steps": 0, "action_noise": 0}
    if isinstance(config.recordings, int) and not isinstance(config.recordings, bool):
        leasts["recordings"] = 0
    elif config.recordings not in ("all", "failures"):
        raise UserError(
            expected="recordings as a number, all, or failures",
            found=str(config.recordings),
            remedy="set recordings=0 for none",
        )
    for name, least in leasts.items():
        if config[name] < least:
            raise UserError(
                expected=f"{name} of at least {least}", found=str(config[name]), remedy=f"set {name}={least} or more"
            )
    for name, words in (("engine", ("processes", "ray")), ("recorded_as", RECORDED_AS)):
        if config[name] not in words:
            raise UserError(
                expected=f"{name} {' or '.join(words)}",
                found=str(config[name]),
                remedy=nearest(str(config[name]), words),
            )


def make_variant(config: Json, variant: str) -> Task:
    """A task as its configuration says, in one variant."""
    return make_task(config if variant == BASE else {**config, "variant": variant})


def draw(task: Task, rollout: Rollout) -> SavedRollout:
    """What a recording shows, as the process with the simulator can tell it."""
    return SavedRollout(rollout, task.scene(), task.body_poses(rollout.episode.physics), task.spec)


def keep(folder: Path, title: str, recorded_as: str, address: EpisodeAddress, saved: SavedRollout) -> str:
    """A rollout and its recording in the run directory; returns the recording's name within it."""
    variant = "" if address.variant == BASE else f"{re.sub(r'[^A-Za-z0-9_.]+', '-', address.variant)}-"
    name = f"{variant}{address.start}"
    for part in ("rollouts", "recordings"):
        (folder / part).mkdir(exist_ok=True)
    save_rollout(folder / "rollouts" / f"{name}.npz", saved.rollout, saved.scene, saved.body_poses, saved.spec)
    if recorded_as == "video":
        from embodied.replay.video import write_video

        write_video(folder / "recordings" / f"{name}.mp4", saved.rollout.episode.images, saved.spec.control_hz)
        return f"recordings/{name}.mp4"
    from embodied.replay.recording import write_recording  # seconds to import

    write_recording(folder / "recordings" / f"{name}.rrd", saved, f"{title}, start {name}")
    return f"recordings/{name}.rrd"


def _pool(config: DictConfig) -> MakePool:
    if config.engine == "ray":
        return functools.partial(RayPool, workers=config.workers, address=config.ray_address)
    return functools.partial(pool_of, workers=config.workers)


def _recordings(config: DictConfig, policy: EvaluatedPolicy) -> Recordings:
    """As configured.

    Raises:
        UserError: videos of a task without cameras.
    """
    if config.recorded_as == "video" and config.recordings != 0 and not policy.task.get("cameras", True):
        raise UserError(
            expected=f"cameras of {policy.facts['task']} for recorded_as=video",
            found="none",
            remedy="record with recorded_as=rerun, which needs none",
        )
    return config.recordings


def _evaluate(directory: RunDirectory, policy: EvaluatedPolicy, variants: Sequence[Variant]) -> Path:
    config = directory.config
    title = f"{policy.facts['task']}, {policy.label}"
    plan = EvaluationPlan(
        make_task=functools.partial(make_variant, policy.task),
        make_policy=policy.make_policy,
        draw=draw,
        keep=functools.partial(keep, directory.path, title, config.recorded_as),
        policy_seed=functools.partial(mixed_seed, config.policy_seed),
        starts=range(config.first_start, config.first_start + config.episodes),
        recordings=_recordings(config, policy),
        variants=[variant.id for variant in variants],
        axes=[variant.axis for variant in variants],
        delay_steps=config.delay_steps,
        action_noise=config.action_noise,
        executor=policy.facts["executor"],
    )
    begun_s = time.perf_counter()
    done = len(ResultFile(directory.path / RESULTS).read())
    with Progress(f"eval {policy.label}", len(plan.addresses), "episodes", done=done) as progress:

        def report(rows: list[Json]) -> None:
            ran = [row["success_ever"] for row in rows if row["error"] is None]
            progress.advance(len(rows) - progress.done, **({"success": float(np.mean(ran))} if ran else {}))

        rows, rollout = evaluate(plan, directory.path, _pool(config), report)
    timings = {"wall_s": time.perf_counter() - begun_s, "latency": policy.latency(rollout)}
    result = {**overall(rows), **policy.facts, **_variant_figures(rows, variants)}
    result |= {"delay_steps": config.delay_steps, "action_noise": config.action_noise}
    result["timings"] = timings
    summary = directory.write_summary({**result, "report": write_report(directory.path, result)})
    _say(policy, result, timings["latency"]["observation_ms"])
    return summary


def _variant_figures(rows: Sequence[Json], variants: Sequence[Variant]) -> Json:
    return {
        "variants": by_variant(rows, variants),
        "axes": by_axis(rows, variants),
        "protocols": by_protocol(rows, variants),
    }


def _say(policy: EvaluatedPolicy, result: Json, latency_ms: Json) -> None:
    ever, calls = result["success"]["ever"], result["network_calls_per_observation"]
    says = "" if calls is None else f"{calls:g} network calls and "
    say(
        f"{policy.label}: success {ever['k']}/{ever['n']} [{ever['low']:.3f}, {ever['high']:.3f}], {_graded(result)}"
        f"{_errors(result)}{says}{latency_ms['p50']:.2f} ms an observation (p95 {latency_ms['p95']:.2f})"
    )
    if len(result["variants"]) == 1:
        return
    for axis in result["axes"]:
        rate = axis["success"]["ever"]
        if rate is None:
            continue
        difference = axis["difference"]
        against = (
            ""
            if difference is None
            else (f", {difference['estimate']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}] against base")
        )
        say(f"  {axis['axis']}: {rate['k']}/{rate['n']} [{rate['low']:.3f}, {rate['high']:.3f}]{against}")
    for mean in result["protocols"]:
        say(
            f"  {mean['protocol']}, mean over {mean['variants']} variants: {mean['ever']['mean']:.3f} "
            f"[{mean['ever']['low']:.3f}, {mean['ever']['high']:.3f}], at the last step {mean['last']['mean']:.3f}"
        )


def _errors(result: Json) -> str:
    return f"{result['errors']} could not be run, " if result["errors"] else ""


def _graded(result: Json) -> str:
    """The mean maximum reward in words; nothing where rewards are all 0 or 1 and say no more than success does."""
    if all(row["return"] == round(row["return"]) for row in result["episodes"]):
        return ""
    reward = result["mean_max_reward"]
    return f"mean maximum reward {reward['mean']:.3f} [{reward['low']:.3f}, {reward['high']:.3f}], "
