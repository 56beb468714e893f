"""Success over the delay by mode, 0 to 300 ms: waiting costs episodes, planning for the delay does not."""

import numpy as np
import pytest
from test_commands import embodied, summary
from toy_specs import SPEED, ReachTask, toy_spec
from virtual_link import VirtualLink, drive, served

from embodied.commands.bench_delay import _in_time, delay_steps
from embodied.evaluation.delay_plot import DelayPanel, delay_figure
from embodied.robot.controller import RobotController
from embodied.types import ActionChunk

STARTS = range(40)
HORIZON = 16  # so that most starts leave little time to wait in


class PlanningPolicy:
    """Steers to the goal from where the robot will be: behind the d actions that were handed out before."""

    history, action_steps, label = 1, 4, "planning"

    def __init__(self, inference_delay):
        self.spec, self.inference_delay = toy_spec(HORIZON), inference_delay

    def initial_state(self, seed):
        return np.zeros((0, 3), np.float32)

    def step(self, histories, states, executed):
        (history,), (plan,), (ran,) = histories, states, executed
        point, goal = (history[-1].state[name].astype(float) for name in ("point", "goal"))
        settled = plan[ran : ran + self.inference_delay]
        point = point + SPEED * settled[:, :2].sum(axis=0)
        actions = []
        for _ in range(self.action_steps + self.inference_delay - len(settled)):
            towards = np.clip((goal - point) / SPEED, -1, 1)
            actions.append([*towards, 1.0])
            point = point + SPEED * towards
        start_s = history[-1].time_s + len(settled) * self.spec.dt_s
        chunk = ActionChunk(np.array(actions, np.float32), start_s, self.spec.dt_s)
        return [chunk], [np.concatenate([settled, chunk.actions])]


def success(inference_delay, delay_s):
    """Of the controller in virtual time, the first answer of an episode at once."""
    successes = 0
    for start in STARTS:
        policy = PlanningPolicy(inference_delay)
        link = VirtualLink(policy, lambda number: delay_s if number else 0.0)
        task = ReachTask(HORIZON)
        drive(task, RobotController(served(policy), link), link, start)
        successes += task.ever
    return successes / len(STARTS)


def test_overlapped_execution_keeps_its_success_where_the_synchronous_one_stalls():
    delays_s = [0.0, 0.1, 0.2, 0.3]
    synchronous = [success(0, delay) for delay in delays_s]
    overlapped = [success(round(delay * 10), delay) for delay in delays_s]
    assert synchronous[0] == overlapped[0] > 0.9
    assert max(overlapped) - min(overlapped) <= 0.05
    assert synchronous == sorted(synchronous, reverse=True) and synchronous[-1] < synchronous[0] - 0.3


@pytest.mark.parametrize(
    ("delay_ms", "control_hz", "steps"), [(0, 20, 0), (1, 20, 1), (50, 20, 1), (51, 20, 2), (300, 20, 6), (300, 10, 3)]
)
def test_actions_that_come_within_a_control_step_are_for_the_next_one(delay_ms, control_hz, steps):
    assert delay_steps(delay_ms, control_hz) == steps


def ran(*firsts):
    return [{"start": start, "error": None, "first_success": first} for start, first in enumerate(firsts)]


def test_who_waits_is_late_though_it_succeeds():
    result = _in_time([ran(10, 20, 30, None), ran(10, 30, 31, None), ran(31, 40, 50, 60)])
    assert result["mean_steps_to_success"] == [20, pytest.approx(71 / 3), pytest.approx(181 / 4)]
    assert [(one["k"], one["n"]) for one in result["in_time"]] == [(3, 4), (2, 4), (0, 4)]  # within 30 steps
    assert result["largest_fall_in_time"] == 0.75
    assert _in_time([ran(None), ran(5)])["in_time"] == []


