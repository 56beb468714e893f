"""A teacher without error: flow matching of a mixture of eight Gaussians in the plane, whose velocity is a closed form.

K modes, B samples, A = 2 elements of the action.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn
from toy_policies import FLOW, FLOW_MAP, toy_policy
from toy_specs import toy_spec

from embodied.policies.batch import Batch
from embodied.policies.objectives.diffusion_teacher import DiffusionTeacher
from embodied.policies.policy_file import build_policy

WEIGHTS = torch.tensor([0.30, 0.20, 0.15, 0.10, 0.10, 0.05, 0.05, 0.05])
SIGMA = 0.06
ANGLES = torch.arange(8) * (2 * math.pi / 8)
CENTRES = torch.stack([ANGLES.cos(), ANGLES.sin()], dim=-1)  # [K A]
ONE_STEP = {"history": 1, "horizon": 1, "action_steps": 1, "clip": False}


def plane_spec():
    action = dataclasses.replace(
        toy_spec().action,
        elements=("x", "y"),
        units=("m", "m"),
        low=(-2.0, -2.0),
        high=(2.0, 2.0),
        binary=(False, False),
    )
    return dataclasses.replace(toy_spec(), task="toy/plane", action=action)


class MixtureVelocity(nn.Module):
    """E[noise - clean | noisy] of the mixture on the path of a flow."""

    def forward(self, noisy_BHA: Tensor, level_BH: Tensor, context_BC: Tensor) -> Tensor:
        s = level_BH.unsqueeze(-1)
        mean_K = (1 - s.unsqueeze(-2)) * CENTRES  # [B H K A]
        variance = (1 - s) ** 2 * SIGMA**2 + s**2
        offset = noisy_BHA.unsqueeze(-2) - mean_K
        share_BHK = (WEIGHTS.log() - offset.square().sum(-1) / (2 * variance)).softmax(-1)
        clean_K = CENTRES + ((1 - s) * SIGMA**2 / variance).unsqueeze(-1) * offset
        clean_BHA = (share_BHK.unsqueeze(-1) * clean_K).sum(-2)
        return (noisy_BHA - clean_BHA) / s


def mixture_policy(calls: int = 10):
    policy = toy_policy(FLOW, spec=plane_spec(), **ONE_STEP, calls=calls)
    policy.network = MixtureVelocity()
    return policy


def mixture_teacher() -> DiffusionTeacher:
    return DiffusionTeacher(mixture_policy())


def student(objective: str, most_calls: int, width: int = 64, depth: int = 2, seed: int = 0):
    """With fresh weights: a closed form has none to begin from."""
    torch.manual_seed(seed)
    settings = {**FLOW_MAP, **ONE_STEP, "objective": objective, "most_calls": most_calls, "calls": 1}
    return build_policy(plane_spec(), settings, {"name": "transformer", "width": width, "depth": depth, "heads": 2})


def draw(samples: int, generator: torch.Generator) -> Tensor:
    """[B A]."""
    mode = torch.multinomial(WEIGHTS, samples, replacement=True, generator=generator)
    return CENTRES[mode] + SIGMA * torch.randn(samples, 2, generator=generator)


def batch(samples: int, generator: torch.Generator) -> Batch:
    """Actions of the mixture, whatever is observed."""
    action = draw(samples, generator).unsqueeze(1)
    return Batch(torch.zeros(samples, 1, 4), action, torch.ones(samples, 1, dtype=torch.bool))


def sampled(policy, samples: int, seed: int) -> Tensor:
    """What a policy's sampler makes of noise, [B A]."""
    noise = torch.randn(samples, 1, 2, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return policy.sampling(policy.network)(noise, torch.zeros(samples, 4))[:, 0]


def on_mode(x: Tensor) -> float:
    """Share within 3 sigma of a centre; of the mixture itself 0.989."""
    return float((torch.cdist(x, CENTRES).min(-1).values < 3 * SIGMA).float().mean())


def mode_weight_distance(x: Tensor) -> float:
    """Total variation between the weights of the modes and how often each is the nearest."""
    share = torch.bincount(torch.cdist(x, CENTRES).argmin(-1), minlength=8) / len(x)
    return float((share - WEIGHTS).abs().sum() / 2)


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| (Szekely and Rizzo 2013), 0 if and only if both are distributed alike."""

    def within(z: Tensor) -> Tensor:
        return torch.cdist(z, z).sum() / (len(z) * (len(z) - 1))

    return float(2 * torch.cdist(x, y).mean() - within(x) - within(y))
