"""Flow maps: the boundary, jumps against closed forms, what a student takes of its teacher, and calls out of range."""

import numpy as np
import pytest
import torch
from test_engines import episode
from toy_policies import (
    DIFFUSION,
    FLOW,
    FLOW_MAP,
    TINY,
    TINY_UNET,
    GaussianFlowMap,
    stationary_gaussian,
    toy_policy,
    toy_stream,
)
from toy_specs import toy_spec

from embodied.catalog import NETWORKS, PATHS, lookup
from embodied.errors import UserError
from embodied.policies.engines.engine import PARITY
from embodied.policies.exported_programs import exported_programs
from embodied.session import Session
from embodied.training.distillation import OUTPUT, take_weights

N, B, H, A = 100, 5, 16, 3
NETWORK_SETTINGS = {"transformer": TINY, "unet": TINY_UNET}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def constant(level, batch=B):
    return torch.full((batch, H), level)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("level", [0, 1, 50, 100])
def test_a_jump_to_where_it_begins_changes_nothing_whatever_the_network_predicts(path, network, level):
    policy = toy_policy({**FLOW_MAP, "path": path}, NETWORK_SETTINGS[network])
    noisy = 3 * normal(B, H, A)
    with torch.no_grad():
        jumped = policy.jump(noisy, constant(level), constant(level), normal(B, 8))
        assert policy.network(noisy, constant(1).unsqueeze(-1).expand(B, H, 2) / N, normal(B, 8)).abs().max() > 0.1
    assert torch.equal(jumped, noisy)


@pytest.mark.parametrize("path", PATHS)
def test_short_jumps_are_short(path):
    """The boundary is no jump of its own: near it the map is near the identity."""
    policy = toy_policy({**FLOW_MAP, "path": path, "levels": 1000})
    noisy = normal(B, H, A)
    for level in (1, 500, 1000):
        with torch.no_grad():
            jumped = policy.jump(noisy, constant(level), constant(level - 1), normal(B, 8))
        assert 0 < (jumped - noisy).abs().max() < (0.1 if path == "ddpm" else 0.02)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("level", [1, 37, 100])
