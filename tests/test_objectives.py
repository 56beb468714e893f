"""Objectives of distillation: closed forms on Gaussian data, a mixture in the plane, and what they refuse."""

import copy
import math
import sys

import pytest
import torch
from torch import nn
from toy_mixture import batch as mixture_batch
from toy_mixture import (
    draw,
    energy_distance,
    mixture_policy,
    mixture_teacher,
    mode_weight_distance,
    on_mode,
    sampled,
    student,
)
from toy_policies import FLOW, FLOW_MAP, SDP, GaussianFlowMap, GaussianVelocity, stationary_gaussian, toy_policy

from embodied.catalog import OBJECTIVES, PATHS
from embodied.errors import UserError
from embodied.policies.batch import Batch
from embodied.policies.objectives.diffusion_teacher import DiffusionTeacher
from embodied.policies.objectives.distance import DISTANCES, PSEUDO_HUBER_C, pseudo_huber, squared
from embodied.policies.objectives.objective import make_objective, most_calls_of
from embodied.policies.objectives.teacher import DETERMINISTIC_MOVE, follow, teacher_of

H, A = 16, 3
ODE_PAIR = {"name": "ode_pair", "teacher_calls": 16, "distance": "pseudo_huber"}
CONSISTENCY = {
    "name": "consistency",
    "intervals": 8,
    "teacher_calls": 2,
    "to_clean": 0.5,
    "distance": "pseudo_huber",
    "score_matching": 1.0,
}
SETTINGS = {"ode_pair": ODE_PAIR, "consistency": CONSISTENCY}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class ExactTeacher:
    """Moves along the flow of Gaussian data without a solver's error."""

    capabilities = frozenset({DETERMINISTIC_MOVE})

    def __init__(self, path):
        self.path = path
        self.flow = GaussianFlowMap(*stationary_gaussian(H), path)

    def context(self, batch):
        return torch.zeros(len(batch), 1)

    def move(self, noisy_BHA, level_BH, next_level_BH, context_BC):
        return self.flow.point(noisy_BHA, level_BH[:, 0], next_level_BH[:, 0]).float()


class Bent(nn.Module):
    """A network that is exact with gain 1 and offset 0."""

    def __init__(self, exact):
        super().__init__()
        self.exact = exact
        self.gain, self.offset = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))

    def forward(self, noisy_BHA, way_BH2, context_BC):
        return self.gain * self.exact(noisy_BHA, way_BH2, context_BC) + self.offset


def gaussian_student(path):
    policy = toy_policy({**FLOW_MAP, "path": path, "clip": False})
    policy.network = Bent(GaussianFlowMap(*stationary_gaussian(H), policy.path))
    return policy


def gaussian_batch(samples, seed=0):
    mean, covariance = stationary_gaussian(H)
    white = torch.randn(samples, H, A, generator=seeded(seed))
    action = mean[:, None] + torch.einsum("ij,bja->bia", torch.linalg.cholesky(covariance), white)
    state = torch.randn(samples, 2, 4, generator=seeded(seed + 1))
    return Batch(state, action, torch.ones(samples, H, dtype=torch.bool))


def gradient(loss, policy):
    return torch.stack(torch.autograd.grad(loss, [policy.network.gain, policy.network.offset]))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_gradient_are_zero_at_the_exact_flow_map_and_not_beside_it(path, distance, name):
    """Consistency without score matching, which is zero in the mean only: the next test."""
    policy = gaussian_student(path)
    settings = {**SETTINGS[name], "distance": distance}
    settings |= {"score_matching": 0.0} if name == "consistency" else {}
    objective = make_objective(settings, ExactTeacher(policy.path))

    def loss():
        return objective.loss(policy, copy.deepcopy(policy).requires_grad_(False), gaussian_batch(64), seeded(1))

    exact = loss()
    assert exact < 1e-9 and gradient(exact, policy).abs().max() < 1e-4
    with torch.no_grad():
        policy.network.offset += 0.2
    bent = loss()
    assert bent > 1e-4 and gradient(bent, policy).abs().max() > 5e-3


@pytest.mark.parametrize("path", PATHS)
def test_score_matching_is_stationary_at_the_exact_velocity(path):
    policy, data = gaussian_student(path), gaussian_batch(8192)
    at_rest = gradient(policy.loss(data, seeded(1)), policy).abs()
    with torch.no_grad():
        policy.network.offset += 0.2
        policy.network.gain += 0.2
    assert (at_rest < 0.005).all() and (gradient(policy.loss(data, seeded(1)), policy) > 0.03).all()


class Affine(nn.Module):
    """Velocity M x + b, the same for all elements of an action and whatever the levels."""

    def __init__(self):
        super().__init__()
        self.matrix, self.offset = nn.Parameter(torch.zeros(H, H)), nn.Parameter(torch.zeros(H, 1))

    def forward(self, noisy_BHA, way_BH2, context_BC):
        return torch.einsum("ij,bja->bia", self.matrix, noisy_BHA) + self.offset


