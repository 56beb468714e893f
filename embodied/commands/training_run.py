"""What the commands that train share: settings, progress, and the evaluation at the end."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from embodied.commands import eval as eval_command
from embodied.configuration import check, plain
from embodied.console import Progress, say
from embodied.errors import UserError
from embodied.run_directory import VOLATILE, RunDirectory, config_hash
from embodied.training.checkpoint import newest_description
from embodied.training.data import DataSettings
from embodied.training.job import TrainingJob, run_on_processes
from embodied.training.loggers import check_loggers
from embodied.training.loop import TrainingSettings
from embodied.types import Json

SHARED_RUN_KEYS = ("run_root", "workers")
HOW_READ = ("data.image_cache", "data.image_cache_gb", "data.read_ahead")
WHERE_EVALUATED = tuple(f"eval.{key}" for key in eval_command.HOW)


def training_settings(config: DictConfig) -> TrainingSettings:
    """conf/training, and the checks of what would otherwise be found out minutes later.

    Raises:
        UserError: settings of the training, its loggers or the evaluation that do not fit, or a seed below 0.
    """
    if config.seed < 0:
        raise UserError(expected="a seed of at least 0", found=str(config.seed), remedy="set seed=0 or more")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain(config.training).items()}
    settings = TrainingSettings(**values)
    eval_command.check(config.eval)
    check_loggers(settings.loggers)
    return settings


def data_settings(config: DictConfig) -> DataSettings:
    data = plain(config.data)
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


def named_stores(config: DictConfig) -> tuple[Path, ...]:
    """Those of data.store=, one or several."""
    named = config.data.store
    return tuple(Path(str(path)) for path in (named if OmegaConf.is_list(named) else [named]))


def method_hash(config: DictConfig, where: Sequence[str], run_time_settings: Sequence[str]) -> str:
    """Of what makes the method: not the seed, nor what may be changed once it is trained.

    Args:
        where: dotted keys that change no result.
    """
    run_time = (f"policy.{name}" for name in run_time_settings)
    return config_hash(config, (*VOLATILE, *where, *HOW_READ, "seed", "eval", *run_time))


def train_with_progress(directory: RunDirectory, job: TrainingJob, title: str) -> Json:
    """Run the job from where it stands, and return its figures.

    Args:
        title: of the progress bar.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    reached = newest_description(directory.path)
    done = reached.step if reached else 0
    if done:
        say(f"going on from step {done} of {directory.path}")
    with Progress(title, job.settings.steps, "steps", done=done) as progress:
        result = run_on_processes(job, lambda step, news: progress.advance(step - progress.done, **_shown(news)))
        progress.advance(job.settings.steps - progress.done)
    return result


def _shown(news: dict[str, float]) -> dict[str, float]:
    return {name.replace("_", " "): news[name] for name in ("loss", "validation_loss") if name in news}


def evaluate_last(directory: RunDirectory) -> dict[str, Any]:
    """Evaluate the last checkpoint as the run's `eval` says, for the summary."""
    config = directory.config
    shared = {key: config[key] for key in SHARED_RUN_KEYS}
    # What the training does not say is as for `embodied eval`, which so finds this evaluation again.
    eval_config = OmegaConf.merge(check("eval", []), config.eval, {**shared, "run": str(directory.path)})
    path = eval_command.run(eval_config)  # type: ignore[arg-type]
    summary = json.loads(path.read_text())
    return {
        "path": os.path.relpath(path.parent, directory.path),
        "setting": summary["setting"],
        "success": summary["success"],
    }
