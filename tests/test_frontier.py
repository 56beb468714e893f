"""What small files of outcomes say of methods: pairs, saturated columns, the sampler to beat, means."""

from __future__ import annotations

import numpy as np
import pytest

from embodied.evaluation.frontier import (
    cheapest_keeping,
    is_saturated,
    mean_comparison,
    outcomes,
    paired,
    reward_difference,
)
from embodied.evaluation.frontier_plot import FrontierPanel, FrontierPoint, frontier_figure
from embodied.evaluation.statistics import bootstrap_mean_interval, wilson_interval


def cell(ever, first_start=100000, calls=1.0, label="method", rewards=None):
    k, n = ever.count("1"), len(ever) - ever.count("e")
    low, high = wilson_interval(k, n)
    rate = {"k": k, "n": n, "rate": k / n, "low": low, "high": high}
    return {
        "label": label,
        "first_start": first_start,
        "ever": ever,
        "success": {"ever": rate},
        "max_reward": rewards,
        "mean_max_reward": None if rewards is None else graded_mean(rewards),
        "calls_per_observation": calls,
    }


def graded_mean(rewards):
    ran = [reward for reward in rewards if reward is not None]
    low, high = bootstrap_mean_interval(ran)
    return {"mean": np.mean(ran), "n": len(ran), "low": low, "high": high}


def test_pairs_are_counted_on_shared_starts_without_errors():
    mine = cell("1" * 9 + "0" * 2 + "1" * 6 + "0" * 3 + "e")
    theirs = cell("0" * 9 + "1" * 2 + "1" * 6 + "0" * 3 + "1")
    pair = paired(mine, theirs)
    assert (pair.n, pair.only_mine, pair.only_theirs) == (20, 9, 2)
    assert pair.p == pytest.approx(0.0654, abs=5e-5)  # of McNemar's exact test, 9 against 2
    assert pair.difference == pytest.approx(0.35) and pair.low < 0.35 < pair.high
    assert not pair.is_below and not paired(theirs, mine).is_below
    late = paired(mine, cell("11111", first_start=100010))
    assert (late.n, late.only_theirs) == (5, 1)  # starts 10 .. 14, of which mine failed at the first
    assert paired(mine, cell("111", first_start=5)) is None


def test_outcomes_know_their_starts():
    assert outcomes(cell("10e1", first_start=7)) == {7: True, 8: False, 10: True}


def test_a_column_is_saturated_if_all_lie_within_the_interval_of_the_reference():
    reference = cell("1" * 95 + "0" * 5)
    near, far = cell("1" * 92 + "0" * 8), cell("1" * 60 + "0" * 40)
    assert is_saturated([reference, near], reference)
    assert not is_saturated([reference, near, far], reference)
    # Six fewer and none more: within the interval, and significantly below.
    below = cell("0" * 6 + "1" * 74 + "0" * 20)
    reference = cell("1" * 80 + "0" * 20)
    assert below["success"]["ever"]["rate"] > reference["success"]["ever"]["low"]
    assert not is_saturated([reference, below], reference)


def test_the_sampler_to_beat_is_the_cheapest_that_keeps_the_success():
    reference = cell("1" * 80 + "0" * 20, calls=100)
    bad = cell("0" * 40 + "1" * 40 + "0" * 20, calls=1)
    # Nine fewer and none more: significantly below, though within the interval of the reference.
    below = cell("0" * 7 + "1" * 73 + "0" * 20, calls=2)
    good = cell("0" * 4 + "1" * 76 + "0" * 20, calls=4)
    assert below["success"]["ever"]["rate"] > reference["success"]["ever"]["low"]
    assert cheapest_keeping([reference, bad, below, good], reference) is good
    assert cheapest_keeping([reference, bad], reference) is reference
    assert cheapest_keeping([bad], reference) is None


def test_rewards_are_compared_on_shared_starts_without_errors():
    mine = cell("1e01", rewards=[1.0, None, 0.25, 1.0])
    theirs = cell("101", rewards=[1.0, 0.5, 0.75])
    found = reward_difference(mine, theirs)
    assert (found.n, found.difference) == (2, pytest.approx(-0.25))
    assert (found.low, found.high) == (-0.5, 0.0)  # of two starts a resample holds one, the other, or both
    assert reward_difference(mine, cell("101")) is None
    assert reward_difference(mine, cell("1", first_start=5, rewards=[1.0])) is None


def test_where_few_succeed_the_reward_says_what_keeps_the_success():
    reference = cell("1" * 3 + "0" * 57, calls=100, rewards=[1.0] * 3 + [0.8] * 57)
    poor = cell("1" * 3 + "0" * 57, calls=2, rewards=[1.0] * 3 + [0.5] * 57)
    near = cell("1" * 3 + "0" * 57, calls=4, rewards=[1.0] * 3 + [0.8, 0.82, 0.78] * 19)
    assert cheapest_keeping([reference, poor, near], reference) is near
    assert is_saturated([reference, near], reference) and not is_saturated([reference, near, poor], reference)


def test_means_weigh_columns_alike_and_pair_their_starts():
    mine = {"a": cell("1" * 90 + "0" * 10), "b": cell("1" * 20 + "0" * 20), "c": cell("1")}
    theirs = {"a": cell("1" * 100), "b": cell("1" * 20 + "0" * 20), "d": cell("1")}
    found = mean_comparison(mine, theirs)
    assert found.columns == ("a", "b")
    assert (found.mine, found.theirs) == pytest.approx((0.7, 0.75))
    assert found.difference == pytest.approx(-0.05) and found.ratio == pytest.approx(0.7 / 0.75)
    # Only column a differs, by 10 of 100 starts: its difference spreads by sqrt(0.1 * 0.9 / 100), halved in the mean;
    # means step by 0.005.
    spread = 1.96 * np.sqrt(0.09 / 100) / 2
    assert found.difference_interval == pytest.approx((-0.05 - spread, -0.05 + spread), abs=0.0051)
    assert found.ratio_interval[0] < found.ratio < found.ratio_interval[1] <= 1
    same = mean_comparison(theirs, theirs)
    assert same.difference_interval == (0, 0) and same.ratio_interval == (1, 1)
    assert mean_comparison(mine, {}) is None
    assert mean_comparison({"a": cell("1")}, {"a": cell("0")}).ratio is None


def test_the_figure_has_a_panel_a_task_a_line_of_the_baseline_and_stays_small(tmp_path):
    labels = [f"DDIM-{calls}" for calls in (1, 4, 16)] + [f"method {i}" for i in range(13)]
    rates = [cell("1" * (60 + i) + "0" * (40 - i))["success"]["ever"] for i in range(len(labels))]
    points = tuple(FrontierPoint(label, 0.9 * 1.4**i, rates[i]) for i, label in enumerate(labels))
    panels = [FrontierPanel(f"task {i}", points) for i in range(13)]
    figure = frontier_figure(panels, labels[:3])
    assert [axes.get_title() for axes in figure.axes if axes.axison] == [panel.title for panel in panels]
    line = figure.axes[0].lines[0]
    assert line.get_xdata().tolist() == [p.latency_ms for p in points[:3]]
    assert line.get_ydata().tolist() == [0.60, 0.61, 0.62]
    assert figure.axes[0].get_xscale() == "log"
    figure.savefig(tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size < 300_000