def test_from_the_exact_velocity_a_jump_gives_the_point_with_the_same_noise(path, level):
    """At pure noise too, where a prediction of the noise would say nothing of the clean actions."""
    path = lookup("path", PATHS, path)(N)
    clean, noise = normal(B, H, A), normal(B, H, A, seed=1)
    velocity = path.velocity(clean, noise, constant(level))
    noisy = path.add_noise(clean, noise, constant(level))
    for below in (0, level // 3, level - 1, level):
        jumped = path.jump(constant(level), constant(below), clip=False)(noisy, velocity)
        torch.testing.assert_close(jumped, path.add_noise(clean, noise, constant(below)), atol=1e-5, rtol=0)


def test_velocities_are_the_derivatives_of_the_paths():
    """Along the flow by its level; along DDPM's by the angle whose cosine is the signal."""
    clean, noise, h = normal(B, H, A).double(), normal(B, H, A, seed=1).double(), 1e-4
    flow, ddpm = (lookup("path", PATHS, name)(N) for name in ("flow", "ddpm"))
    torch.testing.assert_close(flow.velocity(clean, noise, constant(40)), noise - clean)
    for level in (1, 40, 100):
        angle = torch.arccos(ddpm.signal[level])
        ahead, behind = (torch.cos(angle + d) * clean + torch.sin(angle + d) * noise for d in (h, -h))
        expected = (ahead - behind) / (2 * h)
        torch.testing.assert_close(ddpm.velocity(clean, noise, constant(level)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_student_of_a_flow_begins_as_one_step_of_its_teacher(network):
    teacher = toy_policy({**FLOW, "calls": 1}, NETWORK_SETTINGS[network])
    student = toy_policy({**FLOW_MAP, "calls": 1}, NETWORK_SETTINGS[network], seed=1)
    for layer in (student.network.level.way_layers[-1].weight, student.network.level.way_layers[-1].bias):
        torch.nn.init.zeros_(layer)
    teacher.action_normalizer.scale.fill_(2.0)
    take_weights(student, teacher)
    stream, chunks = toy_stream(0, 1), []
    for policy in (teacher, student):
        session = Session(policy)
        session.reset(3)
        chunks.append(session.act(stream[0]).actions)
    np.testing.assert_allclose(chunks[1], chunks[0], atol=1e-6)


def test_the_student_of_a_noise_predictor_takes_all_but_its_output():
    teacher, student = toy_policy(DIFFUSION), toy_policy({**FLOW_MAP, "path": "ddpm"}, seed=1)
    fresh = {name: weight.clone() for name, weight in student.state_dict().items()}
    take_weights(student, teacher)
    given = teacher.state_dict()
    for name, weight in student.state_dict().items():
        taken = name in given and not name.startswith(OUTPUT)
        assert torch.equal(weight, given[name] if taken else fresh[name]), name
    assert sum(name.startswith(OUTPUT) for name in fresh) == 2


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("calls", [1, 2, 7, 100])
def test_the_exact_flow_map_gives_the_data_in_any_number_of_calls(path, calls):
    """Basis vectors reveal the sampler's matrix; deterministic jumps along one flow compose to one and the same map."""
    policy = toy_policy({**FLOW_MAP, "path": path, "clip": False, "calls": calls})
    policy.network = GaussianFlowMap(*stationary_gaussian(H), policy.path)
    noise = torch.cat([torch.zeros(1, H, 1), torch.eye(H).unsqueeze(-1)])
    columns = policy.sampling(policy.network)(noise, torch.zeros(H + 1, 1))[:, :, 0].double()
    matrix, (mean, covariance) = (columns[1:] - columns[0]).T, stationary_gaussian(H)
    torch.testing.assert_close(columns[0], mean.double(), atol=2e-3, rtol=0)
    torch.testing.assert_close(matrix @ matrix.T, covariance.double(), atol=2e-3, rtol=0)


def test_a_session_makes_as_many_network_calls_as_it_says():
    policy, calls = toy_policy({**FLOW_MAP, "calls": 3}), []
    policy.network.register_forward_hook(lambda *_: calls.append(1))
    assert episode(policy).shape == (12, A) and len(calls) == 9
    assert policy.label == "consistency-3" and policy.calls_per_observation == policy.first_observation_calls == 3


def test_a_delayed_chunk_begins_later_and_leaves_no_gap():
    policy = toy_policy(FLOW_MAP, inference_delay=2)
    session, chunks = Session(policy), []
    session.reset(0)
    for t, observation in enumerate(toy_stream(0, 5)):
        session.observe(observation)
        if t % 4 == 0:
            chunks.append(session.act(observation))
    assert [len(chunk.actions) for chunk in chunks] == [6, 4]
    assert [chunk.start_s for chunk in chunks] == pytest.approx([0.0, 0.6])
    assert policy.label == "consistency-2 d=2"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"calls": 0}, r"policy.calls between 1 and 100, which objective consistency trains; found 0"),
        ({"calls": 101}, "policy.calls between 1 and 100, which objective consistency trains; found 101"),
        ({"calls": 2, "most_calls": 1, "objective": "ode_pair"}, "between 1 and 1, which objective ode_pair trains"),
        ({"inference_delay": 13}, "policy.inference_delay between 0 and 12"),
        ({"sampler": "ddim"}, "settings that policy 'flow_map' takes"),
    ],
)
def test_settings_out_of_range_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        toy_policy({**FLOW_MAP, **changes})


def test_settings_that_cannot_be_chosen_at_run_time_are_named():
    policy = toy_policy(FLOW_MAP)
    with pytest.raises(UserError, match="a run-time setting of FlowMapPolicy; found policy.sampler"):
        policy.configure(sampler="euler")
    with pytest.raises(UserError, match=r"'onnx'; did you mean 'onnxruntime'\?"):
        policy.configure(engine="onnx")
    assert policy.engine == "eager" and policy.calls == 2


@pytest.mark.heavy
@pytest.mark.parametrize("network", NETWORKS)
def test_onnx_runtime_jumps_as_eager_pytorch_does(network):
    """In one program, and call by call where there are more than one program holds."""
    for calls in (1, 5):
        eager, other = (toy_policy({**FLOW_MAP, "calls": calls}, NETWORK_SETTINGS[network]) for _ in range(2))
        other.configure(engine="onnxruntime")
        np.testing.assert_allclose(episode(other), episode(eager), atol=PARITY)


def test_its_parts_are_timed_and_its_program_takes_batches():
    policy = toy_policy(FLOW_MAP)
    observation = toy_stream(0, 1)[0]
    assert policy.timed_parts([observation] * 2)["network_call"]().shape == (1, H, A)
    (program,) = exported_programs(policy)
    assert program.name == "sampling" and list(program.inputs) == ["noise", "state_history"]
    noise, history = normal(3, H, A), normal(3, 2, toy_spec().state_size, seed=1)
    with torch.no_grad():
        together = program.module(noise, history)[1]
        for index in range(3):
            alone = program.module(noise[index : index + 1], history[index : index + 1])[1]
            torch.testing.assert_close(together[index : index + 1], alone, atol=1e-5, rtol=0)
