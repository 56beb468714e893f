"""`embodied bench policy`: what it does, leaves and writes; with trainings and evaluations whose outcomes are given."""

from __future__ import annotations

import json

import pytest
import yaml
from evaluation_summaries import evaluation, latency

from embodied.commands import bench, bench_policy, policy_matrix
from embodied.commands.policy_cells import Kept, evaluation_facts
from embodied.commands.policy_pages import _training_time
from embodied.commands.policy_trainings import Runs
from embodied.configuration import check
from embodied.errors import UserError

MATRIX = """
title: A small frontier
reference: DDIM-4
baseline: [DDIM-1, DDIM-4]
rivals: [SDP k=1, student]
headline: [SDP k=1]
evaluation: [episodes=4, recordings=0]
trainings:
  sdp: {command: train, overrides: [policy=sdp, network.width=32, network.depth=1]}
  diffusion: {command: train, overrides: [policy=diffusion, policy.calls=4, network.width=32, network.depth=1]}
  later: {command: not_yet, overrides: []}
columns:
  - - {task: metaworld/reach-v3, data: [collect.episodes=2], training: [training.steps=3]}
  - - {task: pusht/keypoints, data: ["data.store={pusht_demonstrations}"], training: [training.steps=3]}
rows:
  - - {label: SDP k=1, training: sdp, overrides: [policy.k=1]}
    - {label: DDIM-1, training: diffusion, overrides: [policy.calls=1]}
    - {label: DDIM-4, training: diffusion, overrides: [policy.calls=4]}
    - {label: student, training: later, overrides: []}
"""
OUTCOMES = {"SDP k=1": "1" * 15 + "0" * 5, "DDIM-1": "1" * 5 + "0" * 15, "DDIM-4": "1" * 16 + "0" * 3 + "e"}


class World:
    """Stands for the commands that a cell runs, and remembers what it was asked for."""

    def __init__(self, folder):
        self.folder = folder
        self.trained: list[str] = []
        self.evaluated: list[str] = []
        self.broken: set[str] = set()

    def train(self, runs, column, training):
        self.trained.append(f"{column.label} {training.name}")
        if training.name in self.broken:
            raise UserError(expected="a training", found="none", remedy="mend it")
        directory = runs.directory(column, training)
        directory.mkdir(parents=True, exist_ok=True)
        summary = {
            **{"command": "train", "config_hash": "c" * 64, "network": "transformer", "policy": training.name},
            **{"parameters": 7, "steps": 3, "version": "0.1.0", "machine": {"cpu": "one", "cores": 2}},
            **{"device": "NVIDIA of elsewhere", "timings": {"train_s": 120.0}},
        }
        (directory / "summary.json").write_text(json.dumps(summary))
        return directory

    def evaluate(self, cell, directory, runs):
        self.evaluated.append(cell.name)
        if cell.row.label in self.broken:
            raise RuntimeError("the simulator fell over")
        path = self.folder / "eval" / cell.file.removesuffix(".json") / "summary.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        motion = {"jerk": 0.1, "seam_jump": 0.02, "step_change": 0.01}
        outcomes = OUTCOMES[cell.row.label]
        count = float(cell.row.label[-1])
        calls = {"network_calls_per_observation": count, "network_calls_per_action": count / 4}
        calls |= {"delay_steps": 0, "action_noise": 0.0}
        path.write_text(json.dumps(evaluation(outcomes, setting=cell.row.label, motion=motion, **calls)))
        return path


@pytest.fixture
def world(tmp_path, monkeypatch):
    world = World(tmp_path)
    matrix = policy_matrix.parsed_matrix("small", yaml.safe_load(MATRIX))
    monkeypatch.setattr(bench_policy, "read_policy_matrix", lambda name: matrix)
    monkeypatch.setattr(Runs, "trained", lambda runs, *cell: world.train(runs, *cell))
    monkeypatch.setattr(bench_policy, "evaluated", world.evaluate)
    return world


def command(tmp_path, *words):
    shared = [f"run_root={tmp_path}/runs", f"results={tmp_path}/results", "workers=1"]
    return bench.run(check("bench", ["what=policy", *shared, *words]))


def page(tmp_path):
    return (tmp_path / "results" / "README.md").read_text()


