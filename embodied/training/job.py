"""One training job, from a store to checkpoints, on one or several processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from embodied.catalog import ENCODERS, STATE_ENCODER, lookup
from embodied.errors import UserError
from embodied.policies.batch import Batch
from embodied.policies.denoising_policy import DenoisingPolicy
from embodied.policies.policy_file import PolicyDescription, build_policy, load_policy
from embodied.training.checkpoint import find_checkpoint, newest_description
from embodied.training.data import DataSettings, TrainingData
from embodied.training.learner import Learner
from embodied.training.loop import Training, TrainingSettings
from embodied.types import Json, Statistics, TaskSpec, Window

Report = Callable[[int, dict[str, float]], None]

# Key of the statistics of actions as the policy represents them, where that is not how they were recorded.
LEARNED_ACTION = "learned_action"


@dataclass(frozen=True)
class TrainingJob:
    """What to train, on what, and where it is kept. Picklable, for other processes."""

    folder: Path  # the run directory
    stores: tuple[Path, ...]  # of one task; one or several
    spec: TaskSpec  # of the task that the policy is for
    task: Json
    policy: Json
    network: Json
    settings: TrainingSettings
    seed: int
    init: str | None
    allow_partial: bool
    provenance: Json
    encoder: Json = field(default_factory=lambda: dict(STATE_ENCODER))
    data: DataSettings = field(default_factory=DataSettings)

    def run(self, report: Report) -> Json:
        """Train to the end, from the newest checkpoint if the folder holds one.

        Returns:
            Figures and facts for the run's summary.

        Raises:
            UserError: the store or the initial checkpoint does not fit the task, the store is not complete or not the
                one that training began with, settings that do not fit, a damaged checkpoint, or training that diverges.
        """
        data = TrainingData(self.stores, self.spec, self.data, allow_partial=self.allow_partial)
        learner, statistics = self._make_learner(data)
        policy = learner.policy
        train, validation = data.split(policy, self.settings.validation_share, self.seed)
        content_hash = data.content_hash
        self._check_same_store(content_hash)
        training = Training(learner, self.settings, self.seed, self.folder)
        training.restore()

        def description(step: int) -> PolicyDescription:
            return PolicyDescription(
                spec=self.spec,
                policy=self.policy,
                network=self.network,
                encoder=self.encoder,
                task=self.task,
                statistics={key: value.to_json() for key, value in statistics.items()},
                step=step,
                provenance={
                    **self.provenance,
                    "store_content_hash": content_hash,
                    "seed": self.seed,
                    **({"stores": data.parts()} if len(self.stores) > 1 else {}),
                },
            )

        ahead = self.data.read_ahead if policy.inputs.cameras else 0  # states alone take no time
        training.run(train, validation, description, report, ahead)
        return {
            "parameters": sum(parameter.numel() for parameter in policy.parameters()),
            "steps": training.step,
            "device": training.device_name,
            "loss": training.loss,
            "validation_loss": training.validation_loss,
            "windows": len(train),
            "store": data.describe(),
            "timings": {"train_s": training.spent_s},
        }

    def _check_same_store(self, content_hash: str) -> None:
        """On other data a run that goes on would be neither the old training nor a new one."""
        begun = newest_description(self.folder)
        begun_hash = begun.provenance["store_content_hash"] if begun else content_hash
        if begun_hash != content_hash:
            stores = ", ".join(map(str, self.stores))
            raise UserError(
                expected=f"{stores} with the content that {self.folder} is trained on, {begun_hash[:12]}",
                found=f"content {content_hash[:12]}",
                remedy="bring back the store as it was, or train on this one as a new run, with another name=",
            )

    def _make_learner(self, data: TrainingData) -> tuple[Learner, dict[str, Statistics]]:
        """What is trained before its first step, and the statistics that its normalisation comes from."""
        policy, statistics = self._make_policy(data)
        return Learner(policy), statistics

    def _make_policy(self, data: TrainingData) -> tuple[DenoisingPolicy, dict[str, Statistics]]:
        """A policy with fresh or initial weights, fitted to the data, and the data's statistics."""
        torch.manual_seed(self.seed)  # of the fresh weights; nothing else draws from the global generator
        policy = build_policy(self.spec, self.policy, self.network, self.encoder)
        statistics = data.statistics(policy)
        state = join_statistics([statistics[f"state/{spec.name}"] for spec in policy.inputs.state])
        if not policy.actions.is_identity:
            statistics[LEARNED_ACTION] = data.window_statistics(policy, _learned_rows(policy))
        policy.fit_normalizers(state, statistics.get(LEARNED_ACTION, statistics["action"]))
        if self.init is not None:
            self._take_weights(policy)
        return policy, statistics

    def _take_weights(self, policy: DenoisingPolicy) -> None:
        """Fine-tuning: weights and normalisation of another checkpoint, which belong together."""
        initial, description = load_policy(find_checkpoint(Path(str(self.init))))
        differences = description.spec.differences(self.spec)
        if differences:
            raise UserError(
                expected=f"a checkpoint for task {self.spec.task} in init={self.init}",
                found=f"one for {description.spec.task} ({'; '.join(differences[:3])})",
                remedy="name a checkpoint of this task, or train from scratch with init=null",
            )
        if _in_words(initial) != _in_words(policy):
            raise UserError(
                expected=f"the representation of actions of init={self.init}: {_in_words(initial)}",
                found=_in_words(policy),
                remedy="use the same policy.actions, or train from scratch with init=null",
            )
        seen, wanted = _encoder_in_words(description.encoder), _encoder_in_words(self.encoder)
        if seen != wanted:
            raise UserError(
                expected=f"the encoder of init={self.init}: {seen}",
                found=wanted,
                remedy="use the same encoder= with its settings, or train from scratch with init=null",
            )
        try:
            policy.load_state_dict(initial.state_dict(), strict=True)
        except RuntimeError as error:
            raise UserError(
                expected=f"the network of init={self.init}: {description.network}, policy {description.policy}",
                found=f"{self.network}, policy {self.policy}",
                remedy="use the same network=, policy.history, policy.horizon",
            ) from error


