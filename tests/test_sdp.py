"""Streaming diffusion policy: the sampler against the exactly propagated Gaussian, and the faults it must not have."""

from itertools import pairwise

import pytest
import torch
from toy_policies import SDP, TINY_UNET, GaussianDenoiser, roll, stationary_gaussian, toy_policy, toy_stream

from embodied.errors import UserError
from embodied.policies.batch import Batch
from embodied.session import Session

LAYOUTS = {
    "h=4": {},
    "h=3 with past and trailing positions": {"past": 1},
    "h=2": {"action_steps": 8},
    "h=5, N=64": {"horizon": 20, "levels": 64},
}


def gaussian_policy(**settings):
    policy = toy_policy(SDP, clip=False, **settings)
    mean, covariance = stationary_gaussian(policy.horizon)
    policy.network = GaussianDenoiser(mean, covariance, policy.path.levels)
    return policy, mean.double(), covariance.double()


class ExactRecursion:
    """Mean [H] and covariance [H H] of the buffer, propagated through the affine moves in float64."""

    def __init__(self, policy):
        self.policy, self.alpha_bar = policy, policy.path.alpha_bar
        self.H = policy.horizon
        self.mean, self.covariance = torch.zeros(self.H).double(), torch.eye(self.H).double()

    def move(self, level, below):
        signal, noise = self.alpha_bar[level].sqrt(), (1 - self.alpha_bar[level]).sqrt()
        next_signal, next_noise = self.alpha_bar[below].sqrt(), (1 - self.alpha_bar[below]).sqrt()
        matrix, offset = self.policy.network.affine(level)
        falls = (level > below).double()
        own = torch.where(level > below, next_signal / signal, torch.ones_like(signal))
        predicted = falls * (next_noise - next_signal * noise / signal)
        self.apply(torch.diag(own) + predicted[:, None] * matrix, predicted * offset)

    def apply(self, matrix, offset):
        self.mean = matrix @ self.mean + offset
        self.covariance = matrix @ self.covariance @ matrix.T

    def raise_levels(self, level, to_level):
        ratio = self.alpha_bar[to_level] / self.alpha_bar[level]
        self.apply(torch.diag(ratio.sqrt()), torch.zeros(self.H).double())
        self.covariance = self.covariance + torch.diag(1 - ratio)

    def fresh(self):
        ladder, k, calls = self.policy.ladder, self.policy.k, self.policy.initial_calls
        clean = torch.zeros(self.H, dtype=torch.int64)
        if self.policy.initialization == "zero":
            self.mean, self.covariance = torch.zeros(self.H).double(), torch.zeros(self.H, self.H).double()
            self.raise_levels(clean, ladder.at(0, k))
            self.cycle()
            return
        for call in range(calls):
            at, below = (self.policy.path.levels * (calls - c) // calls for c in (call, call + 1))
            self.move(torch.full_like(clean, at), torch.full_like(clean, below))
        self.raise_levels(clean, ladder.at(k, k))

    def cycle(self):
        for level, below in pairwise(self.policy.ladder.cycle(self.policy.k)):
            self.move(level, below)

    def roll(self, executed):
        """Shift, with clean zeros behind, then raise to the start of a cycle."""
        shift = torch.diag(torch.ones(self.H - executed).double(), executed)
        self.apply(shift, torch.zeros(self.H).double())
        end = self.policy.ladder.at(self.policy.k, self.policy.k)
        level = torch.cat([end[executed:], torch.zeros(executed, dtype=torch.int64)])
        self.raise_levels(level, self.policy.ladder.at(0, self.policy.k))


def sampled_affine(policy, executed_sequence):
    """Exact mean and covariance of the sampler: it is affine in its noise, so basis vectors reveal its matrix."""
    H, draws = policy.horizon, 2 + len(executed_sequence)
    basis = torch.cat([torch.zeros(1, draws * H), torch.eye(draws * H)]).reshape(-1, draws, H, 1)
    context = torch.zeros(len(basis), 1)
    buffer = policy.fresh_buffer(policy.network)(basis[:, :2], context)
    for index, executed in enumerate(executed_sequence):
        rolled = [roll(policy, buffer[b], executed, basis[b, 2 + index]) for b in range(len(basis))]
        buffer = policy.cycle(policy.network).loop(torch.stack(rolled), context)
    columns = buffer[:, :, 0].double()
    matrix = (columns[1:] - columns[0]).T
    return columns[0], matrix @ matrix.T


@pytest.mark.parametrize("initialization", ["zero", "denoise"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("k", [1, 3])
def test_sampler_is_the_exactly_propagated_recursion(layout, k, initialization):
    policy, _, _ = gaussian_policy(**layout, k=k, initialization=initialization, initial_calls=7)
    executed = [policy.action_steps, policy.action_steps, 1, 0, policy.action_steps]
    exact = ExactRecursion(policy)
    exact.fresh()
    for steps in executed:
        exact.roll(steps)
        exact.cycle()
    mean, covariance = sampled_affine(policy, executed)
    # float32 against float64 through levels where 1 / sqrt(alpha_bar) is 2e4
    torch.testing.assert_close(mean, exact.mean, atol=2e-2, rtol=0)
    torch.testing.assert_close(covariance, exact.covariance, atol=2e-2, rtol=0)


def test_head_chunk_converges_to_the_data_as_calls_grow():
    def errors(k):
        policy, mean, covariance = gaussian_policy(k=k, initial_calls=100, levels=400)
        exact = ExactRecursion(policy)
        exact.fresh()
        for _ in range(6):
            exact.roll(policy.action_steps)
            exact.cycle()
        head = slice(0, policy.action_steps)
        return (
            float((exact.mean - mean)[head].abs().max()),
            float((exact.covariance - covariance)[head, head].abs().max()),
        )

    by_calls = [errors(k) for k in (1, 4, 20, 100)]
    for coarse, fine in pairwise(by_calls):
        assert fine[1] < coarse[1]
    assert by_calls[-1][0] < 0.01 and by_calls[-1][1] < 0.1 * by_calls[0][1] + 0.02


def acts(session, stream, seed, every=4):
    session.reset(seed)
    chunks = []
    for t, observation in enumerate(stream):
        session.observe(observation)
        if t % every == 0:
            chunks.append(torch.from_numpy(session.act(observation).actions.copy()))
    return torch.stack(chunks)


def test_a_second_episode_never_sees_the_buffer_of_the_first():
    policy, stream = toy_policy(SDP), toy_stream(0, 20)
    fresh = acts(Session(policy), stream, seed=3)
    used = Session(policy)
    acts(used, toy_stream(1, 30), seed=9)
    assert torch.equal(acts(used, stream, seed=3), fresh)


def test_a_session_must_be_reset_before_it_acts():
    with pytest.raises(UserError, match="expected reset"):
        Session(toy_policy(SDP)).act(toy_stream(0, 1)[0])


def test_past_positions_are_noised_again_after_the_roll():
    """The released code computes this and throws it away: its past positions stay clean at a noisy level."""
    policy = toy_policy(SDP, past=1)
    buffer, noise = torch.full((16, 3), 0.5), torch.randn(16, 3)
    rolled = roll(policy, buffer, policy.action_steps, noise)
    signal = policy.path.alpha_bar[policy.start_H[0]].sqrt().float()
    torch.testing.assert_close(rolled[0], 0.5 * signal + (1 - signal**2).sqrt() * noise[0])


def test_a_full_roll_keeps_what_is_at_its_level_and_appends_pure_noise():
    policy = toy_policy(SDP)
    buffer, noise = torch.randn(16, 3), torch.randn(16, 3)
    rolled = roll(policy, buffer, 4, noise)
    assert torch.equal(rolled[:12], buffer[4:])
    torch.testing.assert_close(rolled[12:], noise[12:])


@pytest.mark.parametrize("initialization", ["zero", "denoise"])
def test_calls_of_the_network_are_as_promised(initialization):
    policy = toy_policy(SDP, k=3, initialization=initialization, initial_calls=5)
    calls = []
    policy.network.register_forward_hook(lambda *_: calls.append(1))
    session, stream = Session(policy), toy_stream(0, 8)
    session.reset(0)
    first = session.act(stream[0])
    assert (
        len(calls) == first.network_calls == policy.first_observation_calls == (5 if initialization == "denoise" else 3)
    )
    for observation in stream[1:5]:
        session.observe(observation)
    calls.clear()
    assert session.act(stream[4]).network_calls == len(calls) == policy.calls_per_observation == 3


def test_the_preview_is_the_rest_of_the_buffer_with_its_levels():
    policy, observation = toy_policy(SDP, k=1), toy_stream(0, 1)[0]
    chunks, states = policy.step([[observation] * 2], [policy.initial_state(0)], [0])
    preview, buffer = chunks[0].preview, states[0].buffer_HA
    assert preview.levels.tolist() == [0.25] * 4 + [0.5] * 4 + [0.75] * 4
    torch.testing.assert_close(torch.from_numpy(preview.actions), policy.action_normalizer.denormalize(buffer[4:]))


def test_executing_fewer_actions_rolls_by_that():
    policy, observation = toy_policy(SDP), toy_stream(0, 1)[0]
    _, states = policy.step([[observation] * 2], [policy.initial_state(0)], [0])
    outcomes = [policy.step([[observation] * 2], states, [executed])[1][0].buffer_HA for executed in (4, 2, 0)]
    assert not torch.equal(outcomes[0], outcomes[1]) and not torch.equal(outcomes[1], outcomes[2])


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_training_levels_are_the_ladder_or_constant(layout):
    policy = toy_policy(SDP, **layout, chunkwise=0.8)
    B, seen = 4000, []
    policy.network.register_forward_pre_hook(
        lambda _, inputs: seen.append((inputs[1] * policy.path.levels).round().long())
    )
    shape = (B, policy.horizon)
    batch = Batch(torch.randn(B, 2, 4), torch.randn(*shape, 3), torch.ones(*shape, dtype=torch.bool))
    policy.loss(batch, torch.Generator().manual_seed(0))
    visited = {tuple(row) for row in policy.visited_MH().tolist()}
    rows = [tuple(row) for row in seen[0].tolist()]
    on_ladder = [row for row in rows if row in visited]
    assert all(len(set(row)) == 1 and 1 <= row[0] <= policy.path.levels for row in rows if row not in visited)
    assert abs(len(on_ladder) / B - 0.8) < 0.03
    assert set(on_ladder) == visited


def test_constant_levels_make_the_ideal_loss_of_independent_positions():
    """For white data of variance v at level n the least error a value is v a / (v a + 1 - a), a = alpha_bar_n."""
    policy = toy_policy(SDP, initialization="zero")
    policy.chunkwise = 0.0
    policy.network = GaussianDenoiser(torch.zeros(16), 0.5 * torch.eye(16), 100)
    a = policy.path.alpha_bar[1:]
    expected = (0.5 * a / (0.5 * a + 1 - a)).mean()
    losses = []
    for seed in range(400):  # one sample a batch: the ideal denoiser takes one level vector at a time
        generator = torch.Generator().manual_seed(seed)
        action = 0.5**0.5 * torch.randn(1, 16, 3, generator=generator)
        batch = Batch(torch.zeros(1, 2, 4), action, torch.ones(1, 16, dtype=torch.bool))
        losses.append(policy.loss(batch, generator))
    losses = torch.stack(losses).double()
    assert abs(losses.mean() - expected) < 4 * losses.std() / len(losses) ** 0.5


def test_masked_positions_do_not_reach_the_loss():
    policy = toy_policy(SDP, network=TINY_UNET)
    valid = torch.ones(8, 16, dtype=torch.bool)
    valid[:, 10:] = False
    action = torch.randn(8, 16, 3)
    batch = Batch(torch.randn(8, 2, 4), action, valid)
    level = policy.ladder.at(0, 1).expand(8, -1)
    policy.network = GaussianDenoiser(torch.zeros(16), torch.eye(16), 100)  # diagonal: positions do not mix
    before = policy.prediction_error(batch, level, torch.Generator().manual_seed(0))
    action[:, 10:] = 1e3
    assert torch.equal(policy.prediction_error(batch, level, torch.Generator().manual_seed(0)), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 26}, r"policy.k between 1 and floor\(N / h\) = 25; found 26"),
        ({"k": 0}, "policy.k between 1 and"),
        ({"initialization": "constant"}, "zero or denoise; found constant"),
        ({"initial_calls": 101}, "policy.initial_calls between 1 and"),
        ({"chunkwise": 1.5}, "policy.chunkwise above 0, .*, and at most 1; found 1.5"),
        ({"chunkwise": 0.0}, "policy.chunkwise above 0, since inference visits the ladder"),
        ({"chunkwise": 1.0}, "some constant levels"),
        ({"horizon": 3}, "policy.horizon of at least policy.past"),
        ({"levels": 3}, "policy.levels of at least 4"),
    ],
)
def test_settings_that_cannot_work_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        toy_policy(SDP, **settings)


