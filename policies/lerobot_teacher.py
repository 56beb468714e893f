"""A teacher that comes as a checkpoint folder of LeRobot, through LeRobot's own loaders and processors.

LeRobot's policies keep queues of observations and actions inside. Here they are the expert's memory: they come in, they
go out, and nothing of one episode reaches another.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from embodied.policies.lerobot_checkpoint import LeRobotInputs, load_lerobot, seeded_noise
from embodied.policies.teacher import checked_action, checked_path
from embodied.protocols import Task
from embodied.types import Observation

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
        self._policy, self._preprocess, self._postprocess = load_lerobot(self._path, device)
        self._inputs = LeRobotInputs(
            task.spec, self._policy.config, self._path, observation, environment_state, keys="expert"
        )

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
        with torch.inference_mode(), seeded_noise(self._seed, memory.stream, memory.calls):
            batch = self._preprocess(self._inputs.batch(self._task.observation()))
            answer = self._postprocess(self._policy.select_action(batch))
        action = checked_action(self._task.spec.action, answer.cpu().numpy().reshape(-1), f"the teacher {self._path}")
        return action, LeRobotMemory(self._held(), memory.stream, memory.calls + 1)

    def _held(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self._policy).items() if name not in _NO_MEMORY}


def _digest(observation: Observation) -> int:
    """A number that differs from observation to observation, 0 .. 2**32 - 1."""
    digest = 0
    for array in (*observation.state.values(), *observation.images.values()):
        digest = zlib.crc32(array.tobytes(), digest)
    return digest
