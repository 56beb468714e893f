"""Teachers as a user names them: `expert=` of `collect` and `train`, what the runs remember, and one line an error."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from embodied.catalog import make_expert, make_task
from embodied.cli import main
from embodied.collection import collect_episode
from embodied.commands import collect as collect_command
from embodied.configuration import check
from embodied.datasets.episode_store import EpisodeStore
from embodied.errors import UserError

# Turns the target to the pen, so that even a hand that holds still succeeds.
MODULE = """
import numpy as np

class Cheat:
    def __init__(self, task, command=0.0):
        self.task, self.command = task, command
    def infer_memory(self):
        return None
    def act(self, memory):
        self.task.model.body("target").quat[:] = self.task.data.body("Object").xquat
        return np.full(self.task.spec.action.size, self.command), None
"""
CHEAT = {"name": "module", "target": "cheating:Cheat", "settings": {"command": 0.25}}
PEN = ["task=adroit/pen", "task.horizon=40", "expert=module", "expert.target=cheating:Cheat", "workers=0"]
PEN += ["+expert.settings.command=0.25"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty working directory with a module of experts."""
    (tmp_path / "cheating.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("cheating", None)


def embodied(capsys, *words):
    """Exit status, last line of stdout, everything printed."""
    with pytest.raises(SystemExit) as exit_:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    lines = out.strip().splitlines()
    return exit_.value.code or 0, lines[-1] if lines else "", out + err


def test_a_teacher_demonstrates_and_train_collects_with_it_too(capsys):
    code, last, text = embodied(capsys, "collect", *PEN, "episodes=2")
    assert code == 0, text
    assert json.loads(Path(last).read_text())["expert"] == CHEAT
    store = EpisodeStore.open(Path(last).parent / "demonstrations.zarr")
    assert store.provenance["expert"] == CHEAT
    assert (store.episode(0).action == 0.25).all()

    small = ["collect.episodes=2", "training.steps=2", "training.batch_size=4", "network.width=16", "network.depth=1"]
    short = ["network.heads=2", "eval.episodes=1", "eval.recordings=0", "eval.latency_observations=2"]
    code, last, text = embodied(capsys, "train", *PEN, *small, *short)
    assert code == 0, text
    assert "collecting" not in text, "train is expected to find the demonstrations of this very teacher"
    assert json.loads(Path(last).read_text())["store"]["content_hash"] == store.content_hash()


def test_a_teacher_that_does_not_fit_is_refused_before_train_collects(capsys):
    code, _, text = embodied(capsys, "train", *PEN[:-1], "+expert.settings.wrong=1", "collect.episodes=2")
    assert code == 2
    assert "collecting" not in text
    assert "callable with the task and expert.settings" in text and "'wrong'" in text


def test_another_content_of_the_same_file_is_another_run(folder):
    path = folder / "teacher.npz"
    words = ["task=adroit/door", "expert=npz", f"expert.path={path}"]

    def run(arrays):
        np.savez(path, **arrays)
        return collect_command.open_run(check("collect", words))

    first, second = run({"a": np.zeros(1)}), run({"a": np.ones(1)})
    assert first.path != second.path and first.config_hash != second.config_hash
    assert run({"a": np.zeros(1)}).path == first.path
    assert len(first.config.expert.sha256) == 64


def test_the_tasks_own_expert_is_the_default():
    for command in ("collect", "train"):
        assert OmegaConf.to_container(check(command, []).expert) == {"name": "task"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["expert=npz"], "expert.path"),
        (["expert=npz", "expert.path=absent.npz"], "found none; check the path"),
        (["expert=nzp"], "did you mean 'npz'"),
        (["expert=npz", "expert.path=cheating.py"], "expected a .npz file of named arrays at cheating.py"),
        ([], "expected an expert for task adroit/door; found none; choose a teacher (expert=npz"),
    ],
)
def test_mistakes_are_one_line(capsys, words, message):
    code, _, text = embodied(capsys, "collect", "task=adroit/door", *words, "episodes=1", "workers=0")
    assert code == 2 and message in text and "Traceback" not in text


def test_a_store_of_another_expert_is_not_continued(capsys, folder):
    code, _, text = embodied(capsys, "collect", *PEN, "episodes=1", "store=shared.zarr")
    assert code == 0, text
    other = [*PEN[:-1], "+expert.settings.command=0.5", "episodes=1", "store=shared.zarr"]
    code, _, text = embodied(capsys, "collect", *other)
    assert code == 2 and "expert.settings.command: 0.25 against 0.5" in text and "name another folder" in text


STARTS = 10


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("name", ["door", "hammer"])
def test_the_teachers_of_dapg_succeed_with_and_without_noise(shared_data, name, noise):
    task = make_task({"name": f"adroit/{name}", "horizon": 200})
    expert = make_expert(task, {"name": "npz", "path": str(shared_data / "adroit_teachers" / f"{name}.npz")})
    config = check("collect", [f"noise={noise}"])
    settings = collect_command.CollectionSettings(**{key: config[key] for key in collect_command.SETTINGS})
    succeeded = sum(collect_episode(task, expert, start_id, settings).success_ever for start_id in range(STARTS))
    task.close()
    assert succeeded >= STARTS - 1


def test_a_teacher_of_another_adroit_task_is_refused(shared_data):
    task = make_task({"name": "adroit/hammer", "horizon": 200})
    with pytest.raises(UserError, match=r"a teacher for adroit/hammer: 46 values .*; found in_shift of shape \[39\]"):
        make_expert(task, {"name": "npz", "path": str(shared_data / "adroit_teachers" / "door.npz")})
    task.close()
