"""The noise path against diffusers' schedulers at constant levels, and against the forward process in closed form."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from embodied.policies.ddpm_path import DdpmPath, squared_cosine_alpha_bar

N, B, H, A = 100, 5, 8, 3
SCHEDULE = {"num_train_timesteps": N, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon"}


@pytest.fixture(params=[True, False], ids=["clip", "no clip"])
def clip(request):
    return request.param


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def constant(level):
    return torch.full((H,), level)


def test_alpha_bar_is_that_of_diffusers():
    expected = DDPMScheduler(**SCHEDULE).alphas_cumprod
    alpha_bar = squared_cosine_alpha_bar(N)
    assert alpha_bar[0] == 1.0
    torch.testing.assert_close(alpha_bar[1:].float(), expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("level", [1, 37, 99])
def test_add_noise_at_a_constant_level_is_that_of_diffusers(level):
    clean, noise = normal(B, H, A), normal(B, H, A, seed=1)
    expected = DDPMScheduler(**SCHEDULE).add_noise(clean, noise, torch.full((B,), level - 1))
    torch.testing.assert_close(DdpmPath(N).add_noise(clean, noise, constant(level).expand(B, H)), expected)


def test_level_zero_is_clean():
    clean = normal(B, H, A)
    assert torch.equal(
        DdpmPath(N).add_noise(clean, normal(B, H, A, seed=1), torch.zeros(B, H, dtype=torch.int64)), clean
    )


@pytest.mark.parametrize("calls", [4, 10, 100])
def test_ddim_at_constant_levels_is_that_of_diffusers(calls, clip):
    scheduler = DDIMScheduler(**SCHEDULE, clip_sample=clip, set_alpha_to_one=True, timestep_spacing="trailing")
    scheduler.set_timesteps(calls)
    path = DdpmPath(N)
    ours = theirs = normal(B, H, A)
    for call, timestep in enumerate(scheduler.timesteps):
        level = N * (calls - call) // calls
        assert int(timestep) == level - 1
        predicted = normal(B, H, A, seed=call + 2)
        theirs = scheduler.step(predicted, timestep, theirs, eta=0.0).prev_sample
        ours = path.move(constant(level), constant(N * (calls - call - 1) // calls), clip)(ours, predicted)
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4 * float(theirs.abs().max()))


def test_ancestral_steps_are_those_of_diffusers(clip):
    scheduler = DDPMScheduler(**SCHEDULE, clip_sample=clip, variance_type="fixed_small")
    scheduler.set_timesteps(N)
    path = DdpmPath(N)
    for level in (100, 60, 2, 1):
        noisy, predicted = normal(B, H, A, seed=level), normal(B, H, A, seed=level + 1)
        expected = scheduler.step(predicted, level - 1, noisy, generator=torch.Generator().manual_seed(7)).prev_sample
        fresh = torch.randn(B, H, A, generator=torch.Generator().manual_seed(7))
        ours = path.ancestral_step(noisy, predicted, level, fresh, clip)
        torch.testing.assert_close(ours, expected, rtol=2e-4, atol=2e-4 * float(expected.abs().max()))


def test_positions_move_by_their_own_levels():
    path, noisy, predicted = DdpmPath(N), normal(B, H, A), normal(B, H, A, seed=1)
    level = torch.tensor([0, 0, 10, 20, 50, 50, 100, 100])
    below = torch.tensor([0, 0, 0, 10, 25, 50, 75, 99])
    moved = path.move(level, below, clip=False)(noisy, predicted)
    for position in range(H):
        alone = path.move(level[position : position + 1], below[position : position + 1], clip=False)
        expected = alone(noisy[:, position : position + 1], predicted[:, position : position + 1])
        torch.testing.assert_close(moved[:, position : position + 1], expected)


def test_a_position_whose_level_does_not_fall_is_returned_as_it_came():
    noisy = 3 * normal(B, H, A)  # beyond the clipping range
    level = torch.tensor([0, 0, 30, 30, 30, 30, 80, 80])
    below = torch.tensor([0, 0, 30, 10, 10, 10, 60, 80])
    moved = DdpmPath(N).move(level, below, clip=True)(noisy, normal(B, H, A, seed=1))
    assert torch.equal(moved[:, [0, 1, 2, 7]], noisy[:, [0, 1, 2, 7]])
    assert not torch.equal(moved[:, 3], noisy[:, 3])


def test_raising_in_two_steps_has_the_variance_of_raising_in_one():
    path = DdpmPath(N)
    clean, low, high = (torch.tensor([level]) for level in (0, 40, 90))
    signal_1, noise_1 = path.raising(clean, low)
    signal_2, noise_2 = path.raising(low, high)
    signal, noise = path.raising(clean, high)
    torch.testing.assert_close(signal_1 * signal_2, signal)
    torch.testing.assert_close((signal_2 * noise_1) ** 2 + noise_2**2, noise**2)
    torch.testing.assert_close(signal**2 + noise**2, torch.ones(1, 1))
