"""`module:Class` as a teacher: found in the working directory, its memory passed on, its answers checked."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from toy_specs import ReachTask, toy_settings

from embodied.catalog import make_expert
from embodied.collection import collect_episode
from embodied.errors import UserError

MODULE = '''
import numpy as np

class Reaching:
    """Goes to the goal; remembers how often it was asked."""
    def __init__(self, task, gain=1.0):
        self.task, self.gain = task, gain
    def infer_memory(self):
        return 0
    def act(self, memory):
        state = self.task.observation().state
        towards = self.gain * 10 * (state["goal"] - state["point"])
        return np.array([*towards, 1.0]), memory + 1

class NoExpert:
    def __init__(self, task):
        pass
    def infer_memory(self):
        return None

class Answers(Reaching):
    def __init__(self, task, answer):
        self.answer = answer
    def act(self, memory):
        match self.answer:
            case "short": return np.zeros(2), memory
            case "nan": return np.array([0.0, np.nan, 0.0]), memory
            case "words": return "left", memory
            case "alone": return np.zeros(3)
            case "lists": return [0.0, 0.5, -3], memory
'''


@pytest.fixture
def task():
    task = ReachTask()
    task.reset(0)
    return task


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module that lies in the working directory."""
    (tmp_path / "my_experts.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "my_experts"
    sys.modules.pop("my_experts", None)


def teacher(task, target, **settings):
    return make_expert(task, {"name": "module", "target": target, "settings": settings})


def test_a_class_in_the_working_directory_is_called_with_the_task_and_settings(task, module):
    state = task.observation().state
    expected = 0.2 * 10 * (state["goal"] - state["point"])
    action, memory = teacher(task, f"{module}:Reaching", gain=0.2).act(5)
    np.testing.assert_allclose(action, np.clip([*expected, 1.0], -1, 1), atol=1e-6)
    assert action.dtype == np.float32 and memory == 6


def test_its_episodes_are_recorded_like_any_other(task, module):
    episode = collect_episode(task, teacher(task, f"{module}:Reaching"), 3, toy_settings(noise=0.05))
    assert episode.success_ever


def test_plain_numbers_are_an_action_too_and_are_clipped(task, module):
    action, _ = teacher(task, f"{module}:Answers", answer="lists").act(None)
    assert np.array_equal(action, np.float32([0, 0.5, -1])) and action.dtype == np.float32


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("short", r"an action of 3 values \(dx, dy, grip\) from my_experts:Answers; found shape \[2\]"),
        ("nan", r"finite action values from my_experts:Answers; found \[0\.0, nan, 0\.0\]"),
        ("words", r"3 numbers from my_experts:Answers; found 'left'"),
        ("alone", r"\(action, memory\) from act of my_experts:Answers; found a ndarray"),
    ],
)
def test_answers_that_are_no_actions_are_refused(task, module, answer, message):
    with pytest.raises(UserError, match=message):
        teacher(task, f"{module}:Answers", answer=answer).act(None)


@pytest.mark.parametrize(
    ("target", "settings", "message"),
    [
        ("no_such_module:Expert", {}, r"to import 'no_such_module' of .*No module named 'no_such_module'"),
        ("my_experts:Reachign", {}, r"a class of my_experts; found no 'Reachign'; did you mean 'Reaching'"),
        ("my_experts", {}, r"expert\.target as module:Class; found 'my_experts'"),
        ("my_experts:", {}, r"expert\.target as module:Class"),
        ("my_experts:NoExpert", {}, r"my_experts:NoExpert to be an expert, .*; found no act"),
        ("my_experts:Reaching", {"gian": 2}, r"callable with the task and expert\.settings; found .*'gian'"),
        ("my_experts:Answers", {}, r"callable with the task and expert\.settings; found .*'answer'"),
    ],
)
def test_what_cannot_be_built_is_named(task, module, target, settings, message):
    with pytest.raises(UserError, match=message):
        teacher(task, target, **settings)
