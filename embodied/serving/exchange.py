"""Which checkpoints may take each other's place while robots are connected."""

from __future__ import annotations

from embodied.errors import UserError
from embodied.protocols import Policy

TOLD = ("action_steps", "history", "inference_delay")  # what robots were told when they connected


def check_exchangeable(policy: Policy, present: Policy) -> None:
    """Whether robots that were told of the present policy can go on with the other one.

    Raises:
        UserError: they cannot.
    """
    differences = policy.spec.differences(present.spec)
    for name in TOLD:
        if getattr(policy, name) != getattr(present, name):
            differences.append(f"{name}: {getattr(policy, name)} against {getattr(present, name)}")
    if differences:
        raise UserError(
            expected=f"a policy for the same robot and task, {present.spec.task}",
            found=f"another one ({'; '.join(differences[:3])})",
            remedy="start another server for it",
        )
