"""Simulation against the real robot: from a file and from evaluations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from evaluation_summaries import as_summary, evaluation
from simplerenv_rates import PUBLISHED

from embodied.console import table
from embodied.errors import UserError
from embodied.evaluation.agreement import agreement_of_evaluations, agreement_of_file
from embodied.evaluation.agreement_report import agreement_figures, agreement_markdown, agreement_table
from embodied.summaries import validate_summary

POLICIES = ["rt-1", "rt-1 15 %", "rt-1-x", "rt-2-x", "octo", "rt-1 begin"]


def write(path: Path, **changes) -> Path:
    tasks = {}
    for task, columns in PUBLISHED.items():
        tasks[task] = {"real": columns["real"]}
        for name in ("vm", "va"):
            sim, mmrv, r = columns[name]
            tasks[task] |= {name: sim, f"paper_{name}": [mmrv, r]}
    path.write_text(json.dumps({"policies": POLICIES, "tasks": tasks, **changes}))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "rates.json")


def test_a_file_gives_a_row_for_each_simulation_of_each_task(file: Path):
    result = agreement_of_file(file)
    assert [(row["task"], row["simulation"]) for row in result["agreements"]] == [
        (task, name) for task in PUBLISHED for name in ("vm", "va")
    ]
    for row in result["agreements"]:
        assert row["mmrv"]["value"] == pytest.approx(row["published"]["mmrv"], abs=0.004)
        assert row["pearson"]["value"] == pytest.approx(row["published"]["pearson"], abs=0.004)
        assert row["episodes_redrawn"] == {"real": False, "sim": False} and row["warnings"] == []
    assert result["agreements"][0]["policies"][0] == {"label": "rt-1", "real": 0.853, "sim": 0.857}
    validate_summary("compare", as_agreement(result))


def as_agreement(result: dict) -> dict:
    summary = as_summary({**result, "rows": []})
    return {**{key: value for key, value in summary.items() if key not in ("rows", "evaluations")}, "source": "f"}


def test_known_numbers_of_episodes_are_drawn_anew(tmp_path: Path):
    rough = agreement_of_file(write(tmp_path / "a.json", episodes={"real": 27, "vm": [100] * 6}))
    redrawn = [row["episodes_redrawn"] for row in rough["agreements"][:2]]
    assert redrawn == [{"real": True, "sim": True}, {"real": True, "sim": False}]
    exact = agreement_of_file(write(tmp_path / "b.json"))
    opened = [result["agreements"][4]["mmrv"] for result in (rough, exact)]
    assert opened[1] == {"value": 0.0, "low": 0.0, "high": 0.0} and opened[0]["high"] > 0.05
    assert "draws the episodes anew" in agreement_table(rough).caption


def test_evaluations_against_real_rates():
    outcomes = {"a": "1" * 18 + "00", "b": "1" * 10 + "0" * 10, "c": "1" * 4 + "0" * 16}
    evaluations = [evaluation(of_one, setting=setting) for setting, of_one in outcomes.items()]
    result = agreement_of_evaluations(evaluations, ["17/20", 0.2, "6/20"])
    (row,) = result["agreements"]
    assert row["policies"] == [
        {"label": "a", "real": 0.85, "sim": 0.9},
        {"label": "b", "real": 0.2, "sim": 0.5},
        {"label": "c", "real": 0.3, "sim": 0.2},
    ]
    assert row["mmrv"]["value"] == pytest.approx((0 + 0.1 + 0.1) / 3)
    assert row["episodes_redrawn"] == {"real": False, "sim": True}, "one real rate has no number of episodes"
    assert result["warnings"] == ["robosuite/lift, evaluations: only 3 policies: below 5 neither MMRV nor r says much"]
    all_counted = agreement_of_evaluations(evaluations, ["17/20", "4/20", "6/20"])
    assert all_counted["agreements"][0]["episodes_redrawn"] == {"real": True, "sim": True}
    validate_summary("compare", {**as_agreement(result), "evaluations": ["a"] * 3})


def test_ties_have_no_r():
    result = agreement_of_evaluations([evaluation("10", setting="a"), evaluation("01", setting="b")], [0.4, 0.5])
    assert result["agreements"][0]["pearson"] is None
    assert any("all simulated rates are equal" in warning for warning in result["warnings"])
    assert agreement_table(result).rows[0][4] == "none"
    validate_summary("compare", as_agreement(result))


def test_table_page_and_figure(file: Path, capsys):
    result = agreement_of_file(file)
    drawn = agreement_table(result)
    table(drawn.columns, drawn.rows, title=drawn.title)
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= 100
    row = next(line for line in lines if " ".join(line.split()).startswith("pick coke can vm")).split()
    assert row[-2:] == ["0.031,", "0.976"] and "0.031" in row and "0.975" in row
    assert "| move near | va | 6 | 0.111" in agreement_markdown(result)
    axes = [axes for axes in agreement_figures(result)["figure"].axes if axes.get_visible()]
    assert len(axes) == 10 and "MMRV 0.031, r 0.98" in axes[0].get_title()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policies": "rt-1"}, "'policies' in .*; found str"),
        ({"policies": [1]}, "'policies' in .*; found list"),
        ({"tasks": []}, "'tasks' in .*; found list"),
        ({"tasks": {}}, "simulated rates in .*; found none"),
        ({"tasks": {"t": {"vm": [0.1]}}}, "6 numbers under 'real' of task 't'.*found None"),
        ({"tasks": {"t": 3}}, "6 numbers under 'real' of task 't'"),
        ({"tasks": {"t": {"real": [0.5] * 6, "vm": ["a"] * 6}}}, "6 numbers under 'vm' of task 't'"),
        ({"tasks": {"t": {"real": [0.5] * 6, "vm": [50.0] * 6}}}, r"rates from 0 to 1; found 50\.0"),
        ({"tasks": {"t": {"real": [0.5] * 6, "vm": [0.5] * 6, "paper_vm": 1}}}, r"a published \[MMRV, r\].*found 1"),
        ({"tasks": {"t": {"real": [0.5] * 6, "vm": [0.5] * 6, "paper_vm": [0.1, float("nan")]}}}, "a published"),
        ({"episodes": {"real": 0}}, "a number of episodes, or one for each of 6 policies.*found 0"),
        ({"episodes": {"real": [5]}}, r"a number of episodes, or one for each of 6 policies.*found \[5\]"),
        ({"episodes": 5}, "'episodes' by name in .*; found 5"),
    ],
)
def test_a_file_of_another_form_is_named(tmp_path: Path, changes, message):
    with pytest.raises(UserError, match=message):
        agreement_of_file(write(tmp_path / "rates.json", **changes))


def test_a_file_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(UserError, match="a readable .*rates.json; found No such file"):
        agreement_of_file(tmp_path / "rates.json")
    (tmp_path / "rates.json").write_text("{")
    with pytest.raises(UserError, match="found damaged JSON"):
        agreement_of_file(tmp_path / "rates.json")
    (tmp_path / "rates.json").write_text("[1]")
    with pytest.raises(UserError, match="a JSON object in .*; found list"):
        agreement_of_file(tmp_path / "rates.json")


@pytest.mark.parametrize(
    ("real", "message"),
    [
        ([0.5], "a real success rate for each of a, b; found 1; give one each"),
        (["half", 0.5], "real success rates as 0.85 or 17/20; found 'half'"),
        (["1/0", 0.5], "real success rates as 0.85 or 17/20; found '1/0'"),
        (["30/20", 0.5], r"success rates from 0 to 1; found 1\.5"),
    ],
)
def test_real_rates_that_cannot_be_read(real, message):
    with pytest.raises(UserError, match=message):
        agreement_of_evaluations([evaluation("10", setting="a"), evaluation("11", setting="b")], real)