def test_cells_are_kept_one_by_one_and_nothing_is_done_twice(world, tmp_path, capsys):
    summary = json.loads(command(tmp_path).read_text())
    assert world.trained == ["metaworld/reach-v3 sdp", "metaworld/reach-v3 diffusion"]  # one training, two rows
    assert [row["label"] for row in summary["rows"]] == ["SDP k=1", "DDIM-1", "DDIM-4"]
    said = capsys.readouterr().out
    assert "left: pusht/keypoints, SDP k=1: needs paths.pusht_demonstrations=..." in said
    assert "left: metaworld/reach-v3, student: embodied not_yet is not available in this version" in said
    assert "3 of 8 cells are there, 5 are left" in said
    world.trained.clear(), world.evaluated.clear()
    command(tmp_path, "paths.pusht_demonstrations=/somewhere.zarr")
    assert {name.split()[0] for name in world.trained} == {"pusht/keypoints"} and len(world.evaluated) == 3
    assert "6 of 8 cells are there" in capsys.readouterr().out


def test_a_cell_of_other_words_is_run_again(world, tmp_path, monkeypatch):
    command(tmp_path)
    changed = yaml.safe_load(
        MATRIX.replace("overrides: [policy.k=1]", "overrides: [policy.k=1, policy.initial_calls=4]")
    )
    matrix = policy_matrix.parsed_matrix("small", changed)
    monkeypatch.setattr(bench_policy, "read_policy_matrix", lambda name: matrix)
    world.evaluated.clear()
    command(tmp_path)
    assert world.evaluated == ["metaworld/reach-v3, SDP k=1"]


def test_whatever_fails_leaves_the_others_their_turn_and_is_tried_again(world, tmp_path, capsys):
    world.broken |= {"sdp", "DDIM-1"}
    with pytest.raises(UserError, match="2 failed: metaworld/reach-v3, training sdp; metaworld/reach-v3, DDIM-1"):
        command(tmp_path)
    assert "RuntimeError: the simulator fell over" in capsys.readouterr().out
    assert "| DDIM-4 | 16/19 |" in page(tmp_path)
    world.broken.clear()
    world.evaluated.clear()
    command(tmp_path)
    assert world.evaluated == ["metaworld/reach-v3, SDP k=1", "metaworld/reach-v3, DDIM-1"]


def test_after_its_time_nothing_new_is_begun(world, tmp_path, capsys):
    command(tmp_path, "time_budget_min=0")
    assert not world.trained
    assert "0 of 8 cells are there, 8 are left" in capsys.readouterr().out


def test_the_list_runs_and_writes_nothing(world, tmp_path, capsys):
    assert command(tmp_path, "list=true") is None
    assert not world.trained and not (tmp_path / "results").exists()
    assert "left: metaworld/reach-v3, DDIM-1" in capsys.readouterr().out


def test_the_page_says_pairs_the_sampler_to_beat_and_what_is_missing(world, tmp_path):
    command(tmp_path)
    text = page(tmp_path)
    # Of 19 starts that both ran DDIM-4 alone solved one more.
    assert "| SDP k=1 | 15/20 | 0.750 [0.531, 0.888] |" in text and "+0 -1 of 19, p 1, -0.053" in text
    unwrapped = " ".join(text.split())
    assert "The cheapest baseline that keeps the success of DDIM-4: DDIM-4." in unwrapped
    assert "The cheapest rival of those measured (not: student) that keeps the success of DDIM-4: SDP k=1." in unwrapped
    assert "Saturated" not in text and "| 2.0 (NVIDIA of elsewhere) |" in text
    assert "trained on NVIDIA of elsewhere.\n" in text
    assert "- metaworld/reach-v3, student\n" in text and "- latency of metaworld/reach-v3\n" in text
    assert "| metaworld/reach-v3, SDP k=1 | `metaworld-reach-v3-SDP-k=1` |" in text
    assert "frontier.png" not in text


def keep_latencies(tmp_path, times, **changed):
    """Timings of the first column on eager PyTorch, as of its trainings."""
    matrix = bench_policy.read_policy_matrix("small")
    column, rows = matrix.columns[0], {row.label: row for row in matrix.rows}
    timed = [
        {
            **{"label": label, "engine": "eager", "refused": None, "weights": "checkpoint"},
            "training": matrix.training_declared(column, matrix.trainings[rows[label].training]),
            "timings": {"observation_ms": latency(p50), "first_observation_ms": 5 * p50},
            **changed,
        }
        for label, p50 in times.items()
    ]
    kept = Kept(tmp_path / "results", matrix)
    kept.keep_latency(column, {"rows": timed})
    return kept.latency(column)["rows"]


