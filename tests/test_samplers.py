"""Samplers of whole chunks: against exact recursions on Gaussian data, and what is kept of the last plan."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from toy_policies import (
    DIFFUSION,
    FLOW,
    STREAMING_FLOW,
    GaussianDenoiser,
    GaussianVelocity,
    stationary_gaussian,
    toy_policy,
    toy_stream,
)
from toy_specs import arm_spec

from embodied.errors import UserError
from embodied.policies.flow_path import FlowPath
from embodied.policies.samplers.real_time_chunking import SCHEDULES, guidance_weight, prefix_weights
from embodied.policies.samplers.warm_start import remaining_plan
from embodied.session import Session

H, TA = 16, 4
WARM = {"sampler": "warm_start", "warm_level": 30, "calls": 10}
RTC = {**FLOW, "sampler": "rtc"}
# One of each sampler, with the network calls of a first and of a later observation.
COSTS = {
    "ddim": ({**DIFFUSION, "calls": 5}, 5, 5),
    "ddpm": ({**DIFFUSION, "sampler": "ddpm", "calls": 20, "levels": 20}, 20, 20),
    "euler": ({**FLOW, "calls": 5}, 5, 5),
    "heun": ({**FLOW, "sampler": "heun", "calls": 5}, 9, 9),
    "warm start": ({**DIFFUSION, **WARM}, 10, 3),
    "warm start of a flow": ({**FLOW, **WARM, "warm_level": 35}, 10, 4),
    "rtc": ({**RTC, "calls": 5}, 5, 5),
}


def gaussian_policy(settings=FLOW, **changes):
    policy = toy_policy(settings, clip=False, **changes)
    mean, covariance = stationary_gaussian(H)
    ideal = GaussianVelocity if isinstance(policy.path, FlowPath) else GaussianDenoiser
    policy.network = ideal(mean, covariance, policy.path.levels)
    return policy, mean.double(), covariance.double()


def affine(sampler, inputs, place, *, rows=H):
    """Matrix [H rows] by which a sampler's output depends on one of its inputs [1 H 1], and its value there."""
    basis = torch.eye(rows).unsqueeze(-1)
    spread = [x.expand(rows, *x.shape[1:]) for x in inputs]
    spread[place] = inputs[place] + basis
    with torch.no_grad():
        value = sampler(*inputs)[0, :, 0].double()
        columns = sampler(*spread)[:, :, 0].double()
    return (columns - value).T, value


