"""Diffusion policy: the sampler against the exactly propagated Gaussian and against diffusers' own loop."""

from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler
from toy_policies import DIFFUSION, GaussianDenoiser, stationary_gaussian, toy_policy, toy_stream

from embodied.errors import UserError
from embodied.policies.batch import Batch
from embodied.policies.seeded_noise import seeded_normal

H = 16


def gaussian_policy(**settings):
    policy = toy_policy(DIFFUSION, clip=False, **settings)
    mean, covariance = stationary_gaussian(H)
    policy.network = GaussianDenoiser(mean, covariance, policy.path.levels)
    return policy, mean.double(), covariance.double()


def sampled_affine(policy):
    """Exact mean and covariance of DDIM samples: basis vectors reveal the sampler's matrix."""
    basis = torch.cat([torch.zeros(1, H), torch.eye(H)]).unsqueeze(-1)
    columns = policy.sampling(policy.network)(basis, torch.zeros(H + 1, 1))[:, :, 0].double()
    matrix = (columns[1:] - columns[0]).T
    return columns[0], matrix @ matrix.T


def propagated(policy):
    """The same in float64, in the eigenbasis of the data: there every direction has a scalar recursion."""
    _, covariance = stationary_gaussian(H)
    values, vectors = torch.linalg.eigh(covariance.double())
    centre = vectors.T @ torch.full((H,), 0.4).double()
    mean, variance = torch.zeros(H).double(), torch.ones(H).double()
    levels = [policy.path.levels * (policy.calls - call) // policy.calls for call in range(policy.calls + 1)]
    for level, below in pairwise(levels):
        a, b = policy.path.alpha_bar[level], policy.path.alpha_bar[below]
        gain = (1 - a).sqrt() / (a * values + 1 - a)
        ratio = (b / a).sqrt() + ((1 - b).sqrt() - (b / a).sqrt() * (1 - a).sqrt()) * gain
        shift = -((1 - b).sqrt() - (b / a).sqrt() * (1 - a).sqrt()) * gain * a.sqrt() * centre
        mean, variance = ratio * mean + shift, ratio**2 * variance
    return vectors @ mean, vectors @ torch.diag(variance) @ vectors.T


@pytest.mark.parametrize("calls", [1, 4, 16, 100])
def test_ddim_is_the_exactly_propagated_recursion(calls):
    policy, _, _ = gaussian_policy(calls=calls)
    mean, covariance = sampled_affine(policy)
    expected_mean, expected_covariance = propagated(policy)
    torch.testing.assert_close(mean, expected_mean, atol=2e-2, rtol=0)
    torch.testing.assert_close(covariance, expected_covariance, atol=2e-2, rtol=0)


def test_ddim_converges_to_the_data_as_calls_grow():
    errors = []
    for calls in (2, 8, 40, 400):
        policy, _, covariance = gaussian_policy(calls=calls, levels=400)
        errors.append(float((propagated(policy)[1] - covariance).abs().max()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.01


def test_ancestral_samples_have_the_moments_of_the_data():
    policy, mean, covariance = gaussian_policy(sampler="ddpm", calls=100)
    samples, seeds = 4000, torch.Generator().manual_seed(0)
    noise = torch.randn(samples, H, 1, generator=seeds)
    fresh = torch.randn(samples, 100, H, 1, generator=seeds)
    drawn = policy.sampling(policy.network)(noise, torch.zeros(samples, 1), fresh)[:, :, 0].double()
    deviation = covariance.diagonal().sqrt()
    assert ((drawn.mean(0) - mean).abs() < 5 * deviation / samples**0.5).all()
    torch.testing.assert_close(torch.cov(drawn.T), covariance, atol=0.04, rtol=0)


def test_sampling_is_diffusers_own_loop_with_the_same_network():
    policy, calls = toy_policy(DIFFUSION, calls=10), 10
    scheduler = DDIMScheduler(
        num_train_timesteps=100,
        beta_schedule="squaredcos_cap_v2",
        clip_sample=True,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(calls)
    noise, context = torch.randn(3, H, 3), torch.randn(3, 8)
    x = noise
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            predicted = policy.network(x, torch.full((3, H), (int(timestep) + 1) / 100), context)
            x = scheduler.step(predicted, timestep, x).prev_sample
        torch.testing.assert_close(policy.sampling(policy.network)(noise, context), x, atol=1e-4, rtol=1e-4)


def test_every_training_level_is_drawn_and_none_is_clean():
    policy, seen = toy_policy(DIFFUSION), []
    policy.network.register_forward_pre_hook(lambda _, inputs: seen.append((inputs[1] * 100).round().long()))
    batch = Batch(torch.randn(3000, 2, 4), torch.randn(3000, H, 3), torch.ones(3000, H, dtype=torch.bool))
    policy.loss(batch, torch.Generator().manual_seed(0))
    levels = seen[0]
    assert (levels == levels[:, :1]).all()
    assert set(levels[:, 0].tolist()) == set(range(1, 101))


def test_nothing_but_the_count_of_observations_lasts():
    policy, observation = toy_policy(DIFFUSION), toy_stream(0, 1)[0]
    first, states = policy.step([[observation] * 2], [policy.initial_state(5)], [4])
    second, _ = policy.step([[observation] * 2], states, [4])
    again, _ = policy.step([[observation] * 2], [policy.initial_state(5)], [0])
    assert (first[0].actions == again[0].actions).all()
    assert not (first[0].actions == second[0].actions).all()


def test_the_preview_is_the_clean_rest_of_the_horizon():
    policy, observation = toy_policy(DIFFUSION), toy_stream(0, 1)[0]
    chunks, _ = policy.step([[observation] * 2], [policy.initial_state(5)], [4])
    noise = seeded_normal((1, H, 3), 5, 0)
    with torch.no_grad():
        sampled = policy.sampling(policy.network)(noise, policy.encode([[observation] * 2]))
        whole = policy.action_normalizer.denormalize(sampled)[0]
    preview = chunks[0].preview
    assert preview.levels.tolist() == [0.0] * 12
    torch.testing.assert_close(torch.from_numpy(chunks[0].actions), whole[:4])
    torch.testing.assert_close(torch.from_numpy(preview.actions), whole[4:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "dpm++"}, r"a sampler for policy.sampler; found dpm\+\+"),
        ({"sampler": "euler"}, "trained with policy.path=ddpm; found policy.sampler=euler, for path flow"),
        ({"calls": 0}, "policy.calls between 1 and policy.levels"),
        ({"calls": 101}, "policy.calls between 1 and policy.levels"),
        ({"sampler": "ddpm", "calls": 16}, "policy.calls=100 with sampler ddpm"),
    ],
)
def test_settings_that_cannot_work_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        toy_policy(DIFFUSION, **settings)
