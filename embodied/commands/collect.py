"""`embodied collect`: the task's expert, or a teacher that the user has, run in simulation into a store."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import embodied
from embodied.catalog import make_expert, make_task, nearest
from embodied.collection import CollectionSettings, Engine, collect, expected_bytes, on_processes, on_ray
from embodied.console import Progress, say
from embodied.datasets.episode_store import EpisodeStore
from embodied.errors import UserError
from embodied.evaluation.statistics import wilson_interval
from embodied.fingerprint import fingerprint
from embodied.run_directory import RunDirectory
from embodied.types import TaskSpec

STORE = "demonstrations.zarr"
SETTINGS = tuple(CollectionSettings.__dataclass_fields__)
WHERE = ("engine", "ray_address", "hang_after_s")  # keys of conf/collection that change no content
ENGINES = ("processes", "ray")


def run(config: DictConfig) -> Path:
    directory = open_run(config)
    with directory.lock():
        if is_finished(directory):
            say(f"{directory.path} is finished already (force=true makes a new one beside it)")
            return directory.path / "summary.json"
        if directory.is_finished:
            say(f"{directory.path} was finished, but {store_path(directory)} is not whole any more: collecting again")
        return _collect(directory)


def open_run(config: DictConfig) -> RunDirectory:
    config = with_teacher_content(config)
    stem = f"{config.task.name}-{config.episodes}"
    return RunDirectory.open("collect", stem, config, volatile=WHERE)


def settings(config: DictConfig) -> CollectionSettings:
    """Of the keys of conf/collection.

    Raises:
        UserError: values that do not fit.
    """
    if config.engine not in ENGINES:
        raise UserError(
            expected="engine processes or ray", found=str(config.engine), remedy=nearest(str(config.engine), ENGINES)
        )
    return CollectionSettings(**{name: config[name] for name in SETTINGS})


def engine(config: DictConfig) -> Engine:
    if config.engine == "ray":
        return functools.partial(on_ray, workers=config.workers, address=config.ray_address)
    return functools.partial(on_processes, workers=config.workers)


def with_teacher_content(config: DictConfig) -> DictConfig:
    """The configuration with the hash of the expert's file in it, so that another content is another run.

    Raises:
        UserError: there is no such file.
    """
    expert = config.expert
    if expert.get("path") is None or expert.sha256 is not None:
        return config
    config = config.copy()
    config.expert.sha256 = fingerprint(expert.path)
    return config


def store_path(directory: RunDirectory) -> Path:
    return Path(directory.config.store or directory.path / STORE)


def is_finished(directory: RunDirectory) -> bool:
    """Whether the summary is there, and the store too: one that was deleted is to be collected again."""
    if not directory.is_finished:
        return False
    try:
        return EpisodeStore.open(store_path(directory)).is_complete
    except UserError:
        return False


def task_spec(task_config: dict[str, Any], expert_config: dict[str, Any] | None = None) -> TaskSpec:
    """The spec of a configured task; builds it once, and the expert, if one is given, which must fit it.

    Raises:
        UserError: settings that do not fit, or the task has no such expert.
    """
    task = make_task(task_config)
    try:
        if expert_config is not None:
            make_expert(task, expert_config)
        return task.spec
    finally:
        task.close()


def _collect(directory: RunDirectory) -> Path:
    config = directory.config
    chosen = settings(config)
    task_config, expert_config = _plain(config.task), _plain(config.expert)
    spec = task_spec(task_config, expert_config)
    path = store_path(directory)
    begun_s = time.perf_counter()
    store = EpisodeStore.create(
        path,
        spec,
        expected_episodes=chosen.episodes,
        provenance={
            "task": task_config,
            "expert": expert_config,
            "collection": vars(chosen),
            "code_version": embodied.__version__,
        },
        expected_bytes=expected_bytes(spec, chosen.episodes),
    )
    with store:
        if len(store) and not store.is_complete:
            say(f"{path} holds {len(store)} of {chosen.episodes} episodes: going on from there")
        with Progress("collect", chosen.episodes, "episodes", done=len(store)) as progress:

            def report(store: EpisodeStore) -> None:
                attempts = len(store) + len(store.dropped)
                progress.advance(len(store) - progress.done, success=len(store) / attempts)

            collect(store, task_config, chosen, engine(config), report, expert_config, config.hang_after_s)
        summary = directory.write_summary(_summary(store, expert_config, time.perf_counter() - begun_s))
    say(f"{len(store)} demonstrations, {store.total_steps} steps, in {path}")
    return summary


def _plain(config: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def _summary(store: EpisodeStore, expert: dict[str, Any], wall_s: float) -> dict[str, Any]:
    attempts = len(store) + len(store.dropped)
    low, high = wilson_interval(len(store), attempts)
    return {
        "task": store.spec.task,
        "expert": expert,
        "store": str(store.path),
        "episodes": len(store),
        "steps": store.total_steps,
        "content_hash": store.content_hash(),
        "dropped": [{"start": row.seed, "reason": row.reason} for row in store.dropped],
        "expert_success": {"k": len(store), "n": attempts, "rate": len(store) / attempts, "low": low, "high": high},
        "mean_steps_to_success": sum(row.first_success or 0 for row in store.rows) / len(store),
        "timings": {"wall_s": wall_s},
    }
