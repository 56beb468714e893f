"""Streaming with a hard prefix: the actions that run while the policy thinks are known, and stay as they are."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from toy_policies import SDP, STREAMING_FLOW, TINY_UNET, GaussianDenoiser, stationary_gaussian, toy_policy, toy_stream
from toy_specs import arm_spec

from embodied.errors import UserError
from embodied.policies.batch import Batch
from embodied.policies.ladder import Ladder
from embodied.session import Session

TA = 4
DELAYED = {**SDP, "largest_delay": 4}
RELATIVE = [
    {"representation": "chunk_relative", "rotation": "rotation_6d"},
    {"representation": "delta", "rotation": "rotation_6d"},
]
LAYOUTS = {
    "ddpm": DELAYED,
    "flow": {**STREAMING_FLOW, "largest_delay": 4},
    "past and trailing": {**DELAYED, "past": 1},
    "without clipping": {**DELAYED, "clip": False},
    "unet": DELAYED,
}


def layouts():
    return pytest.mark.parametrize(
        ("settings", "network"),
        [(settings, TINY_UNET if name == "unet" else {}) for name, settings in LAYOUTS.items()],
        ids=LAYOUTS.keys(),
    )


def prefixed(settings, network=None, **changes):
    return toy_policy(settings, **({"network": network} if network else {}), **changes)


def batch(size, seed=0, horizon=16, valid=None):
    generator = torch.Generator().manual_seed(seed)
    shapes = (2, 4), (horizon, 3)
    draw = [torch.randn(size, *shape, generator=generator) for shape in shapes]
    return Batch(*draw, torch.ones(size, horizon, dtype=torch.bool) if valid is None else valid)


def levels_seen(policy):
    """What reaches the network from now on, a list that grows."""
    seen = []
    policy.network.register_forward_pre_hook(
        lambda _, inputs: seen.extend((inputs[1] * policy.path.levels).round().long().tolist())
    )
    return seen


@layouts()
@pytest.mark.parametrize("delay", [1, 3, 4])
@pytest.mark.parametrize("k", [1, 3])
def test_the_executed_prefix_stays_in_the_buffer_bit_for_bit(settings, network, delay, k):
    policy = prefixed(settings, network, inference_delay=delay, k=k)
    states, head = [policy.initial_state(0)], policy.past + delay
    for t, observation in enumerate(toy_stream(0, 4)):
        before = states[0].buffer_HA
        chunks, states = policy.step([[observation] * 2], states, [TA])
        after = states[0].buffer_HA
        if t:
            assert torch.equal(after[:head], before[TA : TA + head])
            assert not torch.isclose(after[head:-TA], before[head + TA :]).all(-1).any()
        whole = policy.action_normalizer.denormalize(after)
        handed_out = whole[policy.past if t == 0 else head : head + TA]
        assert torch.equal(torch.from_numpy(chunks[0].actions), handed_out)


def test_a_prefix_of_a_chunk_executed_in_part_stays_too():
    policy = toy_policy(DELAYED, inference_delay=3)
    history = [toy_stream(0, 1)[0]] * 2
    _, states = policy.step([history], [policy.initial_state(0)], [0])
    for executed in (2, 0, 3, 4):
        before = states[0].buffer_HA
        _, states = policy.step([history], states, [executed])
        assert torch.equal(states[0].buffer_HA[:3], before[executed : executed + 3])


@pytest.mark.parametrize("settings", [DELAYED, STREAMING_FLOW], ids=["ddpm", "flow"])
@pytest.mark.parametrize("actions", RELATIVE, ids=lambda actions: actions["representation"])
def test_a_prefix_of_differences_commands_the_same_poses_from_a_new_reference(settings, actions):
    policy = toy_policy(settings, spec=arm_spec(), actions=actions, inference_delay=3)
    older, newer = toy_stream(0, 2, arm_spec())
    histories = [older, older], [older, newer]
    states, plans = [policy.initial_state(0)], []
    for history in histories:
        _, states = policy.step([history], states, [TA])
        learned = policy.action_normalizer.denormalize(states[0].buffer_HA)[None]
        plans.append(policy.actions.decode(learned, policy.anchors([history])))
    torch.testing.assert_close(plans[1][0, :3], plans[0][0, TA : TA + 3], atol=1e-4, rtol=0)
    assert not torch.isclose(plans[1][0, 3:8], plans[0][0, TA + 3 : TA + 8], atol=1e-4).all()


@layouts()
def test_chunks_of_two_observations_join_without_overlap(settings, network):
    policy = prefixed(settings, network, inference_delay=3)
    session, chunks = Session(policy), []
    session.reset(0)
    for t, observation in enumerate(toy_stream(0, 13)):
        session.observe(observation)
        if t % TA == 0:
            chunks.append(session.act(observation))
    assert [len(chunk.actions) for chunk in chunks] == [TA + 3, TA, TA, TA]
    assert [round(chunk.start_s, 6) for chunk in chunks] == [0.0, 0.7, 1.1, 1.5]
    for chunk, following in pairwise(chunks):
        assert chunk.start_s + len(chunk.actions) * 0.1 == pytest.approx(following.start_s)
        assert len(chunk.preview.levels) == len(chunk.preview.actions) and (chunk.preview.levels > 0).all()


@pytest.mark.parametrize("past", [0, 1])
def test_training_shows_each_prefix_as_often_and_exactly_what_inference_visits(past):
    """The ladders of every d and k, and one level for all, which never has a prefix."""
    policy = toy_policy(SDP, largest_delay=2, past=past)
    samples = policy.training_levels(40_000, torch.Generator().manual_seed(0)).numpy()
    training = {tuple(row) for row in samples.tolist()}
    lengths = np.where(samples[:, 0] == 0, (samples == 0).sum(1) - past, 0)
    on_ladder = samples.min(1) != samples.max(1)
    shares = [(on_ladder & (lengths == d)).mean() for d in range(3)]
    assert sum(shares) == pytest.approx(0.8, abs=0.01) and max(abs(share - 0.8 / 3) for share in shares) < 0.02
    acting = set()
    for delay in range(3):
        on_ladder = {
            tuple(level.tolist())
            for k in range(1, policy.ladder_with(delay).most_calls + 1)
            for level in policy.ladder_with(delay).cycle(k)[:-1]
        }
        acting |= on_ladder
    assert training == acting | {(level,) * 16 for level in range(1, 101)}


@pytest.mark.parametrize("delay", [0, 2, 4])
def test_what_the_network_is_asked_about_was_trained(delay):
    policy = toy_policy(DELAYED, inference_delay=delay)
    trained = {tuple(row) for row in policy.visited_MH(delay).tolist()} | {(level,) * 16 for level in range(1, 101)}
    seen = levels_seen(policy)
    history = [toy_stream(0, 1)[0]] * 2
    for k in (1, 2, 5, 25):
        policy.configure(k=k)
        _, states = policy.step([history], [policy.initial_state(0)], [0])
        policy.step([history], states, [TA])
    assert {tuple(row) for row in seen} <= trained


@pytest.mark.parametrize("settings", [DELAYED, STREAMING_FLOW], ids=["ddpm", "flow"])
def test_clean_positions_do_not_reach_the_loss(settings):
    """The same loss as with those positions masked, whatever the network says of them."""
    policy = toy_policy(settings)
    level_BH = Ladder(16, TA, 0, 100, prefix=3).at(0, 2).expand(8, -1)
    masked = torch.ones(8, 16, dtype=torch.bool)
    masked[:, :3] = False
    error = [
        policy.prediction_error(batch(8, valid=valid), level_BH, torch.Generator().manual_seed(0))
        for valid in (None, masked)
    ]
    assert torch.equal(*error)
    inner = policy.network.forward
    policy.network.forward = lambda *inputs: inner(*inputs) + 1e3 * (inputs[1] == 0).unsqueeze(-1)
    again = policy.prediction_error(batch(8), level_BH, torch.Generator().manual_seed(0))
    assert torch.equal(again, error[0])


def test_the_prefix_is_shown_clean():
    policy, shown = toy_policy(DELAYED), []
    policy.network.register_forward_pre_hook(lambda _, inputs: shown.append(inputs))
    seen = batch(200)
    policy.loss(seen, torch.Generator().manual_seed(0))
    noisy, level, _ = shown[0]
    clean = level == 0
    assert clean.any(1).float().mean() > 0.55  # 4 of 5 delays on the ladder, which 0.8 are on
    assert torch.equal(noisy[clean], policy.action_normalizer.normalize(seen.action_BHA)[clean])


def test_the_prefix_is_what_was_executed_and_the_rest_the_label():
    """A noisy demonstration's labels answer to its noise: as a prefix they would tell what only the future shows."""
    policy, asked = toy_policy(DELAYED), []
    assert policy.sees_executed and not toy_policy(SDP).sees_executed
    policy.network.register_forward_pre_hook(lambda _, inputs: asked.append(inputs))
    seen = batch(200)
    executed = replace(seen, executed_BHA=seen.action_BHA + 0.3)
    loss = [policy.loss(one, torch.Generator().manual_seed(0)) for one in (seen, executed)]
    (labelled, level, _), (noisy, again, _) = asked
    assert torch.equal(level, again) and loss[0] != loss[1]
    clean = level == 0
    assert torch.equal(noisy[clean], policy.action_normalizer.normalize(executed.executed_BHA)[clean])
    assert torch.equal(noisy[~clean], labelled[~clean])


