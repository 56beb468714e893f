"""`embodied export`: programs that run without this package and give what the policy gives."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from test_commands import embodied, summary
from toy_policies import DIFFUSION, SDP, TINY, toy_policy, toy_stream
from toy_specs import absolute_spec

from embodied.errors import UserError
from embodied.policies.exported_programs import exported_programs
from embodied.policies.policy_file import PolicyDescription, save_policy
from embodied.session import Session

SETTINGS = {**SDP, "k": 1, "initial_calls": 2}
ALONE = """
import json, sys
import numpy as np

class Nobody:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(name)

sys.meta_path.insert(0, Nobody())
folder = sys.argv[1]
given = dict(np.load(folder + "/given.npz"))
about = json.load(open(folder + "/programs.json"))

def run(name, **inputs):
    program = next(p for p in about["programs"] if p["name"] == name)
    order = [inputs[key].astype(np.float32) for key in program["inputs"]]
    {run}
    return dict(zip(program["outputs"], outputs))

tables = {{key: np.array(value) for key, value in about["constants"]["cycle"].items()}}
Ta = about["action_steps"]
first = run("fresh_buffer", noise=given["noise"][:1], state_history=given["history"][:1])
rolled = np.concatenate([first["buffer"][:, Ta:], np.zeros_like(first["buffer"][:, :Ta])], axis=1)
second = run(
    "cycle",
    rolled_buffer=rolled,
    state_history=given["history"][1:],
    signal=tables["signal_by_executed"][Ta][None],
    noise=given["noise"][1:, 0],
    noise_scale=tables["noise_scale_by_executed"][Ta][None],
)
actions = [np.asarray(x["actions"])[0, about["past"] : about["past"] + Ta] for x in (first, second)]
np.save(folder + "/actions.npy", np.stack(actions))
"""
RUNNERS = {
    "onnx": (
        "import onnxruntime; session = onnxruntime.InferenceSession(folder + '/' + program['file']); "
        "outputs = session.run(None, dict(zip(program['inputs'], order)))",
        {"embodied", "torch"},
    ),
    "torch_export": (
        "import torch; outputs = [x.detach().numpy() for x in "
        "torch.export.load(folder + '/' + program['file']).module()(*map(torch.from_numpy, order))]",
        {"embodied"},
    ),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    policy = toy_policy(SETTINGS)
    provenance = {"config_hash": "0", "method_hash": "0", "seed": 0}
    save_policy(folder, policy, PolicyDescription(policy.spec, SETTINGS, TINY, {}, {}, 1, provenance))
    return folder


@pytest.mark.parametrize("format", ["onnx", pytest.param("torch_export", marks=pytest.mark.heavy)])
def test_programs_run_without_this_package_and_give_the_same(format, checkpoint, tmp_path, capsys):
    status, path, printed = embodied(capsys, "export", checkpoint, f"format={format}", f"run_root={tmp_path}")
    assert status == 0, printed
    exported = summary(path)
    assert [row["name"] for row in exported["programs"]] == ["fresh_buffer", "cycle"]
    assert all(row["largest_difference"] <= 1e-4 for row in exported["programs"])

    policy, session = toy_policy(SETTINGS), None
    session = Session(policy)
    session.reset(5)
    stream, expected = toy_stream(0, 5), []
    for t, observation in enumerate(stream):
        session.observe(observation)
        if t % 4 == 0:
            expected.append(session.act(observation).actions)
    folder = tmp_path / "alone"
    folder.mkdir()
    from embodied.policies.seeded_noise import seeded_normal

    noise = np.stack([seeded_normal((2, 16, 3), 5, index).numpy() for index in (0, 1)])
    flat = [policy.spec.flatten_state(observation.state) for observation in stream]
    history = np.stack([[flat[0], flat[0]], [flat[3], flat[4]]])
    run_folder = path.rpartition("/")[0]
    np.savez(f"{run_folder}/given.npz", noise=noise, history=history)
    script = folder / "alone.py"
    run, blocked = RUNNERS[format]
    script.write_text(ALONE.format(run=run, blocked=blocked))
    subprocess.run([sys.executable, script, run_folder], check=True)
    np.testing.assert_allclose(np.load(f"{run_folder}/actions.npy"), np.stack(expected), atol=1e-4)


def test_bad_input_is_one_line(checkpoint, tmp_path, capsys, monkeypatch):
    def error_of(*words):
        status, _, printed = embodied(capsys, "export", *words, f"run_root={tmp_path}")
        assert status == 2
        return printed

    assert "'onnz'; did you mean 'onnx'? known: onnx, torch_export" in error_of(str(checkpoint), "format=onnz")
    assert "expected a checkpoint" in error_of(str(tmp_path / "nothing"))
    assert "policy.k between 1 and floor(N / h) = 25; found 26" in error_of(str(checkpoint), "policy.k=26")

    from embodied.commands import export

    def differs(*_):
        raise UserError(expected="engine onnx to give what the network gives", found="a difference", remedy="eager")

    monkeypatch.setattr(export, "checked_parity", differs)
    assert "to give what the network gives" in error_of(str(checkpoint), "format=torch_export")
    assert not list(tmp_path.rglob("*.pt2"))


def test_of_programs_of_which_one_fails_none_is_left(checkpoint, tmp_path, capsys, monkeypatch):
    from embodied.commands import export

    checked = []

    def second_differs(*_):
        checked.append(1)
        if len(checked) > len(export.BATCHES):
            raise UserError(expected="engine onnx to give what the network gives", found="a difference", remedy="eager")
        return 0.0

    monkeypatch.setattr(export, "checked_parity", second_differs)
    monkeypatch.setattr(export, "export_torch", lambda module, inputs, path: path.write_bytes(b"a program"))
    monkeypatch.setattr(export, "_loaded", lambda path, format: None)
    words = [str(checkpoint), "format=torch_export", f"run_root={tmp_path}"]
    status, _, printed = embodied(capsys, "export", *words)
    assert status == 2 and "to give what the network gives" in printed and len(checked) == 1 + len(export.BATCHES)
    assert not list(tmp_path.rglob("*.pt2"))


def test_an_exporter_that_fails_without_a_word_is_named(checkpoint, tmp_path, capsys, monkeypatch):
    from embodied.commands import export

    def silent(*_):
        raise RuntimeError

    monkeypatch.setattr(export, "export_torch", silent)
    status, _, printed = embodied(capsys, "export", str(checkpoint), "format=torch_export", f"run_root={tmp_path}")
    assert status == 2 and "found fresh_buffer: RuntimeError" in printed


@pytest.mark.parametrize(
    "policy", [SETTINGS, {**DIFFUSION, "sampler": "warm_start", "warm_level": 50}], ids=["sdp", "warm start"]
)
def test_a_memory_of_relative_actions_is_not_exported(policy):
    built = toy_policy({**policy, "actions": {"representation": "chunk_relative"}}, spec=absolute_spec())
    with pytest.raises(
        UserError, match="not relative, for an export .*follow the moving reference; found .*chunk_relative"
    ):
        exported_programs(built)


def test_what_a_caller_must_know_stands_beside_the_programs(checkpoint):
    """Tables of the scales by the number of executed actions, as a session uses them."""
    policy = toy_policy(SETTINGS)
    cycle = exported_programs(policy)[1]
    signal, noise_scale = policy.raising(torch.device("cpu"))
    assert torch.equal(cycle.constants["signal_by_executed"], signal)
    assert torch.equal(cycle.constants["noise_scale_by_executed"], noise_scale)
    assert list(cycle.inputs) == ["rolled_buffer", "state_history", "signal", "noise", "noise_scale"]
    assert json.loads((checkpoint / "policy.json").read_text())["policy"]["k"] == 1
