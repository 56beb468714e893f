"""Noisy actions that are differences from an observed pose, when a newer observation takes its place.

At a level with signal scale s and noise scale n a position of a buffer is x = s (D u + o) + n e: u the learned action,
D and o the normaliser's scale and offset, e white noise. The action that it commands shall stay what it is while its
reference moves, which takes u to M u + b (`ActionTransform.change_of_base`). D commutes with M: M is the identity for
positions and turns the columns of 6-D rotations, whose elements share one scale. Hence

    M x + s (D b + o - M o) = s (D (M u + b) + o) + n M e,

and M e is white noise again, since M is orthogonal: the noisy buffer can be re-expressed without knowing u or e. It is
then distributed as if it had been noised from the start with the new reference, which is what training shows. A
predicted u that is no rotation yet is moved just as well: to turn columns and to make them square commute.

H buffer length, L elements of a learned action.
"""

from __future__ import annotations

import torch
from torch import Tensor

from embodied.action_representation import ActionTransform, Anchors
from embodied.normalize import LimitsNormalizer


def re_expressed(
    buffer_HL: Tensor,
    executed: int,
    old: Anchors,
    new: Anchors,
    *,
    signal_H1: Tensor,
    actions: ActionTransform,
    normalizer: LimitsNormalizer,
) -> Tensor:
    """A normalised buffer whose first `executed` positions have been executed, with its differences from `new`.

    Where they are taken from the chunk's reference, all positions change; where each is taken from the action before
    it, only the one that is now first does, since the action before it is no longer in the buffer.

    Args:
        old, new: of the observation that the buffer was made for, and of the newest one.
        signal_H1: signal scale of each position's level.
    """
    # What precedes the first position that is left is clean.
    before_HL = normalizer.denormalize(buffer_HL[:executed]).cpu()
    base = actions.base_at(executed, before_HL, old)
    matrix, shift = (x.to(buffer_HL.device, torch.float32) for x in actions.change_of_base(base, new))
    last = executed + 1 if actions.representation == "delta" else len(buffer_HL)
    rows = slice(executed, last)
    constant_L = normalizer.normalize(shift) - matrix @ normalizer.normalize(torch.zeros_like(shift))
    moved_HL = buffer_HL.clone()
    moved_HL[rows] = torch.addcmul(buffer_HL[rows] @ matrix.T, signal_H1[rows], constant_L)
    return moved_HL
