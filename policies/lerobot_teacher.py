"""A teacher that comes as a checkpoint folder of LeRobot, through LeRobot's own loaders and processors.

LeRobot's policies keep queues of observations and actions inside. Here they are the expert's memory: they come in, they
go out, and nothing of one episode reaches another.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from embodied.errors import UserError
from embodied.policies.teacher import StateVector, checked_action, checked_path, wrong_kind
from embodied.protocols import Task
from embodied.types import Observation

# LeRobot's names of files and of features.
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_PROCESSORS = ("policy_preprocessor.json", "policy_postprocessor.json")
_STATE, _ENVIRONMENT_STATE, _IMAGE = "observation.state", "observation.environment_state", "observation.images."
# What every torch module has, and what never changes: not part of a policy's memory.
_NO_MEMORY = {*vars(nn.Module()), "config"}


@dataclass(frozen=True)
class LeRobotMemory:
    """What a LeRobot policy remembers between two control steps of one episode. Never changed in place."""

    held: dict[str, Any]  # the policy's queues and the like, by the attribute that holds them
    stream: int  # of its noise, from the observation that the episode (or the inference) began with
    calls: int  # so far: each call draws anew


class LeRobotTeacher:
    """One action a control step, as `select_action` gives it; chunks and histories are the policy's own affair."""

    def __init__(
        self,
        task: Task,
        path: str,
        observation: Sequence[str] | None = None,
        environment_state: Sequence[str] | None = None,
        device: str = "cpu",
        seed: int = 0,
        sha256: str | None = None,
    ) -> None:
        """
        Args:
            task: asked for its observations, never changed.
            path: a folder with config.json, model.safetensors and both processors.
            observation: state vectors that make up `observation.state`, in the policy's order; None: all of them.
            environment_state: those of `observation.environment_state`; None: all, for a policy that wants one.
            device: "cpu", "cuda", ...
            seed: of the policy's own noise.
            sha256: of the folder's content; None: any content.

        Raises:
            UserError: no such folder, files that are missing or of another kind, steps of processors that are not
                LeRobot's own, or features that the task does not have.
        """
        self._task, self._seed = task, seed
        self._path = checked_path(path, sha256)
        _check_folder(self._path)
        self._policy, self._preprocess, self._postprocess = _load(self._path, device)
        features = self._policy.config.input_features
        self._states = {
            name: StateVector(task.spec, names, key)
            for name, names, key in (
                (_STATE, observation, "expert.observation"),
                (_ENVIRONMENT_STATE, environment_state, "expert.environment_state"),
            )
            if name in features
        }
        self._cameras = [name.removeprefix(_IMAGE) for name in features if name.startswith(_IMAGE)]
        self._check_features()

    def infer_memory(self) -> LeRobotMemory:
        """That of a policy that has just been reset, at the task's present state."""
        self._policy.reset()
        stream = _digest(self._task.observation())
        return LeRobotMemory(held=copy.deepcopy(self._held()), stream=stream, calls=0)

    def act(self, memory: LeRobotMemory) -> tuple[np.ndarray, LeRobotMemory]:
        """The clean action, float32 [A] within the bounds, for the task's newest observation, and the next memory.

        Raises:
            UserError: the policy answers with another size, or with values that are not finite.
        """
        for name, value in copy.deepcopy(memory.held).items():
            setattr(self._policy, name, value)
        with torch.inference_mode(), self._noise(memory):
            batch = self._preprocess(self._batch(self._task.observation()))
            answer = self._postprocess(self._policy.select_action(batch))
        action = checked_action(self._task.spec.action, answer.cpu().numpy().reshape(-1), f"the teacher {self._path}")
        return action, LeRobotMemory(self._held(), memory.stream, memory.calls + 1)

    def _held(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self._policy).items() if name not in _NO_MEMORY}

    @contextlib.contextmanager
    def _noise(self, memory: LeRobotMemory) -> Iterator[None]:
        """Torch's global generators, from which LeRobot's policies draw, seeded inside and as before outside."""
        (seed,) = np.random.SeedSequence([self._seed, memory.stream, memory.calls]).generate_state(1)
        with torch.random.fork_rng():
            torch.manual_seed(int(seed))
            yield

    def _batch(self, observation: Observation) -> dict[str, Any]:
        """In LeRobot's words: float32 vectors, float32 images [3 h w] 0..1, and the instruction."""
        batch: dict[str, Any] = {
            name: torch.from_numpy(vector.read(observation)) for name, vector in self._states.items()
        }
        for camera in self._cameras:
            image = torch.from_numpy(observation.images[camera])
            batch[_IMAGE + camera] = image.permute(2, 0, 1).to(torch.float32) / 255.0
        batch["task"] = observation.instruction
        return batch

    def _check_features(self) -> None:
        wanted = {name: tuple(feature.shape) for name, feature in self._policy.config.input_features.items()}
        offered = {name: (vector.size,) for name, vector in self._states.items()}
        offered |= {_IMAGE + camera.name: (3, camera.height, camera.width) for camera in self._task.spec.cameras}
        action = tuple(self._policy.config.output_features["action"].shape)
        wrong = [name for name, shape in wanted.items() if offered.get(name) != shape]
        if not wrong and action == (self._task.spec.action.size,):
            return
        raise UserError(
            expected=f"a LeRobot policy for {self._task.spec.task}: {_shapes(offered) or 'no state vectors'} to "
            f"an action of {self._task.spec.action.size}",
            found=f"one for {_shapes(wanted)} to an action of {list(action)} in {self._path}",
            remedy="name a checkpoint of this task; see expert.observation, expert.environment_state and task.cameras",
        )


