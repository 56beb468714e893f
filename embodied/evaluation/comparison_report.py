"""A comparison within one task as people read it: a table, a page of Markdown, figures."""

from __future__ import annotations

from matplotlib.figure import Figure

from embodied.evaluation.compared_pairs import p_in_words
from embodied.evaluation.comparison_plot import success_against_latency
from embodied.evaluation.forest_plot import Estimate, Panel, differences_panel, forest_figure, rates_panel
from embodied.evaluation.report_table import ReportTable, section
from embodied.types import Json

INTERVAL_NAMES = {"wilson": "Wilson", "clopper_pearson": "Clopper-Pearson"}


def comparison_table(result: Json) -> ReportTable:
    """The comparison for a terminal, at most 100 columns wide if no label has more than 20 letters."""
    columns = ("policy", f"success\n[{result['confidence']:.0%}]", "last", "calls", "p50\nms", "p95\nms")
    columns += ("ms per\naction", "x\nfaster", "p", *(("letters",) if result["all_pairs"] else ()))
    return ReportTable(_title(result), columns, _cells(result), _caption(result))


def comparison_markdown(result: Json) -> str:
    """The comparison as a page of Markdown: table, what it shows, and what to beware of."""
    lines = comparison_table(result).markdown()
    lines += section("What it shows", [pair["sentence"] for pair in result["pairs"]])
    lines += section("Could it have ended sooner", watched(result))
    lines += section("Beware", result["warnings"])
    return "\n".join(lines)


def comparison_figures(result: Json) -> dict[str, Figure]:
    """Success over the latency of an observation, and success and differences with their intervals."""
    points = [(row["label"], row["timings"]["observation_ms"]["p50"], row["success"]["ever"]) for row in result["rows"]]
    return {
        "figure": success_against_latency(_title(result), result["confidence"], points),
        "differences": forest_figure(_title(result), [_success(result), _differences(result)]),
    }


def watched(result: Json) -> list[str]:
    """What the sequential test would have said of each pair."""
    return [pair["sequential"]["sentence"] for pair in result["pairs"] if pair["sequential"] is not None]


def _cells(result: Json) -> list[list[str]]:
    p_values = {pair["label"]: p_in_words(pair["p"]) for pair in result["pairs"]}
    return [
        [
            row["label"],
            "{k}/{n} [{low:.2f}, {high:.2f}]".format(**row["success"]["ever"]),
            "{k}/{n}".format(**row["success"]["last"]),
            f"{row['network_calls_per_observation']:.4g}",
            _three_digits(row["timings"]["observation_ms"]["p50"]),
            _three_digits(row["timings"]["observation_ms"]["p95"]),
            _three_digits(row["timings"]["action_ms_p50"]),
            _three_digits(row["timings"]["speed_ratio"]["per_action"]),
            p_values.get(row["label"], "-"),
            *([row["letters"]] if result["all_pairs"] else []),
        ]
        for row in result["rows"]
    ]


def _title(result: Json) -> str:
    shared = len(result["shared_starts"])
    starts = f"{shared} shared starts" if shared else "no shared starts"
    variants = f", {len(result['variants'])} variants" if len(result["variants"]) > 1 else ""
    return f"{result['task']}: success within {result['horizon']} steps, {starts}{variants}"


def _caption(result: Json) -> str:
    tests = {pair["test"] for pair in result["pairs"]}
    caption = (
        f"Success has {INTERVAL_NAMES[result['interval']]}'s interval. Calls, p50 and p95 are per observation at batch "
        f"1; ms per action is the p50 per executed action; x faster (per action) and p, of the exact test "
        f"({_tests_in_words(tests)}), are against '{result['reference']}'."
    )
    if result["all_pairs"]:
        caption += (
            f" Policies that share a letter are not told apart, after Holm's correction for all "
            f"{len(result['all_pairs'])} pairs."
        )
    pooled = [row for row in result["rows"] if len(row["seeds"]) > 1]
    if pooled:
        by_seed = "; ".join(
            f"{row['label']}: "
            + ", ".join(f"{k} (seed {seed})" for seed, k in zip(row["seeds"], row["successes_by_seed"], strict=True))
            for row in pooled
        )
        caption += (
            " Where seeds of the training are pooled, success counts the episodes of all, its interval is over starts, "
            "for these seeds and not for further ones, and latency is the mean over them. "
            f"Successes of each: {by_seed}."
        )
    return caption


def _tests_in_words(tests: set[str]) -> str:
    names = {
        "McNemar": "McNemar's, paired by start",
        "sign flips": "sign flips, paired by start",
        "Barnard": "Barnard's, of separate samples",
    }
    return "; ".join(name for test, name in names.items() if test in tests)


def _success(result: Json) -> Panel:
    estimates = []
    for color, row in enumerate(result["rows"]):
        ever = row["success"]["ever"]
        note = "{k}/{n}".format(**ever) + (f"  {row['letters']}" if row["letters"] else "")
        estimates.append(Estimate(row["label"], ever["rate"], ever["low"], ever["high"], note, color))
    name, confidence = INTERVAL_NAMES[result["interval"]], result["confidence"]
    return rates_panel("success", f"success rate ({name}'s {confidence:.0%} interval)", estimates)


def _differences(result: Json) -> Panel:
    estimates = []
    for color, pair in enumerate(result["pairs"], 1):
        difference = pair["difference"]
        note = f"p {p_in_words(pair['p_holm'])}" + (" (Holm)" if len(result["pairs"]) > 1 else "")
        estimates.append(
            Estimate(pair["label"], difference["estimate"], difference["low"], difference["high"], note, color)
        )
    return differences_panel(
        f"difference to '{result['reference']}'",
        f"success rate minus that of '{result['reference']}' ({result['confidence']:.0%} interval)",
        estimates,
    )


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
