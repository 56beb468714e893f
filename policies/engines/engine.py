"""What all engines share: the interface, and the check that what was compiled computes what the module computes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from embodied.errors import MisfitError, first_line

# Takes the inputs of the module that it was made from, and gives what that gives.
Program = Callable[..., tuple[Tensor, ...]]
# Largest difference from the module's own outputs, which are normalised actions or of the order of them.
PARITY = 1e-4
# On the path of DDPM a call at pure noise divides by a signal near 0: rounding to single precision then moves even the
# module's own outputs by more than `PARITY`. Above it a difference may be so many times that rounding, at most
# `MOST_ROUNDING`.
ROUNDING_MARGIN = 3.0
MOST_ROUNDING = 1e-2


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
        UserError: it is not a number, or above `PARITY` and above what rounding explains (`ROUNDING_MARGIN`).
    """
    expected = module(*inputs)
    error = _largest_difference(expected, program(*inputs))
    if error <= PARITY:
        return error
    rounding = min(MOST_ROUNDING, _rounding(module, inputs, expected))
    if not error <= ROUNDING_MARGIN * rounding or error > MOST_ROUNDING:
        raise MisfitError(
            expected=f"engine {engine} to give what the network gives, within {PARITY:g}",
            found=f"a difference of {error:g} in {type(module).__name__}, of which rounding explains {rounding:.1g}",
            remedy="use policy.engine=eager, and report this with the network's configuration",
        )
    return error


def _largest_difference(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return max(float((a.double() - b.double()).abs().max()) for a, b in zip(one, other, strict=True))


def _rounding(module: nn.Module, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
    """How far the module's outputs are from its own in double precision; 0 if it cannot be run so."""
    exact = copy.deepcopy(module).double()
    try:
        exact_outputs = exact(*(x.double() if x.is_floating_point() else x for x in inputs))
    except RuntimeError:  # of a module that casts to single precision itself
        return 0.0
    return _largest_difference(outputs, exact_outputs)
