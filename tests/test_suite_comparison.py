"""Methods over several tasks: matching, scores, differences, table, page and schema."""

from __future__ import annotations

import pytest
from evaluation_summaries import START, as_summary, evaluation, moved

from embodied.console import table
from embodied.errors import UserError
from embodied.evaluation.suite_comparison import compare_suite
from embodied.evaluation.suite_report import suite_figures, suite_markdown, suite_table
from embodied.summaries import validate_summary

LIFT, CAN = "robosuite/lift", "robosuite/can"


def of(task: str, outcomes: str, setting: str = "sdp k=2", seed: int = 0, **changes) -> dict:
    checkpoint = {"run": f"outputs/train/{setting}-{seed}", "step": 1500, "config_hash": "x", "method_hash": task}
    return evaluation(outcomes, setting=setting, task=task, checkpoint={**checkpoint, "seed": seed}, **changes)


def two_by_two() -> list[dict]:
    return [
        of(LIFT, "1" * 30 + "0" * 10, "ddim-16"),
        of(CAN, "1" * 10 + "0" * 10, "ddim-16"),
        of(LIFT, "1" * 40),
        of(CAN, "1" * 16 + "0" * 4),
    ]


def test_the_score_is_the_mean_over_tasks():
    result = compare_suite(two_by_two())
    assert result["tasks"] == [LIFT, CAN] and result["reference"] == "ddim-16"
    assert [row["score"]["rate"] for row in result["rows"]] == pytest.approx([(0.75 + 0.5) / 2, (1.0 + 0.8) / 2])
    by_task = [(of_task["task"], of_task["success"]["k"]) for of_task in result["rows"][1]["by_task"]]
    assert by_task == [(LIFT, 40), (CAN, 16)]
    (pair,) = result["pairs"]
    difference = pair["difference"]
    assert pair["paired"] and difference["estimate"] == pytest.approx(0.275)
    assert 0 < difference["low"] < 0.275 < difference["high"]
    assert "Over 2 tasks 'sdp k=2' succeeds more often than 'ddim-16': difference +0.275" in pair["sentence"]
    assert [comparison["task"] for comparison in result["comparisons"]] == [LIFT, CAN]
    assert result["comparisons"][1]["pairs"][0]["discordant"] == {"only_this": 6, "only_reference": 0}
    validate_summary("compare", as_summary(result))


def test_the_order_within_a_task_does_not_matter():
    in_order = compare_suite(two_by_two())
    mixed = two_by_two()
    assert compare_suite([mixed[0], mixed[2], mixed[3], mixed[1]]) == in_order


def test_no_difference_is_said():
    same = [of(LIFT, "10" * 10, "a"), of(CAN, "10" * 10, "a"), of(LIFT, "01" * 10, "b"), of(CAN, "01" * 10, "b")]
    (pair,) = compare_suite(same)["pairs"]
    assert pair["sentence"].startswith("2 tasks do not tell 'b' and 'a' apart, nor show that they are equal")


def test_one_method_has_a_score_and_no_pairs():
    result = compare_suite([of(LIFT, "1" * 10), of(CAN, "10" * 4 + "ee")])
    assert (len(result["rows"]), result["pairs"], result["comparisons"]) == (1, [], [])
    assert result["rows"][0]["score"]["rate"] == pytest.approx(0.75)
    assert result["rows"][0]["by_task"][1]["error_bounds"] == {"if_failed": 0.4, "if_succeeded": 0.6}
    assert result["warnings"] == [
        f"{CAN}: 'sdp k=2': 2 of its episodes could not be run; their starts are left out. Its success would be 0.400 "
        "had all of them failed, and 0.600 had all succeeded"
    ]
    validate_summary("compare", as_summary(result))


def test_seeds_are_pooled_within_their_starts():
    seeds = [of(task, "1" * 10 + "0" * 10, seed=seed) for task in (LIFT, CAN) for seed in (0, 1, 2)]
    pooled = compare_suite(seeds)["rows"][0]
    alone = compare_suite([seeds[0], seeds[3]])["rows"][0]
    assert pooled["by_task"][0]["seeds"] == [0, 1, 2] and pooled["by_task"][0]["success"]["n"] == 60
    assert pooled["score"] == pytest.approx(alone["score"]), "equal seeds know no more than one"


def test_tasks_without_shared_starts_are_not_paired():
    evaluations = two_by_two()
    evaluations[3] = moved("1" * 16 + "0" * 4, 1000, task=CAN, checkpoint=evaluations[3]["checkpoint"])
    result = compare_suite(evaluations)
    assert not result["pairs"][0]["paired"] and result["pairs"][0]["difference"]["estimate"] == pytest.approx(0.275)
    assert result["comparisons"][1]["pairs"][0]["test"] == "Barnard"
    assert result["comparisons"][0]["shared_starts"][0] == START
    assert any(warning.startswith(f"{CAN}: no start is shared") for warning in result["warnings"])


def test_every_method_needs_every_task():
    with pytest.raises(UserError, match=f"each method on every task, once; found 'sdp k=2' without {CAN}"):
        compare_suite(two_by_two()[:3])
    again = two_by_two()
    again[3]["checkpoint"]["method_hash"] = "trained longer"
    with pytest.raises(UserError, match=f"found one method twice on {CAN}"):
        compare_suite([*again, two_by_two()[3]])


def test_executors_tell_labels_apart():
    ensemble = {"name": "temporal_ensembling", "m": 0.01}
    evaluations = [of(task, "10" * 10, executor=one) for one in ({"name": "chunk"}, ensemble) for task in (LIFT, CAN)]
    labels = [row["label"] for row in compare_suite(evaluations)["rows"]]
    assert labels == ["sdp k=2", "sdp k=2 temporal_ensembling m=0.01"]


def test_networks_tell_labels_apart():
    evaluations = [of(task, "10", network=network) for network in ("unet", "transformer") for task in (LIFT, CAN)]
    assert [row["label"] for row in compare_suite(evaluations)["rows"]] == ["sdp k=2 unet", "sdp k=2 transformer"]


def test_table_and_page_say_it_all(capsys):
    result = compare_suite(two_by_two())
    drawn = suite_table(result)
    table(drawn.columns, drawn.rows, title=drawn.title)
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= 100
    row = next(line for line in lines if line.startswith("sdp k=2")).split()
    assert row[:3] == ["sdp", "k=2", "0.900"] and "40/40" in row and "16/20" in row and "+0.275" in row
    page = suite_markdown(result)
    assert "## robosuite/lift: success within 100 steps, 40 shared starts" in page
    assert result["pairs"][0]["sentence"] in page and result["comparisons"][1]["pairs"][0]["sentence"] in page


def test_the_figure_has_a_panel_for_scores_tasks_and_differences():
    figure = suite_figures(compare_suite(two_by_two()))["figure"]
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["suite score", LIFT, CAN, "difference of the scores to 'ddim-16'"]
    assert len(suite_figures(compare_suite([of(LIFT, "10"), of(CAN, "10")]))["figure"].axes) == 3


def test_the_schema_refuses_what_is_wrong():
    for path, value in (
        (("rows",), []),
        (("rows", 0, "score", "rate"), 1.2),
        (("comparisons", 0, "surprise"), 1),
        (("comparisons", 0, "rows", 0, "surprise"), 1),
        (("horizon",), 100),
        (("what",), "task"),
    ):
        summary = as_summary(compare_suite(two_by_two()))
        holder = summary
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = value
        with pytest.raises(UserError):
            validate_summary("compare", summary)
