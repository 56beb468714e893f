"""What `embodied bench policy` declares: words that compose, an order of work, and hashes that say what changed."""

from __future__ import annotations

import copy
import functools
from importlib import resources

import pytest
import yaml
from omegaconf import OmegaConf
from toy_specs import toy_spec

from embodied.catalog import TASKS, is_known
from embodied.commands.matrix_cells import chosen, filled, shared_words
from embodied.commands.policy_matrix import MATRICES, parsed_matrix, read_policy_matrix
from embodied.configuration import check
from embodied.errors import UserError
from embodied.evaluation.episodes import check_delay_fits
from embodied.policies.policy_file import build_policy

PATHS = {"adroit_teachers": "/teachers", "pusht_demonstrations": "/pusht.zarr"}


def data(name="frontier"):
    return yaml.safe_load((resources.files("embodied.conf") / "matrix" / f"{name}.yaml").read_text())


@functools.cache  # most words are those of several cells and matrices
def composed(command, *words):
    return check(command, list(words))


@pytest.mark.parametrize("name", MATRICES)
def test_every_training_and_every_cell_is_a_command_that_composes(name):
    matrix = read_policy_matrix(name)
    assert len({cell.file for cell in matrix.cells}) == len(matrix.cells)
    for column in matrix.columns:
        assert is_known(TASKS, column.task)
        assert column.places <= PATHS.keys()
    for cell in matrix.cells:
        for command, words in (
            (cell.training.command, filled(matrix.training_words(cell.column, cell.training), PATHS)),
            ("eval", list(cell.evaluation)),
        ):
            if command in ("train", "eval"):
                composed(command, *words)
    labels = {row.label for row in matrix.rows}
    assert {*matrix.baseline, *matrix.rivals, *matrix.peers, *matrix.headline} <= labels
    assert matrix.reference in labels or matrix.reference is None


@pytest.mark.parametrize("name", MATRICES)
def test_every_policy_can_be_built_and_run_as_its_rows_say(name):
    matrix = read_policy_matrix(name)
    column = matrix.columns[0]
    for training in matrix.trainings.values():
        if training.command != "train":
            continue
        words = filled(matrix.training_words(column, training), PATHS)
        config = OmegaConf.to_container(composed("train", *words), resolve=True)
        policy = build_policy(toy_spec(), config["policy"], config["network"], config["encoder"])
        for cell in matrix.cells:
            if cell.column == column and cell.training == training:
                settings = composed("eval", *cell.evaluation)
                policy.configure(**{key: value for key, value in settings.policy.items() if value is not None})
                check_delay_fits(policy, settings.delay_steps)


def test_trainings_of_another_plan_are_the_same_runs():
    frontier, other = read_policy_matrix("frontier"), read_policy_matrix("closed_loop")
    for column in other.columns:
        assert column in frontier.columns
        for name in ("sdp", "diffusion", "flow", "rnr"):
            ours = other.training_declared(column, other.trainings[name])
            assert ours == frontier.training_declared(column, frontier.trainings[name])


def test_main_rows_of_the_first_columns_come_first_and_column_by_column():
    cells = read_policy_matrix("frontier").cells
    first = [(cell.column.task, cell.row.label) for cell in cells[:32]]
    assert [task for task, _ in first[::8]] == ["robosuite/square", "robosuite/stack", "pusht/keypoints", "adroit/door"]
    assert {label for _, label in first} == {
        *("SDP k=1", "SDP k=2", "SDP k=4"),
        *("DDIM-1", "DDIM-2", "DDIM-4", "DDIM-8", "DDIM-16"),
    }
    assert {cell.row.label for cell in cells[32:36]} == {"DDPM-100"}


def test_a_hash_changes_with_the_words_of_its_cell_its_training_and_its_teacher_alone():
    before = parsed_matrix("frontier", data())

    def changed(change):
        entry = copy.deepcopy(data())
        change(entry)
        after = parsed_matrix("frontier", entry)
        pairs = zip(before.cells, after.cells, strict=True)
        return {one.name for one, other in pairs if before.declared(one) != after.declared(other)}

    assert changed(lambda entry: entry.update(title="Another")) == set()
    rows = changed(lambda entry: entry["trainings"]["diffusion"]["overrides"].append("policy.levels=50"))
    assert {name.split(", ")[1] for name in rows} == {
        *("DDIM-1", "DDIM-2", "DDIM-4", "DDIM-8", "DDIM-16", "DDPM-100", "warm start 4"),
        *("student of ODE pairs", "consistency student"),
    }
    assert changed(lambda entry: entry["rows"][0][0]["overrides"].append("policy.initial_calls=4")) == {
        cell.name for cell in before.cells if cell.row.label == "SDP k=1"
    }


def test_what_is_said_last_about_a_key_holds():
    entry = data()
    entry["columns"] = [[{**entry["columns"][0][0], "evaluation": ["episodes=7", "action_noise=0.1"]}]]
    cell = parsed_matrix("one", entry).cells[0]
    assert "episodes=7" in cell.evaluation and "episodes=100" not in cell.evaluation
    lerobot = next(cell for cell in parsed_matrix("one", entry).cells if cell.training.name == "lerobot")
    assert "episodes=50" in lerobot.evaluation


def test_conditions_fill_the_places_of_rows_and_choose_them():
    entry = {**data(), "columns": data()["columns"][:1]}
    entry["rows"] = [
        [
            {"label": "prefix", "training": "sdp", "overrides": ["policy.inference_delay={delay}"]},
            {"label": "sync", "training": "sdp", "overrides": []},
        ]
    ]
    entry["conditions"] = [
        {"label": "delay 3", "evaluation": ["delay_steps=3"], "values": {"delay": 3}},
        {"label": "noise", "evaluation": ["action_noise=0.2"], "rows": ["sync"]},
    ]
    cells = [cell for cell in parsed_matrix("delays", entry).cells if cell.column.task == "robosuite/square"]
    assert [(cell.row.label, cell.condition.label) for cell in cells] == [
        ("prefix", "delay 3"), ("sync", "delay 3"), ("sync", "noise"),
    ]  # fmt: skip
    assert {"policy.inference_delay=3", "delay_steps=3"} <= set(cells[0].evaluation)


def test_only_chooses_columns_and_cells_by_patterns():
    cells = read_policy_matrix("frontier").cells
    assert {cell.column.task for cell in chosen(cells, "robosuite/s*")} == {"robosuite/square", "robosuite/stack"}
    assert {cell.row.label for cell in chosen(cells, ["*, SDP k=?", "*, DDPM-100"])} == {
        *("SDP k=1", "SDP k=2", "SDP k=4", "DDPM-100")
    }
    assert chosen(cells, None) == list(cells)
    with pytest.raises(UserError, match="tasks of the table in only=.*'robosuite/sqare'.*did you mean"):
        chosen(cells, "robosuite/sqare")


def test_an_unknown_matrix_is_named():
    with pytest.raises(UserError, match="a plan of bench policy; found 'frontir'; did you mean 'frontier'"):
        read_policy_matrix("frontir")


def test_a_run_root_may_hold_the_letters_of_the_overrides_grammar(tmp_path):
    root = f"{tmp_path}/a=b, {{c}}"
    words = shared_words(OmegaConf.create({"run_root": root, "workers": None}))
    config = check("eval", words)
    assert (config.run_root, config.workers) == (root, None)


def test_a_task_is_made_elsewhere_as_it_was_trained_on():
    entry = data()
    entry["columns"][0][0]["data"] += ["task.horizon=40"]
    column = parsed_matrix("changed", entry).columns[0]
    assert column.task_words == [f"task={column.task}", "task.horizon=40"]
