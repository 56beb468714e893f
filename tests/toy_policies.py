"""Policies for tests: tiny networks, and the ideal denoiser of Gaussian data, which is affine."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from toy_specs import toy_spec

from embodied.catalog import STATE_ENCODER
from embodied.policies.ddpm_path import squared_cosine_alpha_bar
from embodied.policies.noise_path import NoisePath
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


class GaussianFlowMap(nn.Module):
    """The velocity that makes each jump of a whole sample the exact flow of the same data, which is affine.

    In the eigenbasis of the data: x_s = mean_s + sqrt(variance_s / variance_t) (x_t - mean_t).
    """

    def __init__(self, mean_H: Tensor, covariance_HH: Tensor, path: NoisePath) -> None:
        super().__init__()
        self.path = path
        self.variance, self.vectors = torch.linalg.eigh(covariance_HH.double())
        self.centre = self.vectors.T @ mean_H.double()

    def moments(self, level_B: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances [B H 1] in the eigenbasis."""
        signal, noise = self.path.scales(level_B)
        return (signal * self.centre).unsqueeze(-1), (signal**2 * self.variance + noise**2).unsqueeze(-1)

    def point(self, noisy_BHA: Tensor, level_B: Tensor, to_level_B: Tensor) -> Tensor:
        """Where the flow leads, float64 [B H A]."""
        x = torch.einsum("hi,bha->bia", self.vectors, noisy_BHA.double())
        (mean, variance), (to_mean, to_variance) = self.moments(level_B), self.moments(to_level_B)
        moved = to_mean + (to_variance / variance).sqrt() * (x - mean)
        return torch.einsum("hi,bia->bha", self.vectors, moved)

    def forward(self, noisy_BHA: Tensor, way_BH2: Tensor, context_BC: Tensor) -> Tensor:
        """Of a jump from a level to itself the velocity at that level, the limit of short ones."""
        level, to_level = (way_BH2[:, 0] * self.path.levels).round().long().expand(len(noisy_BHA), 2).unbind(-1)
        jump = self.path.jump(level.unsqueeze(-1), to_level.unsqueeze(-1), clip=False)
        of_noisy = jump.next_from_noisy + jump.next_from_clean * jump.clean_from_noisy
        of_velocity = jump.next_from_predicted + jump.next_from_clean * jump.clean_from_predicted
        stays = of_velocity == 0
        mean = (self.point(noisy_BHA, level, to_level) - of_noisy * noisy_BHA) / torch.where(stays, 1, of_velocity)
        return torch.where(stays, self.velocity(noisy_BHA, level), mean).float()

    def velocity(self, noisy_BHA: Tensor, level_B: Tensor) -> Tensor:
        """E[velocity | noisy], float64 [B H A]: linear in the posterior means of clean actions and noise."""
        signal, noise = (x.unsqueeze(-1) for x in self.path.scales(level_B))
        mean, variance = self.moments(level_B)
        deviation = torch.einsum("hi,bha->bia", self.vectors, noisy_BHA.double()) - mean
        clean = self.centre.unsqueeze(-1) + signal * self.variance.unsqueeze(-1) / variance * deviation
        expected = self.path.velocity(clean, noise / variance * deviation, level_B.unsqueeze(-1))
        return torch.einsum("hi,bia->bha", self.vectors, expected)


def stationary_gaussian(horizon):
    """Mean and covariance of an AR(1) process: any window of it has the same distribution."""
    lag = (torch.arange(horizon)[:, None] - torch.arange(horizon)).abs()
    return torch.full((horizon,), 0.4), 0.3 * 0.9**lag
