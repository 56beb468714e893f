"""What `embodied serve` serves: a checkpoint of this project, or a folder that LeRobot saved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from embodied.commands.evaluated_policy import resolved_checkpoint, task_spec
from embodied.errors import UserError
from embodied.policies.policy_file import WEIGHTS, load_configured
from embodied.protocols import Policy
from embodied.serving.warm_up import made_observation
from embodied.types import Json, Observation, TaskSpec

WEIGHTS_DIGITS = 12  # of the hash that answers carry
LEROBOT_FILES = ("config.json", "model.safetensors")


@dataclass(frozen=True)
class ServedCheckpoint:
    """A loaded policy, and what identifies it."""

    path: Path
    policy: Policy
    inputs: TaskSpec  # what it is given of its spec
    statistics: Mapping[str, Json]  # of the training data, by "state/<name>"; empty if nobody knows them
    weights: str  # the first digits of the hash of its weights

    def warm_up_observation(self) -> Observation:
        return made_observation(self.policy.spec, self.statistics)


def load_checkpoint(config: DictConfig) -> ServedCheckpoint:
    """The one that run= names now, configured as `policy` says.

    Raises:
        UserError: none there, one that does not load, settings that it cannot run with, no such device, or a LeRobot
            checkpoint without a spec.
    """
    _check_device(str(config.device))
    folder = Path(str(config.run))
    if all((folder / name).is_file() for name in LEROBOT_FILES):
        return _of_lerobot(config, folder)
    _check_has_spec_of_its_own(config)
    path = resolved_checkpoint(config.run, config.run_root)
    policy, description = load_configured(path, _given(config.policy), config.device)
    return ServedCheckpoint(path, policy, policy.inputs, description.statistics, _digits(path / WEIGHTS))


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(expected="device cpu or cuda", found=name, remedy="use one of them, or cuda:1 for the second")
    found = torch.cuda.device_count() if device.type == "cuda" else 1
    if found <= (device.index or 0):
        raise UserError(
            expected=f"a CUDA device for device={name}", found=str(found or "none"), remedy="serve with device=cpu"
        )


def _of_lerobot(config: DictConfig, folder: Path) -> ServedCheckpoint:
    from embodied.policies.lerobot_policy import LeRobotPolicy

    if given := _given(config.policy):
        raise UserError(
            expected="no policy settings for a LeRobot checkpoint, whose config.json has its own",
            found=", ".join(f"policy.{name}={value}" for name, value in given.items()),
            remedy="leave them out",
        )
    settings: Json = OmegaConf.to_container(config.lerobot_checkpoint, resolve=True)  # type: ignore[assignment]
    del settings["spec"]
    policy = LeRobotPolicy(_spec(config), folder, device=config.device, **settings)
    return ServedCheckpoint(folder, policy, policy.spec, {}, _digits(folder / LEROBOT_FILES[1]))


def _spec(config: DictConfig) -> TaskSpec:
    """Of the robot that a LeRobot checkpoint acts in.

    Raises:
        UserError: nobody says it, both say it, or a file that does not.
    """
    file = config.lerobot_checkpoint.spec
    if (file is None) == (config.get("task") is None):
        raise UserError(
            expected="the robot's spec for a LeRobot checkpoint, which does not say it",
            found="none" if file is None else "lerobot_checkpoint.spec and task= both",
            remedy="add task=robosuite/lift, for example, or lerobot_checkpoint.spec=robot.json",
        )
    if file is None:
        return task_spec(OmegaConf.to_container(config.task, resolve=True))  # type: ignore[arg-type]
    try:
        return TaskSpec.from_json(json.loads(Path(file).read_text()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            expected=f"a task's spec as JSON in {file}",
            found=f"none that can be read ({type(error).__name__}: {str(error)[:120]})",
            remedy="write it as `spec` stands in the answer of /spec",
        ) from error


def _check_has_spec_of_its_own(config: DictConfig) -> None:
    if config.get("task") is not None or config.lerobot_checkpoint.spec is not None:
        raise UserError(
            expected="a LeRobot checkpoint with task= or lerobot_checkpoint.spec=",
            found=f"run={config.run}, which is none",
            remedy="leave them out: a checkpoint of this project says its task itself",
        )


def _given(policy: DictConfig) -> Json:
    return {str(name): value for name, value in policy.items() if value is not None}


def _digits(weights: Path) -> str:
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:WEIGHTS_DIGITS]
