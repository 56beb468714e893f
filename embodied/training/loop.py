"""The training loop: Accelerate for devices, precision and processes; everything random is a function of the step.

Batch order, noise levels and noise are drawn from (seed, step), so that a resumed run needs no random state: it
continues as if it had never stopped, bit for bit on a CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.optim.swa_utils import AveragedModel

from embodied.datasets.read_ahead import ReadAhead
from embodied.errors import UserError
from embodied.policies.batch import Batch
from embodied.policies.denoising_policy import DenoisingPolicy
from embodied.policies.policy_file import PolicyDescription, save_policy
from embodied.policies.seeded_noise import mixed_seed
from embodied.protocols import WindowSource
from embodied.training.checkpoint import (
    checkpoint_paths,
    load_training_state,
    pack_optimizer,
    restoring,
    save_training_state,
    unpack_optimizer,
    write_checkpoint,
)
from embodied.training.learner import Learner
from embodied.training.loggers import JsonLines, check_loggers
from embodied.types import Json

LOG_EVERY = 50  # steps
VALIDATION_WINDOWS = 512  # at most
VALIDATION_SEED = 1_000_003


@dataclass(frozen=True)
class TrainingSettings:
    """conf/training, field by field."""

    steps: int
    batch_size: int
    learning_rate: float
    betas: Sequence[float]
    weight_decay: float
    warmup_steps: int
    ema_decay: float
    ema_power: float | None
    gradient_clip: float
    precision: str
    processes: int
    validation_share: float
    validation_every: int
    checkpoint_every: int
    keep_checkpoints: int
    loggers: Sequence[str]

    def __post_init__(self) -> None:
        if self.precision not in ("no", "bf16"):
            raise UserError(expected="training.precision no or bf16", found=self.precision, remedy="use one of the two")
        positive = ("steps", "batch_size", "validation_every", "checkpoint_every", "keep_checkpoints", "processes")
        for name in positive:
            if getattr(self, name) < 1:
                raise UserError(
                    expected=f"training.{name} of at least 1", found=str(getattr(self, name)), remedy="raise it"
                )
        if not 0 <= self.validation_share < 1:
            raise UserError(
                expected="training.validation_share from 0 to below 1",
                found=str(self.validation_share),
                remedy="choose 0.05, for example",
            )
        if self.batch_size % self.processes:
            raise UserError(
                expected="training.batch_size divisible by training.processes",
                found=f"{self.batch_size} over {self.processes}",
                remedy="change one of them",
            )

    def learning_rate_at(self, step: int) -> float:
        """Share of the peak learning rate: linear warm-up, then a cosine to 0 at the last step."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))

    def ema_decay_at(self, step: int) -> float:
        """Constant, or 1 - (1 + step) ** -power below the largest decay (Diffusion Policy's schedule)."""
        if self.ema_power is None:
            return self.ema_decay
        return min(self.ema_decay, 1.0 - (1.0 + step) ** -self.ema_power)


