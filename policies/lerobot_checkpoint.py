"""A checkpoint folder of LeRobot: its policy and processors by LeRobot's own loaders, and what they take of a task."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embodied.errors import UserError
from embodied.policies.teacher import StateVector, wrong_kind
from embodied.types import Observation, TaskSpec

# LeRobot's names of files and of features.
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_PROCESSORS = ("policy_preprocessor.json", "policy_postprocessor.json")
STATE, ENVIRONMENT_STATE, IMAGE = "observation.state", "observation.environment_state", "observation.images."


class LeRobotInputs:
    """A task's observations in LeRobot's words."""

    def __init__(
        self,
        spec: TaskSpec,
        config: Any,
        path: Path,
        observation: Sequence[str] | None,
        environment_state: Sequence[str] | None,
        keys: str,
    ) -> None:
        """
        Args:
            config: of the policy.
            path: of its folder, for error messages.
            observation: state vectors that make up `observation.state`, in the policy's order; None: all of them.
            environment_state: those of `observation.environment_state`; None: all, for a policy that wants one.
            keys: where in the configuration these two are given, for error messages.

        Raises:
            UserError: names that the task does not have, or features of the policy that it does not.
        """
        self._spec, self._config, self._path, self._keys = spec, config, path, keys
        features = config.input_features
        self._states = {
            name: StateVector(spec, names, key)
            for name, names, key in (
                (STATE, observation, f"{keys}.observation"),
                (ENVIRONMENT_STATE, environment_state, f"{keys}.environment_state"),
            )
            if name in features
        }
        self._cameras = [name.removeprefix(IMAGE) for name in features if name.startswith(IMAGE)]
        self._check_features()

    def batch(self, observation: Observation) -> dict[str, Any]:
        """In LeRobot's words: float32 vectors, float32 images [3 h w] 0..1, and the instruction."""
        batch: dict[str, Any] = {
            name: torch.from_numpy(vector.read(observation)) for name, vector in self._states.items()
        }
        for camera in self._cameras:
            image = torch.from_numpy(observation.images[camera])
            batch[IMAGE + camera] = image.permute(2, 0, 1).to(torch.float32) / 255.0
        batch["task"] = observation.instruction
        return batch

    def _check_features(self) -> None:
        wanted = {name: tuple(feature.shape) for name, feature in self._config.input_features.items()}
        offered = {name: (vector.size,) for name, vector in self._states.items()}
        offered |= {IMAGE + camera.name: (3, camera.height, camera.width) for camera in self._spec.cameras}
        action = tuple(self._config.output_features["action"].shape)
        wrong = [name for name, shape in wanted.items() if offered.get(name) != shape]
        if not wrong and action == (self._spec.action.size,):
            return
        raise UserError(
            expected=f"a LeRobot policy for {self._spec.task}: {_shapes(offered) or 'no state vectors'} to "
            f"an action of {self._spec.action.size}",
            found=f"one for {_shapes(wanted)} to an action of {list(action)} in {self._path}",
            remedy=f"name a checkpoint of this task; see {self._keys}.observation, {self._keys}.environment_state and "
            "task.cameras",
        )


@contextlib.contextmanager
def seeded_noise(*seed: int) -> Iterator[None]:
    """Torch's global generators, from which LeRobot's policies draw, seeded inside and as before outside."""
    (state,) = np.random.SeedSequence(list(seed)).generate_state(1)
    with torch.random.fork_rng():
        torch.manual_seed(int(state))
        yield


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


def load_lerobot(path: Path, device: str) -> tuple[Any, Any, Any]:
    """The policy in evaluation mode, and its two processors.

    Raises:
        UserError: files that are missing or of another kind, steps of processors that are not LeRobot's own, or LeRobot
            cannot read the folder.
    """
    _check_folder(path)
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
