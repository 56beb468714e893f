"""Engines give what eager PyTorch gives, for every batch size, and say what they cannot do."""

import importlib.util

import numpy as np
import pytest
import torch
from torch import nn
from toy_policies import CONV, DIFFUSION, SDP, TINY, TINY_UNET, toy_policy, toy_stream
from toy_specs import image_spec, toy_spec

from embodied.catalog import ENGINES
from embodied.errors import MisfitError, UserError
from embodied.policies.engines import cuda_graph
from embodied.policies.engines.compiled import CompiledEngine
from embodied.policies.engines.cuda_graph import CudaGraphEngine
from embodied.policies.engines.engine import PARITY, checked_parity
from embodied.policies.engines.onnx_runtime import OnnxRuntimeEngine
from embodied.session import Session

ONE_CALL = {**SDP, "k": 1, "initial_calls": 2}
FLOW = {**DIFFUSION, "path": "flow", "sampler": "euler", "calls": 2}
STREAMING = (ONE_CALL, TINY, toy_spec())
CASES = {
    "flow, U-Net": (FLOW, TINY_UNET, toy_spec()),
    "more calls than one program holds": ({**DIFFUSION, "calls": 6}, TINY, toy_spec()),
}


def episode(policy, seed=0, steps=9):
    session, chunks = Session(policy), []
    session.reset(seed)
    for t, observation in enumerate(toy_stream(0, steps, policy.spec)):
        session.observe(observation)
        if t % 4 == 0:
            chunks.append(session.act(observation).actions)
    return np.concatenate(chunks)


def pair(case, engine, **settings):
    """The same policy on the eager engine and on another one."""
    policy, network, spec = case
    eager, other = (toy_policy({**policy, **settings}, network, spec) for _ in range(2))
    other.configure(engine=engine)
    return eager, other


@pytest.mark.parametrize(
    "case",
    [*CASES.values(), pytest.param(STREAMING, marks=pytest.mark.heavy)],
    ids=[*CASES.keys(), "streaming, transformer"],
)
def test_onnx_runtime_acts_as_eager_pytorch_does(case):
    eager, other = pair(case, "onnxruntime")
    np.testing.assert_allclose(episode(other), episode(eager), atol=PARITY)
    assert other.label == f"{eager.label} on onnxruntime"
    # The same programs serve a batch.
    histories = [[o, o] for o in toy_stream(1, 3, eager.spec)]
    states = [eager.initial_state(seed) for seed in range(3)]
    (expected, _), (found, _) = (policy.step(histories, states, [0] * 3) for policy in (eager, other))
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(b.actions, a.actions, atol=PARITY)


@pytest.mark.heavy
def test_onnx_runtime_takes_images_in_a_program_of_their_own():
    policy = toy_policy(ONE_CALL, TINY, image_spec(), CONV)
    expected = episode(policy)
    policy.configure(engine="onnxruntime")
    np.testing.assert_allclose(episode(policy), expected, atol=PARITY)


@pytest.mark.heavy
def test_torch_compile_acts_as_eager_pytorch_does():
    eager, other = pair(STREAMING, "compile")
    np.testing.assert_allclose(episode(other), episode(eager), atol=PARITY)


@pytest.mark.heavy
def test_weights_trained_on_are_those_that_run_after_the_engine_is_set_again():
    policy = toy_policy(ONE_CALL)
    policy.configure(engine="onnxruntime")
    before = episode(policy, steps=1)
    with torch.no_grad():
        policy.network.action_out.bias.add_(0.5)
    policy.configure(engine="onnxruntime")
    assert not np.allclose(episode(policy, steps=1), before, atol=1e-3)


def test_an_unknown_engine_is_named_and_changes_nothing():
    policy = toy_policy(ONE_CALL)
    with pytest.raises(UserError, match=r"'onnx'; did you mean 'onnxruntime'\? known: compile, cuda_graph, eager"):
        policy.configure(engine="onnx")
    assert policy.engine == "eager" and set(ENGINES) == {"compile", "cuda_graph", "eager", "onnxruntime"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_graphs_want_a_gpu():
    policy = toy_policy(ONE_CALL)
    policy.configure(engine="cuda_graph")
    # Of no episode would anything else come, so that an evaluation ends at once.
    with pytest.raises(
        MisfitError, match=r"CUDA device for policy.engine=cuda_graph; found no CUDA device; use .*onnx"
    ):
        episode(policy)


def test_what_a_cuda_graph_cannot_capture_is_named(monkeypatch):
    class Refusing(nn.Module):
        def forward(self, x):
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_graph.torch.cuda, "is_available", lambda: True)
    with pytest.raises(MisfitError, match="engine cuda_graph can run; found Refusing: operation not permitted"):
        CudaGraphEngine().compile(Refusing(), [OnCuda()])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_cuda_graphs_act_as_eager_pytorch_does():
    policy = toy_policy(ONE_CALL).to("cuda")
    expected = episode(policy)
    policy.configure(engine="cuda_graph")
    np.testing.assert_allclose(episode(policy), expected, atol=PARITY)