def test_the_figure_has_a_panel_a_task_and_one_colour_a_method():
    def rate(value):
        return {"rate": value, "low": value - 0.2, "high": value + 0.1}

    here = DelayPanel("here", {"waits": {0: rate(0.9), 100: rate(0.5)}, "plans": {100: rate(0.8), 0: rate(0.9)}})
    there = DelayPanel("there", {"plans": {0: rate(0.7), 50: rate(0.6)}})
    figure = delay_figure([here, there], "ms")
    left, right = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["here", "there"]
    assert left.get_xlabel() == "delay (ms)" and left.get_xticks().tolist() == [0, 100]
    (waits, _, waits_bars), (plans, *_) = left.containers
    (plans_there, *_) = right.containers[0]
    assert waits.get_ydata().tolist() == [0.9, 0.5] and plans.get_ydata().tolist() == [0.9, 0.8]
    assert (waits.get_xdata() < [0, 100]).all() and (plans.get_xdata() > [0, 100]).all()  # beside each other
    assert np.allclose([ends[:, 1] for ends in waits_bars[0].get_segments()], [[0.7, 1.0], [0.3, 0.6]])
    assert waits.get_color() != plans.get_color() == plans_there.get_color()
    assert [text.get_text() for text in figure.legends[0].texts] == ["waits", "plans"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("delay.modes=[]", "ways of execution in delay.modes; found none"),
        ("delay.modes=[{name: a}]", "delay.modes with name and run"),
        ("delay.modes=[{name: a, run: b, overlap: true}]", "found overlap"),
        ("delay.modes=[3]", "found no map"),
    ],
)
def test_modes_that_are_none_are_named(capsys, tmp_path, word, message):
    code, _, text = embodied(capsys, "bench", "delay", word, f"run_root={tmp_path}")
    assert code == 2 and message in text, text


@pytest.mark.parametrize("delays", ["[]", "[100,0]", "[-1,0]", "[fast]"])
def test_delays_that_are_none_are_named(capsys, tmp_path, delays):
    mode = "delay.modes=[{name: a, run: b}]"
    code, _, text = embodied(capsys, "bench", "delay", mode, f"delay.delays_ms={delays}", f"run_root={tmp_path}")
    assert code == 2 and "delay.delays_ms as rising numbers of at least 0, in ms" in text, text


SMALL = ["task=tabletop/pick_can", "task.horizon=30", "collect.episodes=2", "training.steps=5", "training.batch_size=8"]
SMALL += ["eval.episodes=1", "eval.recordings=0", "network.width=16", "network.depth=1", "network.heads=2"]
SMALL += ["eval.latency_observations=2", "workers=0", "policy.largest_delay=4"]


def rates(rows):
    return [one for row in rows for one in row["success"]]


@pytest.mark.heavy
def test_every_mode_is_evaluated_at_every_delay(capsys, tmp_path):
    code, last, text = embodied(capsys, "train", *SMALL, f"run_root={tmp_path}")
    assert code == 0, text
    run = last.rpartition("/")[0]
    modes = f"delay.modes=[{{name: synchronous, run: '{run}'}}, {{name: prefix, run: '{run}', overlapped: true}}]"
    words = ["bench", "delay", modes, "delay.episodes=2", f"run_root={tmp_path}", "workers=0"]
    code, last, text = embodied(capsys, *words, "delay.delays_ms=[0,200]", f"results={tmp_path}/results")
    assert code == 0, text
    rows = summary(last)["rows"]
    assert [row["mode"] for row in rows] == ["synchronous", "prefix"]
    assert [[one["delay_steps"] for one in row["success"]] for row in rows] == [[0, 4], [0, 4]]
    assert all(one["n"] == 2 for one in rates(rows))
    assert "d=4" in rows[1]["success"][1]["label"] and rows[0]["success"][1]["label"] == rows[0]["success"][0]["label"]
    page = (tmp_path / "results" / "delay.md").read_text()
    assert "| mode | 0 ms (0 steps) | 200 ms (4 steps) | largest fall |" in page
    assert page.count("| synchronous |") in (2, 3)  # success, in time where there is any, and the time it took
    for row in rows:
        taken = zip(row["success"], row["mean_steps_to_success"], strict=True)
        assert all((steps is None) == (one["k"] == 0) for one, steps in taken)
    assert (tmp_path / "results" / "delay.png").read_bytes()[:4] == b"\x89PNG"
    code, _, text = embodied(capsys, *words, "delay.delays_ms=[0,300]")
    assert code == 2 and "policy.inference_delay between 0 and 4" in text, text