class Training:
    """A learner in training: weights, averages of its policy, optimiser, schedule, and the step they have reached."""

    def __init__(self, learner: Learner, settings: TrainingSettings, seed: int, folder: Path) -> None:
        self.settings = settings
        self.seed = seed
        self.folder = folder
        trackers = check_loggers(settings.loggers)
        # Accelerate keeps the precision of a process's first run; a sweep trains several runs in one process.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision=settings.precision,
            log_with=list(trackers) or None,
            project_dir=folder,
        )
        self._trackers = trackers
        learner.to(self.accelerator.device)
        self.average = AveragedModel(learner.policy, multi_avg_fn=self._move_average)  # as it will be deployed
        self.average.eval().requires_grad_(False)
        optimizer = torch.optim.AdamW(
            learner.parameters(),
            lr=settings.learning_rate,
            betas=tuple(settings.betas),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.model, self.optimizer = self.accelerator.prepare(learner, optimizer)
        self.step = 0
        self._spent_s = 0.0  # by earlier starts of this run, up to its checkpoint
        self._begun_s = time.perf_counter()
        self.loss: float | None = None  # the last one logged
        self.validation_loss: float | None = None
        self._losses: list[torch.Tensor] = []  # of the steps since
        self.device_name: str | None = _name_of(self.accelerator.device)  # what made the last step; None: not known

    @property
    def learner(self) -> Learner:
        """The raw weights."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def averaged_policy(self) -> DenoisingPolicy:
        """The weights that are validated and deployed."""
        return self.average.module

    @property
    def spent_s(self) -> float:
        """Of training, over all starts of this run; what a kill took away is not counted."""
        return self._spent_s + time.perf_counter() - self._begun_s

    def _move_average(self, averages: Any, current: Any, count: Any) -> None:
        torch._foreach_lerp_(list(averages), list(current), 1.0 - self.settings.ema_decay_at(self.step))

    def restore(self) -> bool:
        """Continue from the newest checkpoint, if there is one."""
        paths = checkpoint_paths(self.folder)
        if not paths:
            return False
        tensors, state = load_training_state(paths[-1], self.settings.steps)

        with restoring(paths[-1]):
            if tensors:
                self._restore_tensors(tensors, state["optimizer"])
            self.step = state["step"]
            self._spent_s = state.get("timings", {"spent_s": 0.0})["spent_s"]  # not known of a run that began earlier
            self.loss, self.validation_loss = state["loss"], state["validation_loss"]
            if self.step >= self.settings.steps:  # nothing is left to do here
                self.device_name = state.get("device")
            self._losses = list(torch.tensor(state["losses_since"], device=self.accelerator.device))
        return True

    def _restore_tensors(self, tensors: dict[str, torch.Tensor], optimizer: Json) -> None:
        """Weights, averages and the optimiser's state, from what `save` wrote."""
        average, others = "average.", ("average.", "optimizer.")
        weights = {key: value for key, value in tensors.items() if not key.startswith(others)}
        averages = {key.removeprefix(average): tensors[key] for key in tensors if key.startswith(average)}
        self.learner.load_state_dict(weights, strict=True)
        self.average.load_state_dict(averages, strict=True)
        unpack_optimizer(self.optimizer, tensors, optimizer)

    def save(self, description: Callable[[int], PolicyDescription]) -> None:
        """Write a checkpoint of the present step; the main process does, the others lend it their losses."""
        losses = self._shared(self._losses).tolist() if self._losses else []
        if not self.accelerator.is_main_process:
            return
        optimizer_tensors, optimizer_state = pack_optimizer(self.optimizer)
        tensors = {
            **{name: tensor.cpu() for name, tensor in self.learner.state_dict().items()},
            **{f"average.{name}": tensor.cpu() for name, tensor in self.average.state_dict().items()},
            **optimizer_tensors,
        }
        state: Json = {
            "step": self.step,
            "device": self.device_name,
            "loss": self.loss,
            "losses_since": losses,
            "validation_loss": self.validation_loss,
            "optimizer": optimizer_state,
            "timings": {"spent_s": self.spent_s},
        }

        def write(folder: Path) -> None:
            save_policy(folder, self.averaged_policy, description(self.step))
            save_training_state(folder, tensors, state)

        write_checkpoint(self.folder, self.step, write, self.settings.keep_checkpoints)

    def run(
        self,
        train: WindowSource,
        validation: WindowSource | None,
        description: Callable[[int], PolicyDescription],
        report: Callable[[int, dict[str, float]], None],
        read_ahead: int = 0,
    ) -> None:
        """Train up to the last step; `step`, `loss` and `validation_loss` are then those of the end.

        Args:
            train, validation: sources of windows.
            description: of the policy at a given step, for its checkpoints.
            report: told of every finished step and its figures (empty for most steps).
            read_ahead: batches that a thread gathers before they are asked for.
        """
        log = JsonLines(self.folder / "training.jsonl", self.step) if self.accelerator.is_main_process else None
        if self._trackers and self.accelerator.is_main_process:
            self.accelerator.init_trackers("training")
        if self.step == 0:
            self.save(description)
        begun_s, begun_step = time.perf_counter(), self.step
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        batches = train.batches(self.seed, self.settings.batch_size, self.step, rank=rank, world=world)
        with ReadAhead(train, batches, read_ahead) as windows:
            while self.step < self.settings.steps:
                self._losses.append(self._train_step(Batch.from_window(next(windows), self.accelerator.device)))
                last = self.step == self.settings.steps
                news: dict[str, float] = {}
                if self.step % LOG_EVERY == 0 or last:
                    self.loss = news["loss"] = self._finite_mean(self._losses)
                    news["learning_rate"] = self.settings.learning_rate * self.settings.learning_rate_at(self.step - 1)
                    news["steps_per_s"] = (self.step - begun_step) / (time.perf_counter() - begun_s)
                    self._losses.clear()
                if validation is not None and (self.step % self.settings.validation_every == 0 or last):
                    self.validation_loss = news["validation_loss"] = self._validate(validation)
                if news:
                    if log is not None:
                        log.write(self.step, news)
                    self.accelerator.log(news, step=self.step)
                if self.step % self.settings.checkpoint_every == 0 or last:
                    self.save(description)
                report(self.step, news)
        self.accelerator.end_training()

    def _train_step(self, batch: Batch) -> torch.Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * self.settings.learning_rate_at(self.step)
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, self.step, self.accelerator.process_index))
        loss = self.model(batch, generator, self.averaged_policy)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.average.update_parameters(self.learner.policy)
        return loss.detach()

    def _shared(self, losses: list[torch.Tensor]) -> torch.Tensor:
        """Of each step the mean over the processes, each of which saw its own slice of the batch."""
        return self.accelerator.reduce(torch.stack(losses), "mean")

    def _finite_mean(self, losses: list[torch.Tensor]) -> float:
        """Checked here and not at every step, which would wait for the device each time."""
        mean = float(self._shared(losses).mean())
        if not math.isfinite(mean):
            raise UserError(
                expected="a finite loss",
                found=f"{mean} within the {len(losses)} steps before step {self.step}",
                remedy="lower training.learning_rate, or look for outliers in the data",
            )
        return mean

    @torch.no_grad()
    def _validate(self, validation: WindowSource) -> float:
        """Loss of the averaged weights on the same held-out windows, levels and noise every time."""
        order = validation.epoch_order(VALIDATION_SEED, 0)[:VALIDATION_WINDOWS]
        batch = Batch.from_window(validation.gather(order), self.accelerator.device)
        generator = torch.Generator().manual_seed(VALIDATION_SEED)
        return float(self.learner.loss(self.averaged_policy, self.averaged_policy, batch, generator))


def _name_of(device: torch.device) -> str:
    """In words, for a run's summary."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