def _digest(observation: Observation) -> int:
    """A number that differs from observation to observation, 0 .. 2**32 - 1."""
    digest = 0
    for array in (*observation.state.values(), *observation.images.values()):
        digest = zlib.crc32(array.tobytes(), digest)
    return digest


def _shapes(features: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in features.items())


def _check_folder(path: Path) -> None:
    missing = [name for name in (_CONFIG, _WEIGHTS, *_PROCESSORS) if not (path / name).is_file()]
    if missing:
        raise UserError(
            expected=f"a LeRobot checkpoint folder at {path} ({', '.join((_CONFIG, _WEIGHTS, *_PROCESSORS))})",
            found=f"no {', no '.join(missing)}",
            remedy="name the folder `pretrained_model` of a training run, made by LeRobot 0.6",
        )
    for name in _PROCESSORS:
        _check_steps(path / name)


def _check_steps(path: Path) -> None:
    """Only steps by their registered names: LeRobot would import and call any class that the file names."""
    try:
        steps = json.loads(path.read_text())["steps"]
        foreign = [str(step.get("class")) for step in steps if "registry_name" not in step]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise wrong_kind(path, "a LeRobot processor", error) from error
    if foreign:
        raise UserError(
            expected=f"steps of LeRobot's own in {path}",
            found=", ".join(foreign),
            remedy="use a checkpoint without classes of its own",
        )


def _load(path: Path, device: str) -> tuple[Any, Any, Any]:
    """The policy in evaluation mode, and its two processors.

    Raises:
        UserError: LeRobot cannot read the folder.
    """
    try:
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors
    except ImportError as error:
        raise UserError(
            expected="lerobot, which runs its own checkpoints", found=str(error), remedy="pip install lerobot"
        ) from error
    try:
        # LeRobot reports its progress on the console, and draws weights before it reads the checkpoint's.
        with contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng():
            config = PreTrainedConfig.from_pretrained(str(path), local_files_only=True)
            config.device = device
            if hasattr(config, "pretrained_backbone_weights"):
                config.pretrained_backbone_weights = None  # the checkpoint has them; do not download others first
            policy_class = get_policy_class(config.type)
            policy = policy_class.from_pretrained(str(path), config=config, strict=True, local_files_only=True)
            processors = make_pre_post_processors(
                config, str(path), preprocessor_overrides={"device_processor": {"device": device}}
            )
    except Exception as error:  # whatever its many parts raise about a folder that is not as they expect
        raise wrong_kind(path, "a checkpoint that LeRobot can load", error) from error
    return policy, *processors