def test_a_refused_run_time_setting_changes_nothing():
    policy = toy_policy(SDP)
    with pytest.raises(UserError, match="policy.k between"):
        policy.configure(k=99)
    assert policy.k == 2 and policy.label == "sdp k=2"
    with pytest.raises(UserError, match="a run-time setting of StreamingDiffusionPolicy; found policy.calls"):
        policy.configure(calls=4)


@pytest.mark.parametrize(("horizon", "action_steps"), [(16, 4), (20, 6), (10, 3)])
def test_the_network_is_trained_at_exactly_the_levels_that_it_is_asked_about(horizon, action_steps):
    """Seen from outside: the levels that reach the network, while acting with every k and while training."""
    settings = {"horizon": horizon, "action_steps": action_steps, "initialization": "zero", "chunkwise": 1.0}
    policy = toy_policy(SDP, **settings)
    seen = set()

    def note(module, inputs):
        seen.update(tuple(row) for row in (inputs[1] * policy.path.levels).round().int().tolist())

    policy.network.register_forward_pre_hook(note)
    for k in range(1, policy.ladder.most_calls + 1):
        policy.configure(k=k)
        session = Session(policy)
        session.reset(0)
        for t, observation in enumerate(toy_stream(0, 3 * action_steps)):
            session.observe(observation)
            if t % action_steps == 0:
                session.act(observation)
    acting, training = frozenset(seen), seen
    training.clear()
    generator = torch.Generator().manual_seed(0)
    shapes = (2, policy.spec.state_size), (horizon, policy.spec.action.size)
    draw = [torch.zeros(400, *shape) for shape in shapes]
    for _ in range(40):
        policy.loss(Batch(*draw, torch.ones(400, horizon, dtype=torch.bool)), generator)
    assert training == acting
