"""The path of flow matching against closed forms and diffusers' scheduler, and what both paths have in common."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from embodied.catalog import PATHS, lookup
from embodied.errors import UserError
from embodied.policies.flow_path import FlowPath

N, B, H, A = 100, 5, 8, 3


@pytest.fixture(params=list(PATHS))
def path(request):
    return lookup("path", PATHS, request.param)(N)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def constant(level):
    return torch.full((H,), level)


def drawn_levels(seed, lowest=0, highest=N):
    return torch.randint(lowest, highest + 1, (H,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("level", [0, 1, 37, 100])
def test_noisy_actions_lie_on_the_line_between_clean_and_noise(level):
    clean, noise = normal(B, H, A), normal(B, H, A, seed=1)
    noisy = FlowPath(N).add_noise(clean, noise, constant(level).expand(B, H))
    torch.testing.assert_close(noisy, torch.lerp(clean, noise, level / N))


def test_the_target_is_the_velocity_of_that_line():
    path, clean, noise = FlowPath(N), normal(B, H, A), normal(B, H, A, seed=1)
    here, there = (path.add_noise(clean, noise, constant(level).expand(B, H)) for level in (40, 50))
    torch.testing.assert_close(path.target(clean, noise), (there - here) / 0.1, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("level", [1, 37, 100])
def test_add_noise_at_a_constant_level_is_that_of_diffusers(level):
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=N, shift=1.0)
    clean, noise = normal(B, H, A), normal(B, H, A, seed=1)
    expected = scheduler.scale_noise(clean, torch.full((B,), float(level)), noise)
    torch.testing.assert_close(FlowPath(N).add_noise(clean, noise, constant(level).expand(B, H)), expected)


@pytest.mark.parametrize("calls", [1, 4, 10, 100])
def test_moves_at_constant_levels_are_those_of_diffusers(calls):
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=N, shift=1.0)
    levels = [N * (calls - call) // calls for call in range(calls + 1)]
    scheduler.set_timesteps(sigmas=[level / N for level in levels[:-1]])
    path = FlowPath(N)
    ours = theirs = normal(B, H, A)
    for call, timestep in enumerate(scheduler.timesteps):
        assert float(timestep) == pytest.approx(levels[call])
        predicted = normal(B, H, A, seed=call + 2)
        theirs = scheduler.step(predicted, timestep, theirs).prev_sample
        ours = path.move(constant(levels[call]), constant(levels[call + 1]), clip=False)(ours, predicted)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_move_without_clipping_is_euler_s_step_at_every_position_s_own_level():
    path, noisy, velocity = FlowPath(N), normal(B, H, A), normal(B, H, A, seed=1)
    level = torch.tensor([0, 0, 10, 20, 50, 50, 100, 100])
    below = torch.tensor([0, 0, 0, 10, 25, 50, 75, 0])
    moved = path.move(level, below, clip=False)(noisy, velocity)
    torch.testing.assert_close(moved, noisy + (below - level).unsqueeze(-1) / N * velocity, atol=1e-6, rtol=1e-5)


def test_a_clipped_move_goes_toward_the_clipped_clean_actions():
    noisy, velocity, s, below = 2 * normal(B, H, A), 2 * normal(B, H, A, seed=1), 0.6, 0.2
    clean = (noisy - s * velocity).clamp(-1, 1)
    noise = noisy + (1 - s) * velocity
    moved = FlowPath(N).move(constant(60), constant(20), clip=True)(noisy, velocity)
    torch.testing.assert_close(moved, (1 - below) * clean + below * noise, atol=1e-6, rtol=1e-5)


def test_level_zero_is_clean_and_level_N_pure_noise(path):
    clean, noise = normal(B, H, A), normal(B, H, A, seed=1)
    assert torch.equal(path.add_noise(clean, noise, torch.zeros(B, H, dtype=torch.int64)), clean)
    at_N = path.add_noise(clean, noise, torch.full((B, H), N))
    torch.testing.assert_close(at_N, noise, atol=5e-3, rtol=0)
    assert isinstance(path, FlowPath) == torch.equal(at_N, noise)


def test_signal_falls_and_noise_rises_with_the_level(path):
    assert (path.signal.diff() < 0).all() and (path.noise.diff() >= 0).all() and (path.noise.diff()[:-1] > 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_from_the_exact_target_a_move_gives_the_point_with_the_same_noise(path, seed):
    """Target and prediction are inverse: to level 0 the clean actions, to a lower level the path's own point."""
    clean, noise = normal(B, H, A).clamp(-1, 1), normal(B, H, A, seed=1)
    level = drawn_levels(seed, lowest=1)
    level[-1] = N
    target = path.target(clean, noise)
    noisy = path.add_noise(clean, noise, level.expand(B, H))
    # float32 through 1 / signal, which is 2e3 at the last level of the path of DDPM
    tolerance = (1e-6 * path.prediction(level).clean_from_noisy).clamp_min(4e-6).float()
    for below in (torch.zeros_like(level), level // 3, level - 1, level):
        for clip in (False, True):
            expected = path.add_noise(clean, noise, below.expand(B, H))
            moved = path.move(level, below, clip)(noisy, target)
            assert ((moved - expected).abs() <= tolerance).all()


def test_a_position_whose_level_does_not_fall_is_returned_as_it_came(path):
    noisy = 3 * normal(B, H, A)  # beyond the clipping range
    level = torch.tensor([0, 0, 30, 30, 30, 30, 100, 100])
    below = torch.tensor([0, 0, 30, 10, 10, 10, 60, 100])
    moved = path.move(level, below, clip=True)(noisy, normal(B, H, A, seed=1))
    assert torch.equal(moved[:, [0, 1, 2, 7]], noisy[:, [0, 1, 2, 7]])
    assert not torch.isclose(moved[:, 3:7], noisy[:, 3:7]).all(-1).any()


@pytest.mark.parametrize("way", [(0, 40, 90), (0, 40, 100), (0, 100, 100), (0, 0, 100), (37, 38, 39), (5, 5, 5)])
def test_raising_in_two_steps_has_the_variance_of_raising_in_one(path, way):
    low, middle, high = (torch.tensor([level]) for level in way)
    signal_1, noise_1 = path.raising(low, middle)
    signal_2, noise_2 = path.raising(middle, high)
    signal, noise = path.raising(low, high)
    torch.testing.assert_close(signal_1 * signal_2, signal)
    torch.testing.assert_close((signal_2 * noise_1) ** 2 + noise_2**2, noise**2, atol=1e-7, rtol=1e-5)


def test_raised_actions_have_the_scales_of_their_new_level(path):
    level = drawn_levels(0)
    to_level = torch.maximum(level, drawn_levels(1))
    level[:3], to_level[:3] = torch.tensor([0, 0, N]), torch.tensor([0, N, N])
    ratio, fresh = path.raising(level, to_level)
    signal, noise = (x.float() for x in path.scales(level))
    to_signal, to_noise = (x.float() for x in path.scales(to_level))
    torch.testing.assert_close(ratio * signal, to_signal, atol=1e-7, rtol=1e-5)
    torch.testing.assert_close((ratio * noise) ** 2 + fresh**2, to_noise**2, atol=1e-6, rtol=1e-5)
    stays = level == to_level
    assert torch.equal(ratio[stays], torch.ones_like(ratio[stays])) and (fresh[stays] == 0).all()


def test_an_unknown_path_is_named():
    with pytest.raises(UserError, match="the name of a path; found 'flwo'; did you mean 'flow'"):
        lookup("path", PATHS, "flwo")