def test_latencies_make_ratios_and_the_figure(world, tmp_path):
    command(tmp_path)
    keep_latencies(tmp_path, {"SDP k=1": 1.0, "DDIM-1": 0.9, "DDIM-4": 36.0})
    world.evaluated.clear()
    command(tmp_path, "stage=pages")
    assert not world.evaluated
    assert "| times as long an observation as | SDP k=1, eager | SDP k=1, ONNX Runtime |" in page(tmp_path)
    assert page(tmp_path).count("| DDIM-4 | 36 |  |\n") == 1  # the cheapest that keeps the success, and the reference
    assert "| 1.00 (1.20) | 0.25 |" in page(tmp_path)  # an observation pays for four actions
    assert (tmp_path / "results" / "frontier.png").stat().st_size > 1000
    assert "![A small frontier, by task](frontier.png)" in page(tmp_path)


@pytest.mark.parametrize("training", ["of other words", None])
def test_latencies_of_another_or_an_unknown_training_are_none(world, tmp_path, training):
    command(tmp_path)
    assert keep_latencies(tmp_path, {"DDIM-4": 7.0, "SDP k=1": 7.0}, training=training) == []
    command(tmp_path, "stage=pages")
    assert "7.00 (" not in page(tmp_path)


@pytest.mark.parametrize("label", ["DDIM-4", "of another plan"])
def test_latencies_that_name_no_training_are_none(world, tmp_path, label):
    command(tmp_path)
    matrix = bench_policy.read_policy_matrix("small")
    kept = Kept(tmp_path / "results", matrix)
    kept.keep_latency(matrix.columns[0], {"rows": [{"label": label, "engine": "eager"}]})
    assert kept.latency(matrix.columns[0])["rows"] == []


def test_latencies_of_fresh_weights_are_named(world, tmp_path):
    command(tmp_path)
    assert len(keep_latencies(tmp_path, {"DDIM-4": 7.0}, weights="fresh")) == 1
    command(tmp_path, "stage=pages")
    assert page(tmp_path).count("| 7.00 (") == 1
    assert "Latency with fresh weights of the same shape: DDIM-4.\n" in page(tmp_path)


def plan_with(monkeypatch, **changed):
    """The small plan with other entries is the one that is read from now on."""
    matrix = policy_matrix.parsed_matrix("small", {**yaml.safe_load(MATRIX), **changed})
    monkeypatch.setattr(bench_policy, "read_policy_matrix", lambda name: matrix)
    return matrix


def test_peers_are_compared_by_their_latency(world, tmp_path, monkeypatch):
    plan_with(monkeypatch, peers=["student"])
    command(tmp_path)
    keep_latencies(tmp_path, {"SDP k=1": 1.0, "DDIM-4": 3.6, "student": 493.4})
    command(tmp_path, "stage=pages")
    assert "| DDIM-4 | 3.6 |  |\n| student | 493 |  |\n" in page(tmp_path)


def test_what_does_not_keep_the_success_has_no_ratio(world, tmp_path, monkeypatch):
    plan_with(monkeypatch, rivals=["DDIM-1"], headline=["SDP k=1", "DDIM-1"])
    command(tmp_path)
    keep_latencies(tmp_path, {"SDP k=1": 1.0, "DDIM-1": 0.9, "DDIM-4": 3.6})
    command(tmp_path, "stage=pages")
    assert "| times as long an observation as | SDP k=1, eager | SDP k=1, ONNX Runtime |" in page(tmp_path)
    assert "| DDIM-4 | 3.6 |  |\n" in page(tmp_path)
    unwrapped = " ".join(page(tmp_path).split())
    assert unwrapped.count("DDIM-1 does not keep it.") == 1
    assert "No rival keeps the success of DDIM-4." in unwrapped


