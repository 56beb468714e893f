"""Teachers from files: what they compute, in which order they see the state, and which files are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made_onnx import write_affine_tanh
from toy_specs import ReachTask, toy_settings

from embodied.catalog import TEACHERS, make_expert
from embodied.collection import collect_episode
from embodied.errors import UserError
from embodied.fingerprint import fingerprint

S, A, HIDDEN = 4, 3, 8  # of the toy task: point and goal, two displacements and a grip


@pytest.fixture
def task():
    task = ReachTask()
    task.reset(0)
    return task


def dapg_arrays(seed: int = 0, inputs: int = S, outputs: int = A) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    shapes = {"w0": (HIDDEN, inputs), "b0": (HIDDEN,), "w1": (HIDDEN, HIDDEN), "b1": (HIDDEN,)}
    shapes |= {"w2": (outputs, HIDDEN), "b2": (outputs,)}
    shapes |= {"in_shift": (inputs,), "in_scale": (inputs,), "out_shift": (outputs,), "out_scale": (outputs,)}
    arrays = {name: generator.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["in_scale"] = np.abs(arrays["in_scale"])
    return arrays


def reaching_arrays() -> dict[str, np.ndarray]:
    """A network that goes to the goal: tanh(2 * (goal - point)), and an open hand."""
    w0 = 2 * np.array([[-1, 0, 1, 0], [0, -1, 0, 1], [0, 0, 0, 0]], np.float32)
    w1, zero = np.diag([2.0, 2.0, 0.0]).astype(np.float32), np.zeros(3, np.float32)
    ones = np.ones(S, np.float32)
    transforms = {"in_shift": 0 * ones, "in_scale": ones, "out_shift": zero - [0, 0, 1], "out_scale": zero + 1}
    return {"w0": w0, "b0": zero, "w1": w1, "b1": zero, **transforms}


@pytest.fixture
def weights():
    generator = np.random.default_rng(3)
    return generator.normal(0, 1, (S, A)).astype(np.float32), generator.normal(0, 1, A).astype(np.float32)


class AffineTanh(torch.nn.Module):
    def __init__(self, weight_SA, bias_A):
        super().__init__()
        self.weight, self.bias = torch.nn.Parameter(torch.tensor(weight_SA)), torch.nn.Parameter(torch.tensor(bias_A))

    def forward(self, x):
        return torch.tanh(x @ self.weight + self.bias)


@pytest.fixture
def files(tmp_path, weights):
    """A good file of each kind, and what it computes."""
    np.savez(tmp_path / "teacher.npz", **dapg_arrays())
    save_torchscript(AffineTanh(*weights), tmp_path / "teacher.pt")
    write_affine_tanh(tmp_path / "teacher.onnx", *weights)

    def affine_tanh(state):
        return np.tanh(state @ weights[0] + weights[1])

    return {
        "npz": (tmp_path / "teacher.npz", dapg),
        "torchscript": (tmp_path / "teacher.pt", affine_tanh),
        "onnx": (tmp_path / "teacher.onnx", affine_tanh),
    }


KINDS = ["npz", "torchscript", "onnx"]


def save_torchscript(module: torch.nn.Module, path) -> None:
    torch.jit.trace(module.eval(), torch.zeros(1, S)).save(path)


def dapg(state: np.ndarray) -> np.ndarray:
    """The equation, written out for three layers and in double precision."""
    a = {name: value.astype(np.float64) for name, value in dapg_arrays().items()}
    x = (state - a["in_shift"]) / (a["in_scale"] + 1e-8)
    x = np.tanh(a["w0"] @ x + a["b0"])
    x = np.tanh(a["w1"] @ x + a["b1"])
    return (a["w2"] @ x + a["b2"]) * a["out_scale"] + a["out_shift"]


def teacher(task, kind, path, **settings):
    return make_expert(task, {"name": kind, "path": str(path), "observation": None, "sha256": None, **settings})


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_computes_what_its_file_says_on_the_newest_observation(task, files, kind):
    path, function = files[kind]
    expert = teacher(task, kind, path)
    for start_id in range(3):
        observation = task.reset(start_id)
        for _ in range(3):
            state = np.concatenate([observation.state["point"], observation.state["goal"]])
            action, memory = expert.act(expert.infer_memory())
            np.testing.assert_allclose(action, np.clip(function(state), -1, 1), atol=1e-5)
            assert action.dtype == np.float32 and memory is None
            observation = task.step(action).observation


@pytest.mark.parametrize("kind", KINDS)
def test_the_configuration_names_the_order_in_which_a_teacher_sees_the_state(task, files, kind):
    path, function = files[kind]
    state = task.observation().state
    action, _ = teacher(task, kind, path, observation=["goal", "point"]).act(None)
    expected = np.clip(function(np.concatenate([state["goal"], state["point"]])), -1, 1)
    np.testing.assert_allclose(action, expected, atol=1e-5)
    assert not np.allclose(action, teacher(task, kind, path).act(None)[0])


def test_a_teachers_episode_is_recorded_like_any_other(task, tmp_path):
    np.savez(tmp_path / "reach.npz", **reaching_arrays())
    episode = collect_episode(task, teacher(task, "npz", tmp_path / "reach.npz"), 3, toy_settings(noise=0.05))
    assert episode.success_ever and episode.provenance["expert"] == "NpzTeacher"


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_file_is_named(task, tmp_path, kind):
    with pytest.raises(UserError, match=r"a teacher at .*absent; found no such file; check expert\.path"):
        teacher(task, kind, tmp_path / "absent")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", ["text", "empty", "pickle", "folder", "npy"])
def test_a_file_of_another_kind_is_refused(task, tmp_path, kind, content):
    path = tmp_path / "other"
    match content:
        case "text":
            path.write_text("in_shift, in_scale\n" * 10)
        case "empty":
            path.touch()
        case "pickle":
            torch.save({"weights": torch.zeros(3)}, path)
        case "folder":
            path.mkdir()
        case "npy":
            np.save(path, np.zeros(3))
            path.with_suffix(".npy").rename(path)
    with pytest.raises(UserError, match=r"(?s)expected (a|an) .*at .*other; found something else .*expert\.path"):
        teacher(task, kind, path)


def test_pickled_objects_in_an_npz_are_refused(task, tmp_path):
    np.savez(tmp_path / "x.npz", **{**dapg_arrays(), "w0": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(UserError, match="Object arrays cannot be loaded when allow_pickle=False"):
        teacher(task, "npz", tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w0": np.zeros((HIDDEN, 5), np.float32)}, r"w0 of shape \[8, 5\] instead of \[8, 4\]"),
        ({"w2": np.zeros((7, HIDDEN), np.float32)}, r"w2 of shape \[7, 8\] instead of \[3, 8\]"),
        ({"w1": np.zeros((HIDDEN, 2), np.float32)}, r"w1 of shape \[8, 2\] instead of \[8, 8\]"),
        ({"w1": np.float32(1)}, r"w1 of shape \[\] instead of \[0, 8\]"),
        ({"b1": np.zeros(2, np.float32)}, r"b1 of shape \[2\] instead of \[8\]"),
        ({"in_scale": np.zeros((1, S), np.float32)}, r"in_scale of shape \[1, 4\] instead of \[4\]"),
        ({"out_shift": np.zeros(S, np.float32)}, r"out_shift of shape \[4\] instead of \[3\]"),
        ({"in_shift": np.full(S, np.nan, np.float32)}, r"finite numbers .*; found others in 'in_shift'"),
        ({"b0": np.array(["a"] * HIDDEN)}, r"finite numbers .*; found others in 'b0'"),
        ({"b2": None}, r"expected the arrays w0, b0, .*; found b0, b1, in_scale"),
        ({"w4": np.zeros(3, np.float32)}, r"expected the arrays w0, b0, .*; found b0, b1, b2"),
    ],
)
def test_every_array_of_an_npz_must_fit(task, tmp_path, change, message):
    arrays = {name: value for name, value in {**dapg_arrays(), **change}.items() if value is not None}
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=message) as error:
        teacher(task, "npz", tmp_path / "x.npz")
    if "instead of" in message:
        assert "toy/reach: 4 values of observation (point (2), goal (2)) to 3 of action" in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(S + 1, A), (S, A + 1)])
def test_a_teacher_of_another_task_is_refused(task, tmp_path, kind, sizes):
    path, weight, bias = tmp_path / "other", np.zeros(sizes, np.float32), np.zeros(sizes[1], np.float32)
    if kind == "npz":
        np.savez(path, **dapg_arrays(0, *sizes))
        path = path.with_suffix(".npz")
    elif kind == "onnx":
        write_affine_tanh(path, weight, bias)
    else:
        torch.jit.trace(AffineTanh(weight, bias), torch.zeros(1, sizes[0])).save(path)
    with pytest.raises(
        UserError, match=r"a teacher for toy/reach: 4 values of observation \(point \(2\), goal \(2\)\)"
    ):
        teacher(task, kind, path)


@pytest.mark.parametrize("kind", KINDS)
def test_actions_that_are_not_finite_are_refused(task, tmp_path, kind):
    path, weight, bias = tmp_path / "nan", np.zeros((S, A), np.float32), np.array([np.nan, 0, 0], np.float32)
    if kind == "npz":  # finite weights, whose products are not
        path = path.with_suffix(".npz")
        np.savez(path, **{**dapg_arrays(), "out_scale": np.full(A, 3e38), "out_shift": np.full(A, 3e38)})
        task.reset(1)
    elif kind == "onnx":
        write_affine_tanh(path, weight, bias)
    else:
        save_torchscript(AffineTanh(weight, bias), path)
    expert = teacher(task, kind, path)
    with pytest.raises(UserError, match=r"finite action values from the teacher .*nan"), np.errstate(over="ignore"):
        for start_id in range(20):
            task.reset(start_id)
            expert.act(None)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["point", "gaol"], r"state vectors of toy/reach in expert\.observation, .*'gaol'; did you mean 'goal'"),
        (["point", "point"], r"each once; found 'point' twice"),
        ([], r"expected state vectors in expert\.observation; found none"),
    ],
)
def test_wrong_orders_are_named(task, files, names, message):
    with pytest.raises(UserError, match=message):
        teacher(task, "npz", files["npz"][0], observation=names)


def test_a_file_of_another_content_is_refused(task, files):
    path, _ = files["npz"]
    known = fingerprint(path)
    assert teacher(task, "npz", path, sha256=known).act(None)[0].shape == (A,)
    np.savez(path, **dapg_arrays(seed=1))
    with pytest.raises(UserError, match=f"whose content has the SHA-256 {known}; found [0-9a-f]{{64}}"):
        teacher(task, "npz", path, sha256=known)


def test_the_fingerprint_of_a_folder_depends_on_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    first = fingerprint(tmp_path)
    assert first == fingerprint(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    second = fingerprint(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({first, second, fingerprint(tmp_path)}) == 3


def test_an_unknown_kind_or_setting_is_named(task, files):
    with pytest.raises(UserError, match="name of an expert; found 'nzp'; did you mean 'npz'"):
        make_expert(task, {"name": "nzp"})
    with pytest.raises(UserError, match="settings that expert 'npz' takes: path, observation, sha256"):
        make_expert(task, {"name": "npz", "file": "x"})
    assert set(TEACHERS) == {"lerobot", "module", "npz", "onnx", "torchscript"}