def _learned_rows(policy: DenoisingPolicy) -> Callable[[Window], np.ndarray]:
    """Of a window: the learned actions [n L] that the loss will see."""

    def rows(window: Window) -> np.ndarray:
        batch = Batch.from_window(window, torch.device("cpu"))
        return policy.learned_actions(batch)[batch.valid_BH].numpy()

    return rows


def _in_words(policy: DenoisingPolicy) -> str:
    return f"{policy.actions.representation}, rotations {policy.actions.rotation}"


def _encoder_in_words(encoder: Json) -> str:
    """The settings that say what an encoder sees and is; where its first weights came from is no part of that."""
    start_settings = (*lookup("encoder", ENCODERS, encoder["name"]).start_settings, "sha256")
    settings = [f"{key}={value}" for key, value in sorted(encoder.items()) if key not in ("name", *start_settings)]
    return f"{encoder['name']} ({', '.join(settings)})"


def join_statistics(parts: list[Statistics]) -> Statistics:
    """Statistics of several vectors laid side by side."""
    return Statistics(
        minimum=np.concatenate([part.minimum for part in parts]),
        maximum=np.concatenate([part.maximum for part in parts]),
        mean=np.concatenate([part.mean for part in parts]),
        std=np.concatenate([part.std for part in parts]),
        count=parts[0].count,
    )


def _worker(job: TrainingJob, sender: Connection) -> Json:
    """One of several processes. The first sends what `report` takes, and each the UserError that ends it."""
    threads = max(1, len(os.sched_getaffinity(0)) // job.settings.processes)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # Accelerate would choose a number of its own
    torch.set_num_threads(threads)
    first = os.environ["RANK"] == "0"

    def report(step: int, figures: dict[str, float]) -> None:
        if first:
            sender.send((step, figures))

    try:
        return job.run(report)
    except UserError as error:
        sender.send(error)
        # At this code the launcher ends the others too, which may wait for this one in a collective.
        raise SystemExit(1) from None


def _follow(receiver: Connection, report: Report) -> UserError | None:
    """Report what the processes send, until None comes.

    Returns:
        The first error that came.
    """
    error = None
    with receiver:
        while (message := receiver.recv()) is not None:
            if isinstance(message, UserError):
                error = error or message
            else:
                report(*message)
    return error


def run_on_processes(job: TrainingJob, report: Report) -> Json:
    """Run the job in this process, or data-parallel over `settings.processes` of them (torch's elastic launcher).

    Raises:
        UserError: as `TrainingJob.run`.
    """
    processes = job.settings.processes
    if processes == 1:
        return job.run(report)
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=job.folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="spawn",
    )
    receiver, sender = Pipe(duplex=False)
    with sender, ThreadPoolExecutor(1) as executor:
        followed = executor.submit(_follow, receiver, report)
        try:
            results: dict[int, Json] = elastic_launch(config, _worker)(job, sender)
        finally:
            with suppress(BrokenPipeError):  # `report` failed: nobody follows
                sender.send(None)
            if (error := followed.result()) is not None:
                raise error from None
    return results[0]