def test_a_package_that_is_missing_is_named_before_anything_is_exported(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    policy = toy_policy(ONE_CALL)
    policy.configure(engine="onnxruntime")
    with pytest.raises(UserError, match=r"onnxscript, which policy.engine=onnxruntime needs; .*embodied-policies\[eng"):
        episode(policy)


class OnCuda:
    """A tensor that says that it is on a GPU."""

    device = torch.device("cuda")
    shape = torch.Size([1])


class Sorted(nn.Module):
    """Something that no exporter can follow: what is done depends on the values."""

    def forward(self, x):
        return (x if float(x.sum()) > 0 else -x,)


def test_a_program_that_an_engine_cannot_run_is_named():
    with pytest.raises(UserError, match="that engine onnxruntime can run; found Sorted: .*use policy.engine=eager"):
        OnnxRuntimeEngine().compile(Sorted(), [torch.ones(2, 3)])


class Causal(nn.Module):
    """Attention of a kind that the export has no translation for."""

    def forward(self, x):
        return (torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True),)


def test_attention_that_is_not_translated_is_named_and_never_exported_as_another():
    with pytest.raises(MisfitError, match="that engine onnxruntime can run; found Causal: .*use policy.engine=eager"):
        OnnxRuntimeEngine().compile(Causal(), [torch.ones(2, 1, 3, 4)])


def test_a_compiler_that_fails_is_named(monkeypatch):
    def fails(*_, **__):
        def program(*_):
            raise RuntimeError("no C++ compiler")

        return program

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(UserError, match="that engine compile can run; found Sorted: no C"):
        CompiledEngine().compile(Sorted(), [torch.ones(2, 3)])


class Cancelling(nn.Module):
    """10 x, computed so that single precision keeps three digits of it."""

    def forward(self, x):
        return (10.0 * ((x + 4096.0) - 4096.0),)


def test_a_difference_that_is_the_modules_own_rounding_is_none_of_the_engine():
    x = torch.linspace(-1, 1, 301).unsqueeze(0)
    rounding = float((Cancelling()(x)[0] - 10.0 * x).abs().max())
    assert PARITY < rounding < 1e-2, "the module itself is not exact to the bound"
    assert checked_parity("x", Cancelling(), lambda x: (10.0 * x,), [x]) == pytest.approx(rounding, rel=1e-3)
    with pytest.raises(
        MisfitError, match=r"within 0.0001; found a difference of .* in Cancelling, of which rounding exp"
    ):
        checked_parity("x", Cancelling(), lambda x: (10.0 * x + 4 * rounding,), [x])


def test_rounding_excuses_no_large_difference():
    class Worse(Cancelling):
        def forward(self, x):
            return (100.0 * super().forward(x)[0],)

    x = torch.linspace(-1, 1, 301).unsqueeze(0)
    with pytest.raises(MisfitError, match="of which rounding explains 0.01"):
        checked_parity("x", Worse(), lambda x: (1000.0 * x,), [x])


@pytest.mark.parametrize(("off_by", "said"), [(1e-3, "a difference of 0.00"), (float("nan"), "a difference of nan")])
def test_parity_that_fails_is_an_error_with_its_figure(off_by, said):
    module, inputs = nn.Identity(), [torch.zeros(1, 2)]
    module.forward = lambda x: (x,)
    with pytest.raises(UserError, match=f"within 0.0001; found {said}"):
        checked_parity("x", module, lambda x: (x + off_by,), inputs)
    assert checked_parity("x", module, lambda x: (x + 1e-5,), inputs) == pytest.approx(1e-5)


def test_programs_are_made_anew_when_settings_change():
    policy, calls = toy_policy(ONE_CALL), []
    policy.network.register_forward_hook(lambda *_: calls.append(1))
    session, stream = Session(policy), toy_stream(0, 9)
    for k in (1, 3):
        policy.k = k
        policy.prepare()
        session.reset(0)
        for t, observation in enumerate(stream):
            session.observe(observation)
            if t % 4 == 0:
                calls.clear()
                session.act(observation)
        assert len(calls) == k