@pytest.mark.parametrize("layout", [{}, {"past": 1}, {"action_steps": 8}], ids=str)
def test_without_delays_levels_and_loss_are_those_of_the_paper_s_mixture_bit_for_bit(layout):
    """Drawn here as they were before there were prefixes: a row of the ladder, a constant, which of the two."""
    policy, size = toy_policy(SDP, **layout), 64
    generator = torch.Generator().manual_seed(3)
    ladder = Ladder(16, layout.get("action_steps", TA), layout.get("past", 0), 100)
    rows = sorted({tuple(v.tolist()) for k in range(1, ladder.most_calls + 1) for v in ladder.cycle(k)[:-1]})
    row = torch.randint(len(rows), (size,), generator=generator)
    constant = torch.randint(1, 101, (size,), generator=generator)
    on_ladder = torch.rand(size, generator=generator) < 0.8
    level = torch.where(on_ladder[:, None], torch.tensor(rows)[row], constant[:, None])
    assert torch.equal(policy.training_levels(size, torch.Generator().manual_seed(3)), level)
    data = batch(size)
    noise = torch.randn(data.action_BHA.shape, generator=generator)
    signal = policy.path.alpha_bar[level].sqrt().float()[..., None]
    noisy = signal * data.action_BHA + (1 - policy.path.alpha_bar[level]).sqrt().float()[..., None] * noise
    predicted = policy.network(noisy, level / 100, policy.context(data.state_BTS))
    expected = (predicted - noise).square().mean(-1).sum() / (size * 16)
    assert torch.equal(policy.loss(data, torch.Generator().manual_seed(3)), expected)


