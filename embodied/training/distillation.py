"""Distillation as a training job: a student of few calls that begins as its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from embodied.errors import UserError
from embodied.policies.batch import Batch
from embodied.policies.denoising_policy import DenoisingPolicy
from embodied.policies.flow_map import FlowMapPolicy
from embodied.policies.objectives.objective import Objective, make_objective, most_calls_of
from embodied.policies.objectives.teacher import teacher_of
from embodied.policies.policy_file import PolicyDescription, build_policy, load_policy
from embodied.training.data import TrainingData
from embodied.training.job import TrainingJob
from embodied.training.learner import Learner
from embodied.types import Json, Statistics

# What a student's policy has in common with its teacher's.
SHARED_SETTINGS = ("history", "horizon", "action_steps", "past", "levels", "clip", "path", "actions")
OUTPUT = "network.action_out."  # the last layer of every network


class Distillation(Learner):
    """A student, and the objective with what it trains itself."""

    def __init__(self, student: FlowMapPolicy, objective: Objective) -> None:
        super().__init__(student)
        self.objective = objective

    def loss(
        self, policy: DenoisingPolicy, averaged: DenoisingPolicy, batch: Batch, generator: torch.Generator
    ) -> Tensor:
        student, average = cast(FlowMapPolicy, policy), cast(FlowMapPolicy, averaged)
        return self.objective.loss(student, average, batch, generator)


@dataclass(frozen=True, kw_only=True)
class DistillationJob(TrainingJob):
    """A training job whose policy, network and encoder are those of `student_settings`."""

    teacher: Path  # a checkpoint
    objective: Json  # conf/objective

    def _make_learner(self, data: TrainingData) -> tuple[Learner, dict[str, Statistics]]:
        policy, description = load_policy(self.teacher)
        objective = make_objective(self.objective, teacher_of(policy, description.policy["name"]))
        torch.manual_seed(self.seed)  # of the fresh weights; nothing else draws from the global generator
        student = build_policy(self.spec, self.policy, self.network, self.encoder)
        take_weights(student, policy)
        statistics = {key: Statistics.from_json(value) for key, value in description.statistics.items()}
        return Distillation(cast(FlowMapPolicy, student), objective), statistics


def student_settings(teacher: PolicyDescription, objective: Json, run_time: Mapping[str, int]) -> Json:
    """The student's counterpart of a teacher's conf/policy.

    Args:
        objective: conf/objective.
        run_time: settings of `FlowMapPolicy.run_time_settings`.

    Raises:
        UserError: an unknown objective.
    """
    shared = {name: teacher.policy[name] for name in SHARED_SETTINGS if name in teacher.policy}
    most_calls = most_calls_of(objective["name"], teacher.policy["levels"])
    return {"name": "flow_map", **shared, "objective": objective["name"], "most_calls": most_calls, **run_time}


def take_weights(student: DenoisingPolicy, teacher: DenoisingPolicy) -> None:
    """Give a student every weight of its teacher that fits, and its normalisation.

    The teacher of a flow predicts what the student predicts, so that the student begins as one step of Euler's. One on
    the path of DDPM predicts the noise: the output layer stays fresh. A velocity cannot be had of that prediction near
    pure noise, where it would be divided by a signal near 0.
    """
    wanted = student.state_dict()
    predicts_velocity = teacher.path.name == "flow"
    fitting = {
        name: weight
        for name, weight in teacher.state_dict().items()
        if name in wanted and wanted[name].shape == weight.shape and (predicts_velocity or not name.startswith(OUTPUT))
    }
    student.load_state_dict(fitting, strict=False)


def stores_of(teacher: PolicyDescription, checkpoint: Path) -> tuple[tuple[Path, ...], tuple[float, ...] | None]:
    """The stores that a teacher was trained on, and their weights.

    Raises:
        UserError: it does not say, or one of them is not where it was.
    """
    parts = teacher.provenance.get("stores") or [{"path": teacher.provenance.get("store"), "weight": None}]
    paths = [Path(str(part["path"])) for part in parts if part["path"] is not None]
    for path in paths or [Path("unknown")]:
        if not path.exists():
            raise UserError(
                expected=f"the demonstrations that the teacher {checkpoint} was trained on, at {path}",
                found="nothing there",
                remedy="bring them back, run from the folder that the teacher was trained in, or name a store with "
                "data.store=",
            )
    weights = tuple(float(part["weight"]) for part in parts if part["weight"] is not None)
    return tuple(paths), weights or None
