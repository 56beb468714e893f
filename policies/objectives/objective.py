"""What an objective of distillation supplies.

An objective says how many calls its students are prepared for, what it asks of a teacher, and the loss of a student on
a batch, which also says where it samples. It is a module: networks that it trains beside the student (a fake score, a
discriminator) are its submodules, which the loop optimises and checkpoints and which are not deployed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from embodied.catalog import OBJECTIVES, lookup, make
from embodied.errors import UserError
from embodied.policies.batch import Batch
from embodied.policies.flow_map import FlowMapPolicy
from embodied.policies.objectives.teacher import Teacher, check_capabilities


class Objective(nn.Module, ABC):
    """Of a student that is a flow map."""

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]]  # capabilities of the teacher

    def __init__(self, teacher: Teacher) -> None:
        """
        Raises:
            UserError: the teacher does not answer what this asks.
        """
        super().__init__()
        check_capabilities(teacher, self.needs, self.name)
        self.teacher = teacher

    @staticmethod
    @abstractmethod
    def most_calls(levels: int) -> int:
        """Network calls that a student of this is prepared for, on a path of so many levels."""

    @abstractmethod
    def loss(self, student: FlowMapPolicy, averaged: FlowMapPolicy, batch: Batch, generator: torch.Generator) -> Tensor:
        """What training minimises, a scalar; all of its randomness is the generator's.

        Args:
            student: whose weights learn.
            averaged: the same with averaged weights, which take no gradient.
        """

    def check_calls(self, setting: str, calls: int) -> None:
        """
        Raises:
            UserError: no whole number of calls between 1 and the levels of the teacher's path.
        """
        levels = self.teacher.path.levels
        if not isinstance(calls, int) or not 1 <= calls <= levels:
            raise UserError(
                expected=f"objective.{setting} between 1 and the teacher's levels ({levels})",
                found=str(calls),
                remedy=f"change objective.{setting}",
            )


def most_calls_of(name: str, levels: int) -> int:
    """Network calls that students of the objective of this name are prepared for.

    Raises:
        UserError: an unknown name.
    """
    return lookup("objective", OBJECTIVES, name).most_calls(levels)


def make_objective(config: Mapping[str, Any], teacher: Teacher) -> Objective:
    """The objective of a conf/objective configuration, of this teacher.

    Raises:
        UserError: an unknown name, settings that it does not take, or a teacher that does not answer what it asks.
    """
    return make("objective", OBJECTIVES, config, teacher)