def propagated(policy, second_order):
    """Mean and covariance in float64, in the eigenbasis of the data, where every direction is a scalar ODE."""
    mean, covariance = stationary_gaussian(H)
    variance, vectors = torch.linalg.eigh(covariance.double())
    centre = vectors.T @ mean.double()

    def velocity(s):
        """Slope and offset of dx/ds."""
        slope = (s - (1 - s) * variance) / ((1 - s) ** 2 * variance + s**2)
        return slope, -slope * (1 - s) * centre - centre

    gain, shift = torch.ones(H).double(), torch.zeros(H).double()
    N, calls = policy.path.levels, policy.calls
    for s, below in pairwise([(N * (calls - call) // calls) / N for call in range(calls + 1)]):
        a, b = velocity(s)
        step, offset = 1 + (below - s) * a, (below - s) * b
        if second_order and below > 0:
            next_a, next_b = velocity(below)
            average = (a + next_a * step) / 2, (b + next_a * offset + next_b) / 2
            step, offset = 1 + (below - s) * average[0], (below - s) * average[1]
        gain, shift = step * gain, step * shift + offset
    return vectors @ shift, vectors @ torch.diag(gain**2) @ vectors.T


def from_noise(policy):
    """Mean and covariance of the sampler's output, which is affine in its noise."""
    noise = torch.zeros(1, H, 1), torch.zeros(1, 1)
    matrix, mean = affine(policy.sampling(policy.network), noise, 0)
    return mean, matrix @ matrix.T


@pytest.mark.parametrize("sampler", ["euler", "heun"])
@pytest.mark.parametrize("calls", [1, 3, 8, 50])
def test_steps_along_a_flow_are_the_exactly_propagated_recursion(sampler, calls):
    policy, _, _ = gaussian_policy(sampler=sampler, calls=calls)
    mean, covariance = from_noise(policy)
    expected_mean, expected_covariance = propagated(policy, second_order=sampler == "heun")
    torch.testing.assert_close(mean, expected_mean, atol=1e-4, rtol=0)
    torch.testing.assert_close(covariance, expected_covariance, atol=1e-4, rtol=0)


def test_heun_s_error_falls_faster_than_euler_s_at_equal_network_calls():
    def error(sampler, calls):
        policy, _, covariance = gaussian_policy(sampler=sampler, calls=calls, levels=6400)
        assert policy.calls_per_observation == network_calls
        return float((propagated(policy, sampler == "heun")[1] - covariance).abs().max())

    euler, heun = [], []
    for network_calls in (7, 15, 31, 63):
        euler.append(error("euler", network_calls))
        heun.append(error("heun", (network_calls + 1) // 2))
    for coarse, fine in ((0, 1), (1, 2), (2, 3)):
        assert heun[fine] < heun[coarse] * euler[fine] / euler[coarse]
    assert euler[-1] < 0.1 and heun[-1] < 0.5 * euler[-1]


def test_heun_keeps_clean_actions_within_the_range_of_the_data():
    policy = toy_policy(FLOW, sampler="heun", calls=4, clip=True)
    noise = 5 * torch.randn(20, H, 3)
    with torch.no_grad():
        clipped = policy.sampling(policy.network)(noise, torch.randn(20, 8))
        policy.clip = False
        free = policy.sampling(policy.network)(noise, torch.randn(20, 8))
    assert clipped.abs().max() <= 1 + 1e-5 and free.abs().max() > 1.5


def acts(policy, steps=13, seed=0):
    """Chunks every Ta control steps of one session."""
    session, chunks = Session(policy), []
    session.reset(seed)
    for t, observation in enumerate(toy_stream(0, steps, policy.spec)):
        session.observe(observation)
        if t % policy.action_steps == 0:
            chunks.append(session.act(observation))
    return chunks


@pytest.mark.parametrize(("settings", "first", "later"), COSTS.values(), ids=COSTS.keys())
def test_calls_of_the_network_are_counted_and_as_promised(settings, first, later):
    policy, calls = toy_policy(settings), []
    policy.network.register_forward_hook(lambda *_: calls.append(1))
    session = Session(policy)
    session.reset(0)
    for t, observation in enumerate(toy_stream(0, 9)):
        session.observe(observation)
        if t % TA == 0:
            calls.clear()
            expected = later if t else first
            assert session.act(observation).network_calls == len(calls) == expected
    assert (policy.first_observation_calls, policy.calls_per_observation) == (first, later)


@pytest.mark.parametrize("delay", [0, 3])
@pytest.mark.parametrize(
    "settings",
    [*(settings for settings, _, _ in COSTS.values()), STREAMING_FLOW],
    ids=[*COSTS, "streaming"],
)
def test_chunks_follow_each_other_without_gap_or_overlap_behind_any_delay(settings, delay):
    policy = toy_policy(settings, inference_delay=delay)
    chunks = acts(policy)
    assert [len(chunk.actions) for chunk in chunks] == [TA + delay, TA, TA, TA]
    starts = [chunk.start_s for chunk in chunks]
    assert starts == pytest.approx([0.0, 0.4 + delay * 0.1, 0.8 + delay * 0.1, 1.2 + delay * 0.1])
    for chunk, following in pairwise(chunks):
        assert chunk.start_s + len(chunk.actions) * chunk.dt_s == pytest.approx(following.start_s)
        assert len(chunk.preview.levels) == len(chunk.preview.actions) == H - delay - TA


@pytest.mark.parametrize("settings", [settings for settings, _, _ in COSTS.values()], ids=COSTS.keys())
def test_a_delay_leaves_out_what_is_executed_meanwhile(settings):
    """Where the delay changes nothing in the sampler, the chunks are parts of the same plans."""
    prompt, late = (acts(toy_policy(settings, inference_delay=delay)) for delay in (0, 2))
    assert np.array_equal(late[0].actions, np.concatenate([prompt[0].actions, prompt[0].preview.actions[:2]]))
    if settings["sampler"] != "rtc":
        for a, b in zip(prompt[1:], late[1:], strict=True):
            whole = np.concatenate([a.actions, a.preview.actions])
            assert np.array_equal(b.actions, whole[2 : 2 + TA])


class TestWarmStart:
    @pytest.mark.parametrize("settings", [DIFFUSION, FLOW], ids=["ddpm", "flow"])
    @pytest.mark.parametrize("calls", [4, 7])
    def test_at_pure_noise_it_is_plain_sampling_bit_for_bit(self, settings, calls):
        plain = acts(toy_policy(settings, calls=calls))
        warm = acts(toy_policy(settings, calls=calls, sampler="warm_start", warm_level=100))
        for a, b in zip(plain, warm, strict=True):
            assert np.array_equal(a.actions, b.actions) and a.network_calls == b.network_calls == calls

    @pytest.mark.parametrize("settings", [DIFFUSION, FLOW], ids=["ddpm", "flow"])
    def test_the_lower_the_level_the_nearer_to_the_plan_for_fewer_calls(self, settings):
        distances, costs = [], []
        plan = stationary_sample(200)
        noise = torch.randn(200, H, 1, generator=torch.Generator().manual_seed(1))
        for level in (5, 30, 60, 100):
            policy, _, _ = gaussian_policy(settings, sampler="warm_start", warm_level=level, calls=20)
            new = policy.going_on(policy.network)(noise, torch.zeros(200, 1), plan)
            distances.append(float((new - plan).square().mean().sqrt()))
            costs.append(policy.calls_per_observation)
        assert distances == sorted(distances) and distances[0] < 0.2 * distances[-1]
        assert costs == [1, 6, 12, 20]

    @pytest.mark.parametrize("settings", [DIFFUSION, FLOW], ids=["ddpm", "flow"])
    @pytest.mark.parametrize("level", [40, 200, 400])
    def test_a_plan_that_is_distributed_like_the_data_stays_so(self, settings, level):
        policy, mean, covariance = gaussian_policy(
            settings, sampler="warm_start", warm_level=level, calls=400, levels=400
        )
        inputs = torch.zeros(1, H, 1), torch.zeros(1, 1), mean.float().reshape(1, H, 1)
        sampler = policy.going_on(policy.network)
        of_noise, value = affine(sampler, inputs, 0)
        of_plan, _ = affine(sampler, inputs, 2)
        torch.testing.assert_close(value, mean, atol=0.01, rtol=0)
        torch.testing.assert_close(
            of_noise @ of_noise.T + of_plan @ covariance @ of_plan.T, covariance, atol=0.02, rtol=0
        )

    def test_the_plan_that_it_starts_from_is_what_is_left_of_the_last(self):
        plan = torch.arange(10.0).reshape(5, 2)
        assert remaining_plan(plan, 2).tolist() == [[4, 5], [6, 7], [8, 9], [8, 9], [8, 9]]
        assert torch.equal(remaining_plan(plan, 0), plan)
        policy, taken = toy_policy({**FLOW, **WARM}), []
        observation = toy_stream(0, 1)[0]
        _, states = policy.step([[observation] * 2], [policy.initial_state(0)], [0])
        going_on = policy.going_on(policy.network)
        going_on.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[2]))
        policy.going_on = lambda network: going_on
        policy.step([[observation] * 2], states, [3])
        assert torch.equal(taken[0][0], remaining_plan(states[0].plan_HA, 3))


def stationary_sample(samples):
    mean, covariance = stationary_gaussian(H)
    root = torch.linalg.cholesky(covariance)
    return mean.reshape(1, H, 1) + root @ torch.randn(samples, H, 1, generator=torch.Generator().manual_seed(0))


class TestPrefixWeights:
    @pytest.mark.parametrize(
        ("schedule", "between"),
        [
            ("zeros", [0.0, 0.0, 0.0]),
            ("ones", [1.0, 1.0, 1.0]),
            ("linear", [0.75, 0.5, 0.25]),
            ("exp", [0.487551, 0.188771, 0.041324]),
        ],
    )
    def test_worked_example(self, schedule, between):
        """Eq. 5 for H = 8, d = 2, s = 3: c = 3/4, 2/4, 1/4 at the positions between."""
        weights = prefix_weights(8, 2, 3, schedule).tolist()
        assert weights == pytest.approx([1, 1, *between, 0, 0, 0], abs=1e-6)

    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_they_fall_from_one_on_what_is_frozen_to_zero_where_the_last_chunk_ends(self, schedule):
        for delay in range(9):
            for executed in range(9):
                weights = prefix_weights(H, delay, executed, schedule)
                assert weights.shape == (H,) and (weights.diff() <= 0).all()
                assert (weights[:delay] == 1).all() and (weights[H - executed :] == 0).all()
                assert (weights >= 0).all() and (weights <= 1).all()


@pytest.mark.parametrize(
    ("tau", "expected"), [(0.0, 5.0), (0.1, 5.0), (0.25, 10 / 3), (0.5, 2.0), (0.75, 10 / 3), (0.9, 5.0)]
)
def test_guidance_weights_are_those_of_eq_2_and_4(tau, expected):
    """(1 - tau) / (tau r^2) = (tau^2 + (1 - tau)^2) / (tau (1 - tau)), at most 5."""
    assert guidance_weight(tau) == pytest.approx(expected)


class TestRealTimeChunking:
    def test_with_nothing_to_follow_it_is_euler_s_sampling_bit_for_bit(self):
        plain, rtc = acts(toy_policy(FLOW)), acts(toy_policy(RTC, prefix_weights="zeros"))
        for a, b in zip(plain, rtc, strict=True):
            assert np.array_equal(a.actions, b.actions) and np.array_equal(a.preview.actions, b.preview.actions)

    @pytest.mark.parametrize("schedule", SCHEDULES)
    @pytest.mark.parametrize(("past", "delay"), [(0, 1), (0, 4), (1, 3)])
    def test_frozen_actions_come_back_bit_for_bit(self, schedule, past, delay):
        policy = toy_policy(RTC, past=past, inference_delay=delay, prefix_weights=schedule)
        states = [policy.initial_state(0)]
        history = [toy_stream(0, 1)[0]] * 2
        _, states = policy.step([history], states, [0])
        for executed in (TA, 2, TA, 0):
            last = states[0].plan_HA
            _, states = policy.step([history], states, [executed])
            frozen = past + delay
            assert torch.equal(states[0].plan_HA[:frozen], last[executed : executed + frozen])
            assert not torch.isclose(states[0].plan_HA[frozen:], remaining_plan(last, executed)[frozen:]).all()

    @pytest.mark.parametrize("representation", ["chunk_relative", "delta"])
    def test_frozen_differences_command_the_same_poses_from_a_new_reference(self, representation):
        actions = {"representation": representation, "rotation": "rotation_6d"}
        policy = toy_policy(RTC, spec=arm_spec(), actions=actions, inference_delay=3)
        older, newer = toy_stream(0, 2, arm_spec())
        states, plans = [policy.initial_state(0)], []
        for history in ([older, older], [older, newer]):
            _, states = policy.step([history], states, [TA])
            learned = policy.action_normalizer.denormalize(states[0].plan_HA)[None]
            plans.append(policy.actions.decode(learned, policy.anchors([history])))
        torch.testing.assert_close(plans[1][0, :3], plans[0][0, TA : TA + 3], atol=1e-4, rtol=0)

    def guided(self, samples=200, delay=2, executed=TA, schedule="exp", **settings):
        """New chunks, the last ones from now on, and the new ones without guidance, of the ideal denoiser."""
        policy, _, _ = gaussian_policy({**RTC, "calls": 20, **settings})
        plan = remaining_plan_of(stationary_sample(samples), executed)
        noise = torch.randn(samples, H, 1, generator=torch.Generator().manual_seed(1))
        weight = prefix_weights(H, delay, executed, schedule).expand(samples, -1)
        frozen = (torch.arange(H) < delay).expand(samples, -1)
        rtc, context = policy.going_on(policy.network), torch.zeros(samples, 1)
        new = rtc(noise, context, plan, weight, frozen)
        plain = rtc(noise, context, plan, torch.zeros_like(weight), torch.zeros_like(frozen))
        return new, plan, plain

    @pytest.mark.parametrize("schedule", ["zeros", "linear", "exp", "ones"])
    def test_guidance_pulls_what_overlaps_toward_the_last_chunk(self, schedule):
        new, plan, plain = self.guided(schedule=schedule)
        overlap = slice(2, H - TA)
        guided, free = ((x - plan)[:, overlap].square().mean().sqrt() for x in (new, plain))
        assert guided < (0.9 if schedule == "zeros" else 0.75) * free
        closeness = (new - plan).square().mean((0, 2))[overlap]
        assert closeness[0] < 0.3 * closeness[-1] or schedule == "ones"

    def test_the_more_weight_the_nearer_to_the_last_chunk(self):
        def distance(schedule):
            new, plan, _ = self.guided(schedule=schedule)
            return float((new - plan)[:, : H - TA].square().mean())

        distances = [distance(schedule) for schedule in ("ones", "linear", "exp", "zeros")]
        assert distances == sorted(distances)

    def test_its_steps_are_the_guided_recursion_of_the_ideal_velocity(self):
        """Eq. 2 in float64, with the Jacobian of the ideal clean actions, which is a matrix."""
        policy, _, _ = gaussian_policy({**RTC, "calls": 6})
        noise, plan = torch.randn(1, H, 1), stationary_sample(1)
        weight = prefix_weights(H, 3, TA, "exp")
        frozen = torch.zeros(1, H, dtype=torch.bool)
        ours = policy.going_on(policy.network)(noise, torch.zeros(1, 1), plan, weight[None], frozen)
        x, target, W = noise[0, :, 0].double(), plan[0, :, 0].double(), torch.diag(weight.double())
        for level, below in pairwise([100 * (6 - call) // 6 for call in range(7)]):
            matrix, offset = policy.network.affine(torch.full((H,), level))
            s, tau = level / 100, 1 - level / 100
            v = matrix @ x + offset
            clean = x + (1 - tau) * -v
            r2 = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
            weight_of_guidance = min(5.0, (1 - tau) / (tau * r2)) if tau else 5.0
            jacobian = torch.eye(H).double() - s * matrix
            along_tau = -v + weight_of_guidance * jacobian.T @ W @ (target - clean)
            x = x + (level - below) / 100 * along_tau
        torch.testing.assert_close(ours[0, :, 0].double(), x, atol=1e-4, rtol=0)

    def test_no_gradient_is_left_behind(self):
        policy = toy_policy(RTC, inference_delay=2)
        chunks = acts(policy)
        assert len(chunks) == 4 and all(weight.grad is None for weight in policy.parameters())


def remaining_plan_of(plan_BHA, executed):
    return torch.stack([remaining_plan(plan_HA, executed) for plan_HA in plan_BHA])


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        (FLOW, {"sampler": "huen"}, "a sampler for policy.sampler; found huen; did you mean 'heun'"),
        (FLOW, {"sampler": ["heun"]}, r"a sampler for policy.sampler; found \['heun'\]; did you mean 'heun'"),
        (FLOW, {"sampler": 3}, "a sampler for policy.sampler; found 3; known: ddim, ddpm, euler"),
        (FLOW, {"path": 3}, "the name of a path; found '3'; known: ddpm, flow"),
        (FLOW, {"sampler": "ddim"}, "policy.path=flow; found policy.sampler=ddim, for path ddpm; use one of euler, h"),
        (FLOW, {"sampler": "ddpm", "calls": 100}, "policy.path=flow; found policy.sampler=ddpm, for path ddpm"),
        (DIFFUSION, {"sampler": "heun"}, "policy.path=ddpm; found policy.sampler=heun, for path flow; use one of ddim"),
        (DIFFUSION, {"sampler": "rtc"}, "policy.path=ddpm; found policy.sampler=rtc, for path flow"),
        (RTC, {"prefix_weights": "exq"}, "policy.prefix_weights one of zeros, ones, linear, exp; found exq; did you"),
        ({**FLOW, **WARM}, {"warm_level": 0}, r"policy.warm_level between 1 and policy.levels \(100\); found 0"),
        ({**DIFFUSION, **WARM}, {"warm_level": 101}, "policy.warm_level between 1 and .* found 101"),
        ({**FLOW, **WARM}, {"warm_level": 2.5}, "policy.warm_level between 1 and .* found 2.5"),
        (FLOW, {"calls": 0}, r"policy.calls between 1 and policy.levels \(100\); found 0"),
        (FLOW, {"calls": 101}, "policy.calls between 1 and policy.levels"),
        (FLOW, {"inference_delay": -1}, "policy.inference_delay between 0 and 12, .*; found -1"),
        (FLOW, {"inference_delay": 13}, "policy.inference_delay between 0 and 12, behind which a chunk .*; found 13"),
        (
            RTC,
            {"inference_delay": 9, "past": 2, "action_steps": 6},
            "policy.inference_delay between 0 and 8, .*; found",
        ),
    ],
)
def test_settings_that_cannot_work_are_named(settings, changes, message):
    with pytest.raises(UserError, match=message):
        toy_policy(settings, **changes)


def test_an_engine_that_is_no_name_is_named():
    with pytest.raises(UserError, match="the name of an engine; found '3'; known: compile, cuda_graph, eager"):
        toy_policy(FLOW).configure(engine=3)


def test_guidance_is_refused_on_engines_without_derivatives():
    policy = toy_policy(FLOW)
    with pytest.raises(UserError, match="policy.engine=eager with policy.sampler=rtc.*; found onnxruntime"):
        policy.configure(sampler="rtc", engine="onnxruntime")
    assert (policy.sampler, policy.engine, policy.label) == ("euler", "eager", "euler-4")


@pytest.mark.parametrize("settings", [RTC, {**DIFFUSION, **WARM}], ids=["rtc", "warm start"])
def test_a_plan_of_axis_angles_is_refused_since_it_cannot_follow_the_reference(settings):
    actions = {"representation": "chunk_relative", "rotation": "axis_angle"}
    with pytest.raises(
        UserError, match="policy.actions.rotation=rotation_6d for sampler .*; found rotation axis_angle"
    ):
        toy_policy(settings, spec=arm_spec(), actions=actions)


def test_samplers_are_chosen_at_run_time_and_say_so():
    policy = toy_policy(FLOW)
    for settings, label in [
        ({"sampler": "heun", "calls": 3}, "heun-3"),
        ({"sampler": "warm_start", "warm_level": 20}, "warm_start-3 flow from 20"),
        ({"sampler": "rtc", "inference_delay": 2}, "rtc-3 exp d=2"),
        ({"sampler": "euler", "inference_delay": 0, "calls": 8}, "euler-8"),
    ]:
        policy.configure(**settings)
        assert policy.label == label
        assert np.isfinite(acts(policy)[-1].actions).all()
    assert policy.calls_per_observation == 8


def test_what_a_sampler_does_not_use_is_not_checked():
    """Few levels, below the usual `warm_level`, are no fault of a sampler that starts from pure noise."""
    assert toy_policy(DIFFUSION, levels=20).warm_level == 50
