"""`embodied train`: one policy from a store, which is collected first if need be; then its evaluation."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

import embodied
from embodied.catalog import STATE_ENCODER, TASK_EXPERT
from embodied.commands import collect as collect_command
from embodied.commands.training_run import (
    HOW_READ,
    SHARED_RUN_KEYS,
    WHERE_EVALUATED,
    data_settings,
    evaluate_last,
    method_hash,
    named_stores,
    train_with_progress,
    training_settings,
)
from embodied.configuration import plain
from embodied.console import say
from embodied.fingerprint import fingerprint
from embodied.policies.policy_file import build_policy, read_description
from embodied.run_directory import RunDirectory
from embodied.training.checkpoint import find_checkpoint
from embodied.training.data import TrainingData
from embodied.training.job import TrainingJob

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


def _train(directory: RunDirectory) -> Path:
    config = directory.config
    settings = training_settings(config)
    task, policy, network = plain(config.task), plain(config.policy), plain(config.network)
    # A run that began before there were encoders goes on without one in its configuration.
    encoder = plain(config.encoder) if "encoder" in config else dict(STATE_ENCODER)
    spec = collect_command.task_spec(task, plain(config.expert) if config.data.store is None else None)
    # Settings that do not fit must fail before minutes of collection and training.
    run_time_settings = build_policy(spec, policy, network, encoder).run_time_settings
    _check_settings(config)
    data = data_settings(config)
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
            "method_hash": method_hash(config, WHERE_COLLECTED, run_time_settings),
            "store": ", ".join(map(str, stores)),
            "init": config.init,
            "code_version": embodied.__version__,
        },
    )
    result = train_with_progress(directory, job, "train")
    evaluation = evaluate_last(directory)
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


def _check_settings(config: DictConfig) -> None:
    """What would otherwise be found out minutes later.

    Raises:
        UserError: settings of the collection or of the start that do not fit.
    """
    if config.data.store is None:
        collect_command.settings(config.collect)
    if config.init is not None:
        read_description(find_checkpoint(Path(str(config.init))))


def demonstrations(directory: RunDirectory) -> tuple[Path, ...]:
    """The named stores, or the demonstrations of `embodied collect` with this task and collection: made if missing."""
    config = directory.config
    if config.data.store is not None:
        return named_stores(config)
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
