"""What all engines share: the interface, and the check that what was compiled computes what the module computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from embodied.errors import MisfitError, first_line

# Takes the inputs of the module that it was made from, and gives what that gives.
Program = Callable[..., tuple[Tensor, ...]]
# Largest difference from the module's own outputs, which are normalised actions or of the order of them.
PARITY = 1e-4


class Engine(Protocol):
    """Compiles programs: modules that map tensors, the first dimension of each the batch, to a tuple of tensors."""

    @property
    def name(self) -> str: ...

    def compile(self, module: nn.Module, inputs: Sequence[Tensor]) -> Program:
        """`module` for inputs like these (their batch size may change), in inference mode.

        Raises:
            UserError: this engine cannot run here, cannot run the module, or computes something else.
        """
        ...


def not_installed(wanted: str, package: str) -> MisfitError:
    return MisfitError(
        expected=f"the package {package}, which {wanted} needs",
        found="none",
        remedy='pip install "embodied-policies[engines]", or do without',
    )


def cannot_run(engine: str, module: nn.Module, error: Exception) -> MisfitError:
    return MisfitError(
        expected=f"a program that engine {engine} can run",
        found=f"{type(module).__name__}: {first_line(error)}",
        remedy="use policy.engine=eager, or another network",
    )


@torch.inference_mode()
def checked_parity(engine: str, module: nn.Module, program: Program, inputs: Sequence[Tensor]) -> float:
    """The largest absolute difference between what both give.

    Raises:
        UserError: it is above `PARITY`, or not a number.
    """
    expected, found = module(*inputs), program(*inputs)
    error = max(float((a.float() - b.float()).abs().max()) for a, b in zip(expected, found, strict=True))
    if not error <= PARITY:
        raise MisfitError(
            expected=f"engine {engine} to give what the network gives, within {PARITY:g}",
            found=f"a difference of {error:g} in {type(module).__name__}",
            remedy="use policy.engine=eager, and report this with the network's configuration",
        )
    return error
