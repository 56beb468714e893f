"""A streaming buffer of differences whose reference moves: what it commands and how noisy it is stay as they are."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from toy_policies import DIFFUSION, SDP, roll, toy_policy, toy_stream
from toy_specs import absolute_spec, arm_spec

from embodied.errors import UserError
from embodied.policies.moving_reference import re_expressed
from embodied.types import Observation, Statistics

RELATIVE = ("delta", "chunk_relative")
H, STEPS = 16, 4


def arm_policy(representation, **settings):
    """With a normaliser that scales and shifts, as data with these limits would make it."""
    actions = {"representation": representation, "rotation": "rotation_6d"}
    policy = toy_policy(SDP, spec=arm_spec(), actions=actions, clip=False, **settings)
    random = np.random.default_rng(3)
    low = random.uniform(-4, -1, policy.actions.size)
    high = random.uniform(1, 6, policy.actions.size)
    limits = Statistics(low, high, (low + high) / 2, (high - low) / 4, 9)
    policy.fit_normalizers(Statistics(-np.ones(8), np.ones(8), np.zeros(8), np.ones(8), 9), limits)
    return policy


def arm_state(seed):
    random = np.random.default_rng(seed)
    return torch.from_numpy(
        np.concatenate([[0.1], Rotation.random(rng=random).as_quat(), random.normal(size=3)])
    ).float()


def arm_plan(seed):
    """Absolute actions [H 8] with turns that stay below half a turn."""
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.uniform(-1.5, 1.5, (H, 8)).astype(np.float32))


@pytest.mark.parametrize("executed", [0, 1, 3, 4])
@pytest.mark.parametrize("past", [0, 1])
@pytest.mark.parametrize("representation", RELATIVE)
def test_the_noisy_buffer_is_one_noised_with_the_new_reference(representation, past, executed):
    """Built from a plan, an old reference and noise; compared with the plan encoded for the new reference."""
    policy = arm_policy(representation, past=past)
    plan, noise = arm_plan(0), torch.randn(H, policy.actions.size, generator=torch.Generator().manual_seed(0))
    old, new = (policy.actions.anchors(arm_state(seed)) for seed in (1, 2))
    signal, scale = (x.float() for x in policy.path.scales(policy.end_H))
    normalize = policy.action_normalizer.normalize
    buffer = signal * normalize(policy.actions.encode(plan, old)) + scale * noise

    moved = re_expressed(
        buffer, executed, old, new, signal_H1=signal, actions=policy.actions, normalizer=policy.action_normalizer
    )

    fresh = normalize(policy.actions.encode(plan[executed:], new))
    clean = policy.end_H[executed:] == 0
    residual = (moved[executed:] - signal[executed:] * fresh) / scale[executed:]
    torch.testing.assert_close(moved[executed:][clean], fresh[clean], atol=1e-4, rtol=0)
    # What is left is the old noise, its columns of the 6-D rotation turned: still white, of the same length.
    turned, others = [[1, 2, 3], [4, 5, 6]], [0, 7, 8, 9, 10]
    kept = noise[executed:][~clean]
    torch.testing.assert_close(residual[~clean][:, others], kept[:, others], atol=1e-3, rtol=0)
    for columns in turned:
        torch.testing.assert_close(
            residual[~clean][:, columns].norm(dim=-1), kept[:, columns].norm(dim=-1), atol=1e-3, rtol=0
        )
    changed = (residual[~clean][:, turned[0]] - kept[:, turned[0]]).abs().amax(-1) > 1e-2
    first = torch.arange(H)[executed:][~clean] == executed
    assert torch.equal(changed, first if representation == "delta" else torch.ones_like(changed))


def test_turned_noise_is_white():
    """The covariance of M e over many draws is the identity, since the six elements share one scale."""
    policy = arm_policy("chunk_relative")
    old, new = (policy.actions.anchors(arm_state(seed)) for seed in (1, 2))
    scale = policy.action_normalizer.scale.double()
    matrix, _ = policy.actions.change_of_base(old, new)
    in_normalised_space = torch.diag(scale) @ matrix @ torch.diag(1 / scale)
    identity = torch.eye(policy.actions.size, dtype=torch.float64)
    torch.testing.assert_close(in_normalised_space @ in_normalised_space.T, identity, atol=1e-6, rtol=0)
    assert len(set(scale[1:7].tolist())) == 1 and len(set(scale.tolist())) > 4


def first_network_input(policy, history, states, executed):
    seen = []
    hook = policy.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0].clone()))
    policy.step([history], states, [executed])
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("executed", [0, 2, 4])
@pytest.mark.parametrize("representation", RELATIVE)
def test_a_session_re_expresses_its_buffer_for_every_observation(representation, executed):
    """What the network gets after the point moved, less what it gets if the point is where its base was."""
    policy = toy_policy(SDP, spec=absolute_spec(), actions={"representation": representation})
    first, second = toy_stream(0, 2, absolute_spec())
    chunks, states = policy.step([[first] * 2], [policy.initial_state(5)], [0])
    base = first.state["point"]
    if executed and representation == "delta":
        base = chunks[0].actions[executed - 1, :2]
    at_base = Observation({**second.state, "point": base}, time_s=second.time_s)
    moved = first_network_input(policy, [first, second], states, executed)
    still = first_network_input(policy, [first, at_base], states, executed)

    unmoved = roll(policy, states[0].buffer_HA, executed, torch.zeros(H, 3))
    signal = policy.path.alpha_bar[policy.end_H].sqrt().float()
    move = torch.zeros(H, 3)
    rows = slice(executed, executed + 1 if representation == "delta" else H)
    # The toy policy's normaliser scales by 1.
    move[rows, :2] = signal[rows, None] * torch.from_numpy(base - second.state["point"])
    expected = roll(policy, states[0].buffer_HA + move, executed, torch.zeros(H, 3)) - unmoved
    torch.testing.assert_close(moved - still, expected, atol=1e-5, rtol=0)
    assert expected.abs().max() > 0.1


@pytest.mark.parametrize("representation", RELATIVE)
def test_an_observation_shifted_as_a_whole_shifts_the_chunks(representation):
    """A policy that does not see where it is (its state is constant to it) acts relative to where it is."""
    policy = toy_policy(SDP, spec=absolute_spec(), actions={"representation": representation})
    with torch.no_grad():
        policy.state_normalizer.scale.zero_()  # the network is blind
    stream = toy_stream(0, 5, absolute_spec())

    def chunks(shift):
        moved = [
            Observation({**o.state, "point": o.state["point"] + np.float32(shift)}, time_s=o.time_s) for o in stream
        ]
        states, found = [policy.initial_state(1)], []
        for before, now in pairwise(moved):
            handed_out, states = policy.step([[before, now]], states, [STEPS])
            found.append(handed_out[0])
        return found

    for here, there in zip(chunks(0.0), chunks(3.0), strict=True):
        np.testing.assert_allclose(there.actions - here.actions, [[3.0, 3.0, 0.0]] * STEPS, atol=2e-5)
        shift = there.preview.actions - here.preview.actions
        np.testing.assert_allclose(shift, [[3.0, 3.0, 0.0]] * (H - STEPS), atol=2e-5)


def test_a_chunk_as_long_as_the_buffer_leaves_nothing_to_re_express():
    for representation in RELATIVE:
        actions = {"representation": representation}
        policy = toy_policy(SDP, spec=absolute_spec(), action_steps=16, actions=actions)
        first, second = toy_stream(0, 2, absolute_spec())
        _, states = policy.step([[first] * 2], [policy.initial_state(5)], [0])
        chunks, _ = policy.step([[first, second]], states, [16])
        assert np.isfinite(chunks[0].actions).all()


@pytest.mark.parametrize("representation", RELATIVE)
def test_noisy_axis_angles_cannot_follow_and_are_refused(representation):
    actions = {"representation": representation}
    with pytest.raises(
        UserError, match=r"rotation_6d where policy sdp learns differences.*set policy.actions.rotation="
    ):
        toy_policy(SDP, spec=arm_spec(), actions=actions)
    toy_policy(SDP, spec=arm_spec(), actions={"representation": "absolute", "rotation": "axis_angle"})
    toy_policy(DIFFUSION, spec=arm_spec(), actions=actions)


def test_deltas_need_the_observation_at_the_chunk_s_first_position():
    settings = {"spec": absolute_spec(), "past": 2, "horizon": 16}
    with pytest.raises(UserError, match=r"policy.history above policy.past .* found history 2, past 2"):
        toy_policy(SDP, actions={"representation": "delta"}, **settings)
    toy_policy(SDP, actions={"representation": "delta"}, **{**settings, "past": 1})
    toy_policy(SDP, actions={"representation": "chunk_relative"}, **settings)


def test_deltas_with_past_positions_begin_at_the_older_observation():
    policy = toy_policy(DIFFUSION, spec=absolute_spec(), past=1, actions={"representation": "delta"})
    history = toy_stream(0, 2, absolute_spec())
    torch.testing.assert_close(policy.anchors([history])[0][0], torch.from_numpy(history[0].state["point"]).double())
    policy = toy_policy(DIFFUSION, spec=absolute_spec(), past=1, actions={"representation": "chunk_relative"})
    torch.testing.assert_close(policy.anchors([history])[0][0], torch.from_numpy(history[1].state["point"]).double())
