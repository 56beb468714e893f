"""A policy's programs as they leave this package.

B batch, To history, S state vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from embodied.errors import UserError
from embodied.policies.denoising_policy import DenoisingPolicy
from embodied.policies.programs import ContextEncoder, ObservationStep
from embodied.types import Json


@dataclass(frozen=True)
class ExportedProgram:
    """A module with what its caller must know."""

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]  # examples of batch 1, by name, in the order of the module
    outputs: tuple[str, ...]
    constants: dict[str, Tensor] = field(default_factory=dict)  # what a caller chooses inputs from


def exported_programs(policy: DenoisingPolicy) -> list[ExportedProgram]:
    """What makes chunks of observations, for use without this package; on the CPU, for batches of any size.

    With cameras the encoder is a program of its own, which makes the `context` that the others take. Otherwise
    it is part of each, and they take the `state_history`, [B To S] in the task's units.
    """
    state_1TS = torch.zeros(1, policy.history, policy.inputs.state_size)
    if not policy.inputs.cameras:
        encoder, conditions = ContextEncoder(policy), {"state_history": state_1TS}
        encoding = []
    else:
        images = {
            f"images_{c.name}": torch.zeros(1, policy.history, c.height, c.width, 3, dtype=torch.uint8)
            for c in policy.inputs.cameras
        }
        encoder, conditions = None, {"context": torch.zeros(1, policy.encoder.context_size)}
        whole = {"state_history": state_1TS, **images}
        encoding = [ExportedProgram("encode", ContextEncoder(policy), whole, ("context",))]

    def exported(name: str, sampler: nn.Module, first: Json, further: Json, constants: Json) -> ExportedProgram:
        step = ObservationStep(sampler, policy.action_normalizer, encoder).eval()
        return ExportedProgram(name, step, {**first, **conditions, **further}, ("buffer", "actions"), constants)

    return encoding + [exported(*sampler) for sampler in policy.samplers()]


def check_memory_is_exportable(policy: DenoisingPolicy, memory: str) -> None:
    """Whether what lasts from call to call can be moved on by whoever runs the exported programs.

    Raises:
        UserError: it holds differences from a reference that moves.
    """
    if policy.actions.is_relative:
        raise UserError(
            expected=f"actions that are not relative, for an export of programs with a {memory}, which would have "
            "to follow the moving reference",
            found=f"policy.actions.representation={policy.actions.representation}",
            remedy="export a sampler that keeps nothing (policy.sampler=ddim or euler), or train as_recorded",
        )