def test_means_are_over_all_columns_and_over_those_that_tell_methods_apart(world, tmp_path, monkeypatch):
    plan_with(monkeypatch, discriminating=["pusht/keypoints"])
    command(tmp_path, "paths.pusht_demonstrations=/somewhere.zarr")
    means = page(tmp_path).partition("## Means")[2].partition("\n## ")[0]
    every, _, few = means.partition("chosen beforehand because they tell methods apart:\n")
    # Of the 19 starts of DDIM-4, which solved 16, SDP solved 15 and DDIM-1 5: the same in both columns.
    assert "| SDP k=1 | 2 | 0.789 | 0.842 | -0.053 [" in every and "| SDP k=1 | 1 | 0.789 | 0.842 | -0.053 [" in few
    assert "- 2 columns of SDP k=1, DDIM-1: metaworld/reach-v3, pusht/keypoints.\n" in every
    assert "- 1 column of SDP k=1, DDIM-1: pusht/keypoints.\n" in few


def test_one_method_is_compared_with_another_on_all_starts_that_they_share(world, tmp_path, monkeypatch):
    plan_with(monkeypatch, pairs=[["SDP k=1", "DDIM-1"], ["student", "SDP k=1"], ["DDIM-1", "DDIM-4"]])
    command(tmp_path)
    pairs = page(tmp_path).partition("One method against another")[2].partition("\n## ")[0]
    # All twenty: 15 of SDP, 5 of DDIM-1; of the nineteen that DDIM-4 ran too 5 and 16.
    assert "| SDP k=1 | 1 | 0.750 | 0.250 (DDIM-1) | +0.500 [" in pairs
    assert "| DDIM-1 | 1 | 0.263 | 0.842 (DDIM-4) | -0.579 [" in pairs
    assert "student" not in pairs and "chosen beforehand" not in pairs


def test_columns_and_pairs_of_the_plans_are_theirs():
    for name in policy_matrix.MATRICES:
        matrix = policy_matrix.read_policy_matrix(name)
        assert set(matrix.discriminating) <= {column.label for column in matrix.columns}
        assert {label for pair in matrix.pairs for label in pair} <= {row.label for row in matrix.rows}


@pytest.mark.parametrize(
    ("facts", "gpu", "minutes", "words"),
    [
        ({"device": "cpu"}, "a GPU that was not used", 12.4, "12"),
        ({"device": "NVIDIA H200"}, None, 0.46, "0.5 (NVIDIA H200)"),
        ({"device": None}, None, 3.0, "3.0 (unknown device)"),
        ({}, "NVIDIA of old", 3.0, "3.0 (NVIDIA of old)"),  # of a version that did not note it
        ({}, None, 34.0, "34"),
    ],
)
def test_the_time_of_a_training_names_the_device_unless_it_is_a_cpu(facts, gpu, minutes, words):
    training = {**facts, "machine": {"gpu": gpu}, "timings": {"train_min": minutes}}
    assert _training_time(training) == words


def test_what_is_kept_says_each_start_in_one_character():
    summary = evaluation("10e1", motion=None, delay_steps=0, action_noise=0.0)
    facts = evaluation_facts(summary)
    assert (facts["ever"], facts["last"], facts["first_start"]) == ("10e1", "00e1", 100000)
    assert facts["max_reward"] is None  # of rewards that are 0 or 1
    for row in summary["episodes"]:
        row["return"] += 0.25
    summary["episodes"][0]["max_reward"] = 0.123456789
    assert evaluation_facts(summary)["max_reward"] == [0.12346, 0.0, None, 1.0]
    assert facts["timings"]["contended"] is True


def test_stages_and_matrices_are_known_by_name(tmp_path):
    with pytest.raises(UserError, match="a stage of bench policy; found 'sucess'; did you mean 'success'"):
        command(tmp_path, "stage=sucess")
    with pytest.raises(UserError, match="a plan of bench policy; found 'frontiers'; did you mean 'frontier'"):
        command(tmp_path, "plan=frontiers")
    with pytest.raises(UserError, match="a plan of bench policy; found 'policies'; use `embodied bench policies`"):
        command(tmp_path, "plan=policies")


def test_a_damaged_file_is_named(world, tmp_path):
    command(tmp_path)
    (tmp_path / "results" / "cells" / "metaworld-reach-v3-DDIM-1.json").write_text("{")
    with pytest.raises(UserError, match="a cell's results in .*DDIM-1.json.*delete it"):
        command(tmp_path)


CONDITIONS = """
  - {label: undisturbed, values: {delay: 0}}
  - {label: delay 3, evaluation: [delay_steps=3], values: {delay: 3}}
  - {label: noise, evaluation: [action_noise=0.1], values: {delay: 0}, rows: [SDP*]}
"""


