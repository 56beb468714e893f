"""Policies for tests: tiny networks, and the ideal denoiser of Gaussian data, which is affine."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from toy_specs import toy_spec

from embodied.catalog import STATE_ENCODER
from embodied.policies.ddpm_path import squared_cosine_alpha_bar
from embodied.policies.policy_file import build_policy
from embodied.policies.sdp import raised, shifted
from embodied.types import Observation

TINY = {"name": "transformer", "width": 16, "depth": 1, "heads": 2}
TINY_UNET = {"name": "unet", "widths": [8, 16], "kernel": 3, "conditioning": "per_position"}
CONV = {"name": "conv_small", "crop": 0.9, "keypoints": 4, "features": 8}
SHARED = {"history": 2, "horizon": 16, "action_steps": 4, "past": 0, "levels": 100, "clip": True}
SDP = {"name": "sdp", **SHARED, "k": 2, "initialization": "denoise", "initial_calls": 8, "chunkwise": 0.8}
DIFFUSION = {"name": "diffusion", **SHARED, "sampler": "ddim", "calls": 4}
RNR = {
    "name": "rnr",
    **{name: value for name, value in SHARED.items() if name != "action_steps"},
    "random_levels": 0.6,
}
FLOW = {**DIFFUSION, "path": "flow", "sampler": "euler"}
FLOW_MAP = {"name": "flow_map", **SHARED, "path": "flow", "objective": "consistency", "most_calls": 100, "calls": 2}
STREAMING_FLOW = {**SDP, "path": "flow", "largest_delay": 3}


def toy_policy(policy, network=TINY, spec=None, encoder=STATE_ENCODER, seed=0, **settings):
    """With random weights everywhere: the networks' own start, where every block is the identity, would hide faults."""
    torch.manual_seed(seed)
    built = build_policy(spec or toy_spec(), {**policy, **settings}, network, encoder)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return built.eval()


def roll(policy, buffer_HA, executed, noise_HA):
    """A streaming policy's buffer after `executed` actions ran, as a cycle finds it."""
    signal, noise_scale = (table[executed] for table in policy.raising(buffer_HA.device))
    return raised(shifted(buffer_HA, executed), signal, noise_HA, noise_scale)


def toy_stream(seed, steps, spec=None):
    generator = torch.Generator().manual_seed(seed)
    spec = spec or toy_spec()
    return [
        Observation(
            state={s.name: torch.randn(s.size, generator=generator).numpy() for s in spec.state},
            images={c.name: toy_image(c, generator) for c in spec.cameras},
            time_s=t * 0.1,
        )
        for t in range(steps)
    ]


def toy_image(camera, generator, *leading):
    """Random pixels, uint8 [... h w 3]."""
    shape = (*leading, camera.height, camera.width, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).numpy()


class GaussianDenoiser(nn.Module):
    """E[noise | noisy] for clean data N(mean, covariance) over the H positions, each action element on its own.

    noisy = S clean + R noise with diagonal S, R, so E[noise | noisy] = R (S C S + R^2)^-1 (noisy - S mean).
    """

    def __init__(self, mean_H: Tensor, covariance_HH: Tensor, levels: int) -> None:
        super().__init__()
        self.mean, self.covariance = mean_H.double(), covariance_HH.double()
        self.levels, self.alpha_bar = levels, squared_cosine_alpha_bar(levels)

    def affine(self, level_H: Tensor) -> tuple[Tensor, Tensor]:
        """Matrix [H H] and offset [H] of the expected noise."""
        signal, noise = self.alpha_bar[level_H].sqrt(), (1 - self.alpha_bar[level_H]).sqrt()
        covariance = signal[:, None] * self.covariance * signal + torch.diag(noise**2)
        matrix = noise[:, None] * torch.linalg.inv(covariance)
        return matrix, -matrix @ (signal * self.mean)

    def forward(self, noisy_BHA: Tensor, level_BH: Tensor, context_BC: Tensor) -> Tensor:
        level_H = (level_BH[0] * self.levels).round().long()
        matrix, offset = self.affine(level_H)
        return (torch.einsum("ij,bja->bia", matrix, noisy_BHA.double()) + offset[:, None]).float()


class GaussianVelocity(GaussianDenoiser):
    """E[noise - clean | noisy] for the same data on the path of a flow."""

    def affine(self, level_H: Tensor) -> tuple[Tensor, Tensor]:
        """Matrix [H H] and offset [H] of the expected velocity."""
        noise = level_H.double() / self.levels
        signal = 1 - noise
        covariance = signal[:, None] * self.covariance * signal + torch.diag(noise**2)
        matrix = (torch.diag(noise) - self.covariance * signal) @ torch.linalg.inv(covariance)
        return matrix, -matrix @ (signal * self.mean) - self.mean


def stationary_gaussian(horizon):
    """Mean and covariance of an AR(1) process: any window of it has the same distribution."""
    lag = (torch.arange(horizon)[:, None] - torch.arange(horizon)).abs()
    return torch.full((horizon,), 0.4), 0.3 * 0.9**lag
