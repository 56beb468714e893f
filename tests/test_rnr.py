"""Noise relaying: one call and one action an observation, behind a start-up from pure noise."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from toy_policies import RNR, SDP, GaussianDenoiser, GaussianVelocity, stationary_gaussian, toy_policy, toy_stream
from toy_specs import arm_spec

from embodied.errors import UserError
from embodied.policies.batch import Batch
from embodied.policies.flow_path import FlowPath
from embodied.session import Session

H, N = 16, 100


def act(policy, steps, seed=0):
    session = Session(policy)
    session.reset(seed)
    return [session.act(observation) for observation in toy_stream(0, steps, policy.spec)]


@pytest.mark.parametrize("past", [0, 1])
def test_every_observation_costs_one_call_behind_a_start_up(past):
    policy, calls = toy_policy(RNR, past=past), []
    policy.network.register_forward_hook(lambda *_: calls.append(1))
    session = Session(policy)
    session.reset(0)
    for t, observation in enumerate(toy_stream(0, 5)):
        calls.clear()
        chunk = session.act(observation)
        assert chunk.network_calls == len(calls) == (1 if t else H - past)
        assert chunk.actions.shape == (1, 3) and chunk.start_s == pytest.approx(t * 0.1)
    assert (policy.first_observation_calls, policy.calls_per_observation) == (H - past, 1)


def test_worked_example_of_a_start_up():
    policy = toy_policy(RNR, horizon=4)
    assert [level.tolist() for level in policy.start_up()] == [
        [100, 100, 100, 100],
        [75, 100, 100, 100],
        [50, 75, 100, 100],
        [25, 50, 75, 100],
        [0, 25, 50, 75],
    ]


@pytest.mark.parametrize("past", [0, 1])
@pytest.mark.parametrize("levels", [16, 64, 100])
def test_a_start_up_goes_from_pure_noise_to_the_end_of_a_cycle(levels, past):
    policy = toy_policy(RNR, levels=levels, past=past)
    start_up = policy.start_up()
    assert len(start_up) == policy.first_observation_calls + 1
    assert (start_up[0] == levels).all()
    assert torch.equal(start_up[-2], policy.start_H) and torch.equal(start_up[-1], policy.end_H)
    for level, below in pairwise(start_up):
        assert (level >= below).all() and level[policy.past] > below[policy.past]


def levels_seen(policy):
    seen = []
    policy.network.register_forward_pre_hook(
        lambda _, inputs: seen.extend(tuple(row) for row in (inputs[1] * N).round().long().tolist())
    )
    return seen


def test_the_network_is_asked_about_levels_of_the_mixture_alone():
    """A cycle's own, which the linear share trains; in the start-up levels above 0, which the random share covers."""
    policy = toy_policy(RNR)
    seen = levels_seen(policy)
    act(policy, 4)
    start_up, cycles = seen[: H - 1], seen[H - 1 :]
    assert cycles == [tuple(policy.start_H.tolist())] * 4
    assert all(1 <= level <= N for row in start_up for level in row)


def test_training_draws_six_samples_of_ten_with_independent_levels():
    policy = toy_policy(RNR)
    seen = levels_seen(policy)
    size = 4000
    batch = Batch(torch.randn(size, 2, 4), torch.randn(size, H, 3), torch.ones(size, H, dtype=torch.bool))
    policy.loss(batch, torch.Generator().manual_seed(0))
    linear = tuple(policy.start_H.tolist())
    independent = torch.tensor([row for row in seen if row != linear])
    assert abs(len(independent) / size - 0.6) < 0.03
    assert independent.min() == 1 and independent.max() == N
    assert (torch.corrcoef(independent.double().T) - torch.eye(H)).abs().max() < 0.1
    assert ((independent.double().mean(0) - 50.5).abs() < 3).all()


@pytest.mark.parametrize("path", ["ddpm", "flow"])
def test_the_executed_actions_are_nearly_distributed_like_the_data(path):
    policy = toy_policy(RNR, path=path, horizon=32, levels=320, clip=False)
    mean, covariance = stationary_gaussian(32)
    ideal = GaussianVelocity if isinstance(policy.path, FlowPath) else GaussianDenoiser
    policy.network = ideal(mean, covariance, 320)
    observation, sessions = toy_stream(0, 1)[0], 300
    states, executed = [policy.initial_state(seed) for seed in range(sessions)], []
    for _ in range(4):
        chunks, states = policy.step([[observation] * 2] * sessions, states, [1] * sessions)
        executed.append(np.stack([chunk.actions[0] for chunk in chunks]))
    actions = np.stack(executed)  # [4 observations, sessions, 3 elements, which are independent]
    assert np.abs(actions.mean((1, 2)) - 0.4).max() < 0.1
    assert np.abs(actions.var((1, 2)) / 0.3 - 1).max() < 0.25
    jumps = np.square(np.diff(actions, axis=0)).mean((1, 2))
    assert np.abs(jumps / (2 * 0.3 * 0.1) - 1).max() < 0.6


def test_running_it_is_streaming_with_chunks_of_one_action():
    """From the same buffer, the same as policy=sdp with Ta = 1 and k = 1."""
    relaying, streaming = toy_policy(RNR), toy_policy(SDP, action_steps=1, k=1)
    streaming.load_state_dict(relaying.state_dict())
    history = [toy_stream(0, 1)[0]] * 2
    _, states = relaying.step([history], [relaying.initial_state(0)], [0])
    for _ in range(3):
        theirs, _ = streaming.step([history], states, [1])
        ours, states = relaying.step([history], states, [1])
        assert np.array_equal(ours[0].actions, theirs[0].actions)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"random_levels": 1.5}, "policy.random_levels above 0, .* and at most 1; found 1.5"),
        ({"random_levels": 0.0}, "policy.random_levels above 0, since the start-up .*; found 0.0"),
        ({"levels": 15}, "policy.levels of at least 16"),
        ({"action_steps": 4}, "settings that policy .* takes: .* found .*action_steps"),
    ],
)
def test_settings_that_cannot_work_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        toy_policy(RNR, **settings)


def test_relative_axis_angles_are_refused_as_for_every_noisy_buffer():
    with pytest.raises(UserError, match="rotation_6d where policy rnr learns differences"):
        toy_policy(RNR, spec=arm_spec(), actions={"representation": "chunk_relative"})


def test_what_is_fixed_cannot_be_configured():
    with pytest.raises(UserError, match="a run-time setting of NoiseRelayingPolicy; found policy.k"):
        toy_policy(RNR).configure(k=2)
