"""What every observation encoder shares: which state vectors and cameras it sees.

B batch, T history, S its state vectors side by side, C context; images are uint8 [B T h w 3] until the encoder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from embodied.catalog import nearest
from embodied.errors import UserError
from embodied.types import CameraSpec, StateSpec, TaskSpec


class ObservationEncoder(nn.Module, ABC):
    """From a history of observations to one vector, the context of the denoising network."""

    context_size: int  # C
    # Settings that matter for fresh weights alone: a checkpoint is read without them.
    start_settings: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, spec: TaskSpec, history: int, state: Sequence[str] | None, cameras: Sequence[str] | None
    ) -> None:
        """
        Args:
            spec: of the task.
            history: T, observations that it sees.
            state: names of the state vectors that it sees; None for all of the task's.
            cameras: names of the cameras that it sees; None for all of the task's.

        Raises:
            UserError: a name that the task does not have, one given twice, or no state vector.
        """
        super().__init__()
        self.history = history
        known = {vector.name: vector for vector in spec.state}
        self.state: tuple[StateSpec, ...] = _chosen("state", "state vector", state, known, spec.task)
        views = {camera.name: camera for camera in spec.cameras}
        self.cameras: tuple[CameraSpec, ...] = _chosen("cameras", "camera", cameras, views, spec.task)
        if not self.state:
            raise UserError(
                expected="at least one state vector in encoder.state",
                found="none",
                remedy=f"name some of {', '.join(known) or '(none: the task shows no state)'}",
            )

    @property
    def state_size(self) -> int:
        """S"""
        return sum(vector.size for vector in self.state)

    @abstractmethod
    def forward(
        self, state_BTS: Tensor, images: Mapping[str, Tensor], generator: torch.Generator | None = None
    ) -> Tensor:
        """The context, [B C].

        Args:
            state_BTS: normalised, of the encoder's own state vectors.
            images: of each of its cameras, uint8 [B T h w 3].
            generator: of random crops, in training; None for none, as in evaluation.
        """


def _chosen(key: str, kind: str, wanted: Sequence[str] | None, known: Mapping, task: str) -> tuple:
    """The specs of the wanted names, in the task's order, so that the order in a setting means nothing."""
    if wanted is None:
        return tuple(known.values())
    if isinstance(wanted, str) or not isinstance(wanted, Sequence):
        remedy = f"write encoder.{key}=[{wanted if isinstance(wanted, str) else 'name, ...'}]"
        raise UserError(expected=f"a list of names in encoder.{key}", found=f"'{wanted}'", remedy=remedy)
    for place, name in enumerate(wanted):
        if name not in known:
            raise UserError(
                expected=f"the name of a {kind} of task {task}",
                found=f"'{name}' in encoder.{key}",
                remedy=nearest(str(name), known),
            )
        if name in list(wanted)[:place]:
            raise UserError(
                expected=f"every name once in encoder.{key}", found=f"'{name}' twice", remedy="name it once"
            )
    return tuple(spec for name, spec in known.items() if name in wanted)
