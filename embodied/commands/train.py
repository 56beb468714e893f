"""`embodied train`: one policy from a store, which is collected first if need be; then its evaluation."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

import embodied
from embodied.catalog import STATE_ENCODER, TASK_EXPERT
from embodied.commands import collect as collect_command
from embodied.commands import eval as eval_command
from embodied.configuration import check
from embodied.console import Progress, say
from embodied.errors import UserError
from embodied.fingerprint import fingerprint
from embodied.policies.policy_file import build_policy, read_description
from embodied.run_directory import VOLATILE, RunDirectory, config_hash
from embodied.training.checkpoint import find_checkpoint, newest_description
from embodied.training.data import DataSettings, TrainingData
from embodied.training.job import TrainingJob, run_on_processes
from embodied.training.loggers import check_loggers
from embodied.training.loop import TrainingSettings

SHARED_RUN_KEYS = ("run_root", "workers")
HOW_READ = ("data.image_cache", "data.image_cache_gb", "data.read_ahead")
WHERE_EVALUATED = tuple(f"eval.{key}" for key in eval_command.HOW)
WHERE_COLLECTED = tuple(f"collect.{key}" for key in collect_command.WHERE)


def run(config: DictConfig) -> Path:
    encoder = [] if config.encoder.name == STATE_ENCODER["name"] else [config.encoder.name]
    names = [config.task.name, config.policy.name, config.network.name, *encoder, f"seed{config.seed}"]
    config = _with_weights_content(collect_command.with_teacher_content(config))
    volatile = (*WHERE_COLLECTED, *WHERE_EVALUATED, *HOW_READ)
    directory = RunDirectory.open("train", "-".join(names), config, volatile=volatile)
    with directory.lock():
        if directory.is_finished:
            say(f"{directory.path} is finished already (force=true makes a new one beside it)")
            return directory.path / "summary.json"
        return _train(directory)


def _with_weights_content(config: DictConfig) -> DictConfig:
    """The configuration with the hash of the encoder's first weights in it, so that other content is another run.

    Raises:
        UserError: there is no such file.
    """
    if config.encoder.get("weights") is None or config.encoder.sha256 is not None:
        return config
    config = config.copy()
    config.encoder.sha256 = fingerprint(str(config.encoder.weights))
    return config


def _plain(config: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def _train(directory: RunDirectory) -> Path:
    config = directory.config
    settings = TrainingSettings(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in _plain(config.training).items()}
    )
    task, policy, network = _plain(config.task), _plain(config.policy), _plain(config.network)
    # A run that began before there were encoders goes on without one in its configuration.
    encoder = _plain(config.encoder) if "encoder" in config else dict(STATE_ENCODER)
    spec = collect_command.task_spec(task, _plain(config.expert) if config.data.store is None else None)
    # Settings that do not fit must fail before minutes of collection and training.
    run_time_settings = build_policy(spec, policy, network, encoder).run_time_settings
    _check_settings(config, settings)
    data = _data_settings(config)
    stores = demonstrations(directory)
    TrainingData(stores, spec, data, allow_partial=config.data.allow_partial)  # its mistakes are named here
    job = TrainingJob(
        folder=directory.path,
        stores=stores,
        spec=spec,
        task=task,
        policy=policy,
        network=network,
        encoder=encoder,
        data=data,
        settings=settings,
        seed=config.seed,
        init=config.init,
        allow_partial=config.data.allow_partial,
        provenance={
            "config_hash": directory.config_hash,
            "method_hash": config_hash(
                config,
                (
                    *VOLATILE,
                    *WHERE_COLLECTED,
                    *HOW_READ,
                    "seed",
                    "eval",
                    *(f"policy.{name}" for name in run_time_settings),
                ),
            ),
            "store": ", ".join(map(str, stores)),
            "init": config.init,
            "code_version": embodied.__version__,
        },
    )
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    reached = newest_description(directory.path)
    done = reached.step if reached else 0
    if done:
        say(f"going on from step {done} of {directory.path}")
    with Progress("train", settings.steps, "steps", done=done) as progress:
        result = run_on_processes(job, lambda step, news: progress.advance(step - progress.done, **_shown(news)))
        progress.advance(settings.steps - progress.done)
    evaluation = _evaluate(directory)
    return directory.write_summary(
        {
            "task": spec.task,
            "policy": policy["name"],
            "network": network["name"],
            "encoder": encoder["name"],
            **result,
            "checkpoint": str(find_checkpoint(directory.path).relative_to(directory.path)),
            "evaluation": evaluation,
        }
    )


def _check_settings(config: DictConfig, settings: TrainingSettings) -> None:
    """What would otherwise be found out minutes later.

    Raises:
        UserError: a seed below 0, or settings of the collection, the evaluation, the loggers or the start that do not
            fit.
    """
    if config.seed < 0:
        raise UserError(expected="a seed of at least 0", found=str(config.seed), remedy="set seed=0 or more")
    if config.data.store is None:
        collect_command.settings(config.collect)
    eval_command.check(config.eval)
    check_loggers(settings.loggers)
    if config.init is not None:
        read_description(find_checkpoint(Path(str(config.init))))


def _shown(news: dict[str, float]) -> dict[str, float]:
    return {name.replace("_", " "): news[name] for name in ("loss", "validation_loss") if name in news}


def _data_settings(config: DictConfig) -> DataSettings:
    data = _plain(config.data)
    if data.get("weights") is not None and not isinstance(data["store"], list):
        raise UserError(
            expected="several stores to weight",
            found=f"data.store={data['store']}",
            remedy="name them as data.store=[one.zarr,other.zarr], or leave data.weights null",
        )
    cache = data.get("image_cache")
    return DataSettings(
        weights=None if data.get("weights") is None else tuple(data["weights"]),
        image_cache=None if cache is None else Path(cache),
        image_cache_gb=data.get("image_cache_gb"),
        read_ahead=data.get("read_ahead", 0),  # a run that began before there was any
    )


def demonstrations(directory: RunDirectory) -> tuple[Path, ...]:
    """The named stores, or the demonstrations of `embodied collect` with this task and collection: made if missing."""
    config = directory.config
    if config.data.store is not None:
        named = config.data.store
        return tuple(Path(str(path)) for path in (named if OmegaConf.is_list(named) else [named]))
    collect_config = OmegaConf.create(
        {
            **{key: config[key] for key in SHARED_RUN_KEYS},
            "name": None,
            "force": False,
            "resume": None,
            "task": config.task,
            "expert": config.expert,
            **config.collect,
            "store": None,
        }
    )
    collection = collect_command.open_run(collect_config)
    if not collect_command.is_finished(collection):
        wanted = f"{config.collect.episodes} with {_named(config.expert)}"
        say(f"no demonstrations of {config.task.name} yet: collecting {wanted}")
        collect_command.run(collect_config)
    return (collect_command.store_path(collection),)


def _named(expert: DictConfig) -> str:
    """The expert in words."""
    if expert.name == TASK_EXPERT["name"]:
        return "its expert"
    return f"the {expert.name} teacher {expert.get('path') or expert.get('target')}"


def _evaluate(directory: RunDirectory) -> dict[str, Any]:
    config = directory.config
    shared = {key: config[key] for key in SHARED_RUN_KEYS}
    # What the training does not say is as for `embodied eval`, which so finds this evaluation again.
    eval_config = OmegaConf.merge(check("eval", []), config.eval, {**shared, "run": str(directory.path)})
    path = eval_command.run(eval_config)
    summary = json.loads(path.read_text())
    return {
        "path": os.path.relpath(path.parent, directory.path),
        "setting": summary["setting"],
        "success": summary["success"],
    }