def test_the_known_prefix_steers_what_follows():
    """With the ideal denoiser of a slow process the next chunk's first action is near the prefix's last one."""
    policy = toy_policy(DELAYED, inference_delay=3, k=25, clip=False)
    policy.network = GaussianDenoiser(*stationary_gaussian(16), 100)
    observation = toy_stream(0, 1)[0]
    states = [policy.initial_state(seed) for seed in range(200)]
    for _ in range(3):
        _, states = policy.step([[observation] * 2] * 200, states, [TA] * 200)
    buffers = torch.stack([state.buffer_HA for state in states])
    joint = (buffers[:, 3] - buffers[:, 2]).square().mean()
    neighbours = 2 * 0.3 * (1 - 0.9)  # of the process
    assert joint < 1.3 * neighbours


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        (SDP, {"inference_delay": 1}, "policy.inference_delay between 0 and 0, the longest prefix.*; found 1"),
        (DELAYED, {"inference_delay": 5}, "between 0 and 4, the longest prefix.*found 5.*train with policy.largest_de"),
        (DELAYED, {"inference_delay": -1}, "policy.inference_delay between 0 and 4, .*; found -1"),
        (DELAYED, {"inference_delay": 1.5}, "policy.inference_delay between 0 and 4, .*; found 1.5"),
        (DELAYED, {"inference_delay": 2, "initialization": "zero"}, "denoise with policy.inference_delay.*found zero"),
        (SDP, {"largest_delay": 13}, r"largest_delay between 0 and .* = 12, so that a chunk fits .*; found 13"),
        (SDP, {"largest_delay": 12, "past": 1}, "largest_delay between 0 and .* = 11, .*; found 12"),
        (SDP, {"largest_delay": -1}, "largest_delay between 0 and .* found -1"),
        ({**DELAYED, "k": 26}, {}, "policy.k between 1 and .* = 25; found 26"),
    ],
)
def test_settings_that_cannot_work_are_named(settings, changes, message):
    with pytest.raises(UserError, match=message):
        toy_policy(settings, **changes)


def test_the_delay_is_chosen_at_run_time_and_says_so():
    policy = toy_policy(DELAYED)
    policy.configure(inference_delay=3)
    assert policy.label == "sdp k=2 d=3" and policy.ladder.prefix == 3
    with pytest.raises(UserError, match="the longest prefix"):
        policy.configure(inference_delay=5)
    assert policy.inference_delay == 3 and policy.ladder.prefix == 3
    policy.configure(inference_delay=0)
    history = [toy_stream(0, 1)[0]] * 2
    once, again = (p.step([history], [p.initial_state(0)], [0])[0][0] for p in (policy, toy_policy(DELAYED)))
    assert np.array_equal(once.actions, again.actions)


def test_a_shorter_ladder_behind_a_prefix_allows_more_calls_but_only_there():
    """d = 4 leaves three chunks, k up to 33; back at d = 0 that k is too much."""
    policy = toy_policy(DELAYED, inference_delay=4, k=33)
    with pytest.raises(UserError, match="policy.k between 1 and .* = 25; found 33"):
        policy.configure(inference_delay=0)
    assert policy.inference_delay == 4