def test_regression_of_pairs_ends_at_the_teachers_own_solution():
    """The teacher's k steps are affine on Gaussian data: one jump of an affine student can equal them."""
    policy = toy_policy(FLOW, clip=False, calls=6)
    policy.network = GaussianVelocity(*stationary_gaussian(H), policy.path.levels)
    learner = toy_policy({**FLOW_MAP, "clip": False, "objective": "ode_pair", "most_calls": 1, "calls": 1})
    learner.network = Affine()
    objective = make_objective({**ODE_PAIR, "teacher_calls": 6, "distance": "squared"}, _PerSample(policy))
    optimizer = torch.optim.LBFGS(learner.network.parameters(), max_iter=50, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = objective.loss(learner, learner, gaussian_batch(64), seeded(1))
        loss.backward()
        return loss

    optimizer.step(closure)
    noise, context = torch.randn(32, H, A, generator=seeded(2)), torch.zeros(32, 1)
    with torch.no_grad():
        one_call = learner.sampling(learner.network)(noise, context)
        torch.testing.assert_close(one_call, policy.sampling(policy.network)(noise, context), atol=2e-3, rtol=0)


class _PerSample(DiffusionTeacher):
    """The closed form knows one vector of levels for a whole batch."""

    def move(self, noisy_BHA, level_BH, next_level_BH, context_BC):
        return super().move(noisy_BHA, level_BH[:1], next_level_BH[:1], context_BC)


@pytest.mark.parametrize("calls", [1, 4, 16])
@pytest.mark.parametrize("settings", [FLOW, {**FLOW, "path": "ddpm", "sampler": "ddim"}], ids=["flow", "ddpm"])
def test_a_teacher_followed_to_the_end_is_its_own_sampler(settings, calls):
    policy = toy_policy({**settings, "calls": calls})
    noise, context = torch.randn(5, H, A, generator=seeded()), torch.randn(5, 8, generator=seeded(1))
    levels = [torch.full((5, H), level) for level in policy.path.evenly_spaced(calls)]
    with torch.no_grad():
        expected = policy.sampling(policy.network)(noise, context)
    followed = follow(DiffusionTeacher(policy), noise, levels, context)
    torch.testing.assert_close(followed, expected, atol=1e-5, rtol=0)


@pytest.fixture(params=OBJECTIVES)
def distilled(request):
    """An objective with a teacher of random weights, its student, and its averaged student."""
    objective = make_objective(SETTINGS[request.param], DiffusionTeacher(toy_policy(FLOW)))
    policy = toy_policy({**FLOW_MAP, "objective": request.param}, seed=1)
    return objective, policy, copy.deepcopy(policy).requires_grad_(False)


def test_every_weight_of_the_student_learns_and_nothing_else_does(distilled):
    objective, policy, averaged = distilled
    objective.loss(policy, averaged, gaussian_batch(32), seeded(1)).backward()
    assert [name for name, weight in policy.named_parameters() if not weight.grad.abs().sum() > 0] == []
    frozen = [*averaged.parameters(), *objective.teacher.policy.parameters()]
    assert not any(weight.requires_grad or weight.grad is not None for weight in frozen)
    assert list(objective.parameters()) == [] and objective.state_dict() == {}


def test_the_loss_is_a_function_of_weights_batch_and_generator(distilled):
    objective, policy, averaged = distilled
    one, same, other = (objective.loss(policy, averaged, gaussian_batch(8), seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_pairs_need_no_labels_and_consistency_does_not_look_at_padding(distilled):
    objective, policy, averaged = distilled
    data = gaussian_batch(8)

    def loss():
        return objective.loss(policy, averaged, data, seeded())

    before = loss()
    data.valid_BH[:] = False
    if objective.name == "ode_pair":
        data.action_BHA[:] = 7.0
        assert torch.equal(loss(), before)
    else:
        assert loss() == 0 and before > 0


def test_levels_are_drawn_from_the_grid_in_their_order():
    objective = make_objective({**CONSISTENCY, "intervals": 8}, DiffusionTeacher(toy_policy(FLOW)))
    t, u, s = objective.draw_levels(gaussian_batch(4000), seeded())
    grid = objective.grid.tolist()
    assert grid == [0, 12, 25, 37, 50, 62, 75, 87, 100]
    assert set(t.tolist()) == set(grid[1:]) and [grid.index(x) - 1 for x in t] == [grid.index(x) for x in u]
    assert (s <= u).all() and set(s.tolist()) == set(grid[:-1])
    of_all = s[t == 100]
    assert float((of_all == 0).float().mean()) == pytest.approx(0.5 + 0.5 / 8, abs=0.06)


def test_the_solver_stops_between_the_levels_of_the_grid():
    objective = make_objective({**CONSISTENCY, "teacher_calls": 4}, DiffusionTeacher(toy_policy(FLOW)))
    t, u = torch.tensor([[100], [5], [2]]), torch.tensor([[95], [0], [0]])
    levels = torch.cat(objective.between(t, u), dim=1)
    assert levels.tolist() == [[100, 98, 97, 96, 95], [5, 3, 2, 1, 0], [2, 1, 1, 0, 0]]


def test_distances_are_their_formulas():
    x, target, valid = torch.tensor([[[3.0, 4.0], [1.0, 1.0]]]), torch.zeros(1, 2, 2), torch.tensor([[True, False]])
    assert squared(x, target, valid).tolist() == [12.5]
    expected = math.sqrt(12.5 + PSEUDO_HUBER_C**2) - PSEUDO_HUBER_C
    assert pseudo_huber(x, target, valid).tolist() == pytest.approx([expected])
    assert squared(x, target, torch.zeros_like(valid)).tolist() == [0.0]


class SilentTeacher:
    capabilities = frozenset()

    def __init__(self, path):
        self.path = path


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "consistancy"}, "the name of an objective; found 'consistancy'; did you mean 'consistency'"),
        ({**ODE_PAIR, "distance": "huber"}, r"objective.distance; found huber; did you mean 'pseudo_huber'\?"),
        ({**ODE_PAIR, "teacher_calls": 0}, r"teacher_calls between 1 and the teacher's levels \(100\); found 0"),
        ({**CONSISTENCY, "intervals": 101}, r"intervals between 1 and the teacher's levels \(100\); found 101"),
        ({**CONSISTENCY, "to_clean": 1.5}, "objective.to_clean from 0 to 1; found 1.5"),
        ({**CONSISTENCY, "score_matching": -1.0}, "objective.score_matching of at least 0; found -1.0"),
        ({**ODE_PAIR, "steps": 3}, "settings that objective 'ode_pair' takes: teacher_calls, distance"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        make_objective(settings, DiffusionTeacher(toy_policy(FLOW)))


def test_teachers_that_cannot_answer_are_refused():
    policy = toy_policy(FLOW)
    with pytest.raises(
        UserError, match="capability 'deterministic move', which objective ode_pair .* found SilentTeacher, .* none"
    ):
        make_objective(ODE_PAIR, SilentTeacher(policy.path))
    with pytest.raises(UserError, match="that can be distilled: a policy of kind diffusion; found one of kind sdp; "):
        teacher_of(toy_policy(SDP), "sdp")
    assert isinstance(teacher_of(policy, "diffusion"), DiffusionTeacher)
    assert most_calls_of("ode_pair", 100) == 1 and most_calls_of("consistency", 100) == 100


def distill_mixture(settings, steps, samples=256, rate=1e-3):
    """The averaged student, and the mean losses of the first and of the last tenth."""
    objective = make_objective(settings, mixture_teacher())
    policy = student(settings["name"], most_calls_of(settings["name"], 100))
    averaged = copy.deepcopy(policy).requires_grad_(False).eval()
    optimizer, losses = torch.optim.AdamW(policy.parameters(), rate), []
    for step in range(steps):
        warm = min(1.0, (step + 1) / 100)
        optimizer.param_groups[0]["lr"] = rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        generator = seeded(step)
        loss = objective.loss(policy, averaged, mixture_batch(samples, generator), generator)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(averaged.parameters()), list(policy.parameters()), 0.005)
    tenth = steps // 10
    return averaged, sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_falls(name):
    _, first, last = distill_mixture(SETTINGS[name], steps=100, samples=64)
    assert last < 0.9 * first


@pytest.mark.heavy
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "steps", "least_on_mode"), [("ode_pair", 2000, 0.85), ("consistency", 1200, 0.6)])
def test_one_call_finds_the_modes_of_a_mixture_where_a_step_of_the_teacher_finds_none(name, steps, least_on_mode):
    """Eight modes of unequal weight, and a teacher without error. Both trainings are short."""
    distilled, _, _ = distill_mixture(SETTINGS[name], steps)
    truth, drawn = draw(2000, seeded(7)), draw(2000, seeded(8))
    samples = {
        "floor": drawn,
        "teacher, 1 call": sampled(mixture_policy(calls=1), 2000, seed=1),
        "teacher, 16 calls": sampled(mixture_policy(calls=16), 2000, seed=1),
        f"{name}, 1 call": sampled(distilled, 2000, seed=1),
    }
    found = {what: (on_mode(x), mode_weight_distance(x), energy_distance(x, truth)) for what, x in samples.items()}
    for what, (share, variation, energy) in found.items():
        sys.stdout.write(
            f"{what}: on mode {share:.3f}, mode weights off {variation:.3f}, energy distance {energy:.4f}\n"
        )
    share, variation, energy = found[f"{name}, 1 call"]
    assert found["teacher, 1 call"][0] < 0.01 and found["teacher, 16 calls"][0] > 0.95
    assert share > least_on_mode and variation < 0.1 and energy < 0.02