def test_under_conditions_each_method_stands_beside_itself(world, tmp_path, monkeypatch):
    plan_with(monkeypatch, conditions=yaml.safe_load(CONDITIONS))

    def evaluate(cell, directory, runs):
        path = world.evaluate(cell, directory, runs)
        if cell.condition.label == "delay 3":
            summary = json.loads(path.read_text())
            for row in summary["episodes"][:2]:
                row["success_ever"] = False
            path.write_text(json.dumps(summary))
        return path

    monkeypatch.setattr(bench_policy, "evaluated", evaluate)
    command(tmp_path)
    text = page(tmp_path)
    assert "| method | undisturbed | delay 3 | noise |" in text
    assert "| SDP k=1 | 15/20 | 15/20, -0.10 [-0.30, +0.08] | 15/20, +0.00 [-0.16, +0.16] |" in text
    assert "| DDIM-1 | 5/20 | 5/20, -0.10 [-0.30, +0.08] |  |" in text
    assert "| SDP k=1 | 0.100 / 0.020 / 0.010 |" in text
    assert (tmp_path / "results" / "delay.png").stat().st_size > 1000
    with pytest.raises(UserError, match="conditions change no latency"):
        command(tmp_path, "stage=latency")


REAL_TRAININGS = """
lerobot: {command: lerobot, overrides: [horizon=16, action_steps=4, history=2, "down_dims=[8,16,32]"]}
student: {command: distill, teacher: diffusion, overrides: [objective=ode_pair, objective.teacher_calls=3]}
"""
REAL_ROWS = """
- {label: student, training: student, overrides: []}
- {label: LeRobot, training: lerobot, overrides: [], evaluation: [episodes=1, task.horizon=16]}
"""


@pytest.fixture
def real(tmp_path, monkeypatch):
    """A matrix whose commands are run, LeRobot's script among them."""
    entry = yaml.safe_load(MATRIX)
    column = entry["columns"][0][0]
    column["data"].append("task.horizon=100")  # below the task's own
    column["training"] = ["training.steps=5", "training.batch_size=8"]
    entry["columns"] = [[column]]
    entry["evaluation"] = ["episodes=2", "recordings=0", "latency_observations=2"]
    entry["trainings"] = {name: entry["trainings"][name] for name in ("sdp", "diffusion")}
    entry["trainings"] |= yaml.safe_load(REAL_TRAININGS)
    entry["rows"] = [[*entry["rows"][0][:3], *yaml.safe_load(REAL_ROWS)]]
    matrix = policy_matrix.parsed_matrix("small", entry)
    monkeypatch.setattr(bench_policy, "read_policy_matrix", lambda name: matrix)
    return matrix


@pytest.mark.heavy
@pytest.mark.timeout(900)  # LeRobot's policy takes a hundred calls a chunk, and is warmed up before it is timed
def test_a_small_matrix_is_trained_evaluated_and_timed(real, tmp_path, capsys):
    """With a student and LeRobot's policy; a second call finds everything there."""
    summary = json.loads(command(tmp_path).read_text())
    rows = {row["label"]: row for row in summary["rows"]}
    calls = {label: row["calls_per_observation"] for label, row in rows.items()}
    assert calls == {"SDP k=1": 1, "DDIM-1": 1, "DDIM-4": 4, "student": 1, "LeRobot": 100}
    assert {label: len(row["ever"]) for label, row in rows.items()} == dict.fromkeys(calls, 2) | {"LeRobot": 1}
    assert not any(row["errors"] for row in rows.values())
    command(tmp_path, "stage=latency", "latency_stage.observations=2", "latency_stage.rounds=2")
    timed = Kept(tmp_path / "results", real).latency(real.columns[0])
    weights = {(row["label"], row["engine"]): row.get("weights") for row in timed["rows"] if not row["refused"]}
    assert set(weights.values()) == {"checkpoint"}
    assert {label for label, engine in weights if engine == "eager"} == calls.keys()
    assert ("DDIM-4", "onnxruntime") in weights and ("LeRobot", "onnxruntime") not in weights
    assert all(row["timings"]["observation_ms"]["n"] == 4 for row in timed["rows"] if not row["refused"])
    assert (tmp_path / "results" / "frontier.png").exists()
    capsys.readouterr()
    command(tmp_path)
    assert "training" not in capsys.readouterr().out
