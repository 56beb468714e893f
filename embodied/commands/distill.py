"""`embodied distill`: a student of one or few network calls from a trained teacher; then its evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

import embodied
from embodied.commands.evaluated_policy import resolved_checkpoint
from embodied.commands.training_run import (
    HOW_READ,
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
from embodied.errors import UserError
from embodied.fingerprint import fingerprint
from embodied.policies.denoising_policy import DenoisingPolicy
from embodied.policies.objectives.objective import make_objective
from embodied.policies.objectives.teacher import teacher_of
from embodied.policies.policy_file import (
    WEIGHTS,
    PolicyDescription,
    build_policy,
    load_policy,
    without_start_settings,
)
from embodied.run_directory import CONFIG, RunDirectory, find_run
from embodied.training.checkpoint import find_checkpoint
from embodied.training.data import DataSettings, TrainingData
from embodied.training.distillation import DistillationJob, stores_of, student_settings
from embodied.types import Json


def run(config: DictConfig) -> Path:
    """Distill what the configuration names (conf/distill.yaml).

    Raises:
        UserError: no teacher or one that cannot be distilled, settings that do not fit, demonstrations that are gone,
            or a run to resume whose teacher has changed.
    """
    config = _as_it_began(config)
    checkpoint = _teacher_checkpoint(config)
    teacher, description = load_policy(checkpoint)
    config = config.copy()
    with open_dict(config):  # the teacher is what its weights are, under whatever path
        config.teacher_weights = fingerprint(checkpoint / WEIGHTS)
    stem = f"{description.spec.task}-{config.objective.name}-{description.network['name']}-seed{config.seed}"
    volatile = ("teacher", *WHERE_EVALUATED, *HOW_READ)
    directory = RunDirectory.open("distill", stem, config, volatile=volatile)
    with directory.lock():
        if directory.is_finished:
            say(f"{directory.path} is finished already (force=true makes a new one beside it)")
            return directory.path / "summary.json"
        if directory.config.teacher_weights != config.teacher_weights:
            raise UserError(
                expected=f"the teacher's weights that {directory.path} began with",
                found=f"others in {checkpoint}",
                remedy="bring the teacher back, or distill the one there is without resume=",
            )
        return _distill(directory, checkpoint, teacher, description)


def _as_it_began(config: DictConfig) -> DictConfig:
    """Of a resumed distillation the teacher is the one that it began with."""
    if config.resume is None:
        return config
    saved = OmegaConf.load(find_run(str(config.resume), commands=["distill"], run_root=config.run_root) / CONFIG)
    return OmegaConf.merge(config, {"teacher": saved.get("teacher")})  # type: ignore[return-value]


def _teacher_checkpoint(config: DictConfig) -> Path:
    """
    Raises:
        UserError: none is named, or there is no checkpoint.
    """
    if config.teacher is None:
        raise UserError(
            expected="a teacher to distill",
            found="none",
            remedy="name a training run, for example embodied distill outputs/train/<run>",
        )
    return resolved_checkpoint(str(config.teacher), config.run_root)


def _distill(directory: RunDirectory, checkpoint: Path, teacher: DenoisingPolicy, about: PolicyDescription) -> Path:
    config = directory.config
    settings = training_settings(config)
    objective = plain(config.objective)
    make_objective(objective, teacher_of(teacher, about.policy["name"]))  # what does not fit is named here
    policy = student_settings(about, objective, plain(config.policy))
    encoder = without_start_settings(about.encoder)  # its weights are the teacher's
    run_time_settings = build_policy(about.spec, policy, about.network, encoder).run_time_settings
    stores, data = _data(config, about, checkpoint)
    TrainingData(stores, about.spec, data, allow_partial=config.data.allow_partial)  # and its mistakes here
    job = DistillationJob(
        folder=directory.path,
        stores=stores,
        spec=about.spec,
        task=about.task,
        policy=policy,
        network=about.network,
        encoder=encoder,
        data=data,
        settings=settings,
        seed=config.seed,
        init=None,
        allow_partial=config.data.allow_partial,
        provenance={
            "config_hash": directory.config_hash,
            "method_hash": method_hash(config, ("teacher", *WHERE_EVALUATED), run_time_settings),
            "store": ", ".join(map(str, stores)),
            "teacher": str(checkpoint),
            "teacher_weights": config.teacher_weights,
            "objective": objective,
            "code_version": embodied.__version__,
        },
        teacher=checkpoint.absolute(),
        objective=objective,
    )
    result = train_with_progress(directory, job, f"distill {objective['name']}")
    evaluation = evaluate_last(directory)
    return directory.write_summary(
        {
            "task": about.spec.task,
            "policy": policy["name"],
            "network": about.network["name"],
            "encoder": about.encoder["name"],
            "objective": objective,
            "teacher": _described(checkpoint, teacher, about),
            **result,
            "checkpoint": str(find_checkpoint(directory.path).relative_to(directory.path)),
            "evaluation": evaluation,
        }
    )


def _data(config: DictConfig, about: PolicyDescription, checkpoint: Path) -> tuple[tuple[Path, ...], DataSettings]:
    """The named stores or the teacher's, and how they are read."""
    data = data_settings(config)
    if config.data.store is not None:
        return named_stores(config), data
    stores, weights = stores_of(about, checkpoint)
    return stores, replace(data, weights=weights)


def _described(checkpoint: Path, teacher: DenoisingPolicy, about: PolicyDescription) -> Json:
    return {
        "run": str(checkpoint),
        "step": about.step,
        "policy": about.policy["name"],
        "setting": teacher.label,
        "network_calls_per_observation": teacher.calls_per_observation,
        **{key: about.provenance.get(key) for key in ("config_hash", "method_hash", "seed")},
    }
