"""From rows of episodes to figures by variant, axis and sub-stage, against counts made by hand."""

import pytest

from embodied import catalog
from embodied.catalog import TaskAsItIs
from embodied.errors import UserError
from embodied.evaluation.breakdown import by_axis, by_protocol, by_variant, funnel, overall
from embodied.evaluation.statistics import bootstrap_mean_interval, described_rate, wilson_interval

BASE = TaskAsItIs(protocol="variant_aggregation")
DIM = TaskAsItIs("light_dim", "light", "variant_aggregation")
BRIGHT = TaskAsItIs("light_bright", "light", "variant_aggregation")
TILTED = TaskAsItIs("camera_tilted", "camera", "camera_poses", counted=False)
VARIANTS = (BASE, DIM, BRIGHT, TILTED)
# A letter a start: 1 success, l only before the last step, 0 failure, e error.
OUTCOMES = {"base": "111l", "light_dim": "1100", "light_bright": "10e1", "camera_tilted": "0000"}


def row(variant, start, outcome, stages=None):
    return {
        "variant": variant.id,
        "axis": variant.axis,
        "start": start,
        "success_ever": outcome in "1l",
        "success_last": outcome == "1",
        "first_success": 10 * (start + 1) if outcome in "1l" else None,
        "stages": stages or {},
        "return": 1.0,
        "max_reward": None if outcome == "e" else float(outcome in "1l"),
        "error": "the simulator broke" if outcome == "e" else None,
    }


ROWS = [row(variant, start, letter) for variant in VARIANTS for start, letter in enumerate(OUTCOMES[variant.id])]


def test_each_variant_has_its_own_rate():
    figures = by_variant(ROWS, VARIANTS)
    assert [(f["variant"], f["axis"], f["counted"]) for f in figures] == [(v.id, v.axis, v.counted) for v in VARIANTS]
    assert [(f["success"]["ever"]["k"], f["success"]["ever"]["n"], f["errors"]) for f in figures] == [
        (4, 4, 0),
        (2, 4, 0),
        (2, 3, 1),
        (0, 4, 0),
    ]
    assert [f["success"]["last"]["k"] for f in figures] == [3, 2, 2, 0]
    low, high = wilson_interval(2, 3)
    assert (figures[2]["success"]["ever"]["low"], figures[2]["success"]["ever"]["high"]) == (low, high)


def test_an_axis_is_compared_with_the_task_as_it_is_start_by_start():
    axes = {figure["axis"]: figure for figure in by_axis(ROWS, VARIANTS)}
    assert list(axes) == ["base", "light", "camera"]
    assert axes["light"]["variants"] == 2 and axes["light"]["success"]["ever"]["k"] == 4
    light = axes["light"]["success"]["ever"]
    # Episodes from one of the four starts are alike, however the scene is lit.
    assert light["n"] == 7 and (light["low"], light["high"]) == wilson_interval(4 / 7 * 4, 4)
    # Means over the axis's variants at starts 0..3: 1, 1/2, 0 (the other had an error), 1/2; the base's: all 1.
    differences = [0.0, -0.5, -1.0, -0.5]
    low, high = bootstrap_mean_interval(differences)
    assert axes["light"]["difference"] == {"estimate": -0.5, "n": 4, "low": low, "high": high}
    assert axes["camera"]["difference"] == {"estimate": -1.0, "n": 4, "low": -1.0, "high": -1.0}
    assert axes["base"]["difference"] is None


def test_without_the_task_as_it_is_there_is_nothing_to_compare_with():
    rows = [one for one in ROWS if one["variant"] != "base"]
    assert all(figure["difference"] is None for figure in by_axis(rows, VARIANTS[1:]))


def test_the_mean_over_variants_is_plain_and_leaves_out_what_is_reported_apart():
    (mean,) = by_protocol(ROWS, VARIANTS)
    assert mean["protocol"] == "variant_aggregation" and mean["variants"] == 3
    assert mean["ever"]["mean"] == pytest.approx((1 + 1 / 2 + 2 / 3) / 3)
    assert mean["last"]["mean"] == pytest.approx((3 / 4 + 1 / 2 + 2 / 3) / 3)
    by_start = [1.0, 2 / 3, 1 / 2, 2 / 3]
    assert (mean["ever"]["low"], mean["ever"]["high"]) == bootstrap_mean_interval(by_start)
    assert mean["ever"]["starts"] == 4
    assert by_protocol(ROWS, (TILTED,)) == [] and by_protocol(ROWS, (TaskAsItIs(),)) == []


def test_each_protocol_has_a_mean_of_its_own():
    matched = TaskAsItIs("robot_white", "robot", "visual_matching")
    rows = [*ROWS, row(matched, 0, "0"), row(matched, 1, "1")]
    aggregation, matching = by_protocol(rows, (*VARIANTS, matched))
    assert [aggregation] == by_protocol(ROWS, VARIANTS)
    assert matching["protocol"] == "visual_matching" and matching["ever"]["mean"] == 0.5


def test_a_variant_of_errors_alone_has_no_rate():
    rows = [row(BASE, 0, "1"), row(DIM, 0, "e")]
    figures = by_variant(rows, (BASE, DIM))
    assert figures[1]["success"] == {"ever": None, "last": None} and figures[1]["errors"] == 1
    assert by_axis(rows, (BASE, DIM))[1]["difference"] is None
    assert overall(rows)["errors"] == 1 and overall(rows)["success"]["ever"]["n"] == 1


def test_the_funnel_counts_who_came_how_far():
    stages = ("reached", "grasped", "lifted")
    rows = [row(BASE, n, "1", {name: place < n for place, name in enumerate(stages)}) for n in range(4)]
    rows.append(row(BASE, 4, "e"))
    expected = [("reached", 3), ("grasped", 2), ("lifted", 1)]
    assert funnel(rows) == [{"stage": name, "reached": described_rate(k, 4)} for name, k in expected]
    assert funnel(ROWS) == []


@pytest.fixture
def light_world(monkeypatch):
    monkeypatch.setitem(catalog.VARIANTS, "toy", "test_breakdown:variants_of")


def variants_of(task):
    return VARIANTS


@pytest.mark.parametrize(
    ("words", "ids"),
    [
        (["base"], ["base"]),
        (["light"], ["light_dim", "light_bright"]),
        (["light_bright", "light", "base"], ["light_bright", "light_dim", "base"]),
        (["camera", "variant_aggregation"], ["camera_tilted", "base", "light_dim", "light_bright"]),
        (["camera_tilted"], ["camera_tilted"]),
    ],
    ids=str,
)
def test_variants_are_named_by_id_axis_or_protocol(light_world, words, ids):
    assert [variant.id for variant in catalog.chosen_variants("toy/reach", words)] == ids


def test_a_variant_that_does_not_exist_is_named(light_world):
    with pytest.raises(UserError, match="variants of toy/reach, .*; found 'light_dm'; did you mean 'light_dim'"):
        catalog.chosen_variants("toy/reach", ["light_dm"])
    with pytest.raises(UserError, match="variants of robosuite/lift, .*; found 'light'; known: base"):
        catalog.chosen_variants("robosuite/lift", ["light"])
    with pytest.raises(UserError, match="at least one variant of toy/reach; found none"):
        catalog.chosen_variants("toy/reach", [])
