"""Two or more evaluations side by side, paired on the starts that they share. The first is the reference.

An evaluation is the content of its `summary.json` (schemas/eval.schema.json).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from embodied.errors import UserError
from embodied.evaluation.comparison_plot import success_against_latency
from embodied.evaluation.statistics import (
    exact_mcnemar,
    holm_adjusted,
    paired_difference_interval,
    smallest_detectable_difference,
    wilson_interval,
)
from embodied.types import Json

POWER = 0.8  # of the smallest detectable difference
NO_SPEED = ("memory_bytes",)  # of a machine's description: says nothing about latency


@dataclass(frozen=True)
class ComparisonTable:
    """The comparison as text, for any medium."""

    title: str
    columns: tuple[str, ...]  # headings, some of two lines
    rows: list[list[str]]
    caption: str  # what the columns mean


def compare(evaluations: Sequence[Json], confidence: float = 0.95) -> Json:
    """Success of each evaluation on the shared starts, speed, and each pair against the reference.

    Episodes that could not be run (`error`) are left out and counted; a start is shared if every evaluation ran
    it without an error. Returns what schemas/compare.schema.json describes, without the keys that the command
    and its run directory add.

    Raises:
        UserError: fewer than two evaluations, different tasks or horizons, a start twice in one evaluation, no
            shared start, or a confidence outside (0, 1).
    """
    _check_comparable(evaluations)
    labels = _labels(evaluations)
    episodes = [_by_start(evaluation, label) for evaluation, label in zip(evaluations, labels, strict=True)]
    shared = sorted(set.intersection(*(set(of_one) for of_one in episodes)))
    if not shared:
        ran = "; ".join(
            f"'{label}': {_starts_in_words(of_one)}" for label, of_one in zip(labels, episodes, strict=True)
        )
        raise UserError(
            expected="evaluations that share starts",
            found=f"none in common ({ran})",
            remedy="evaluate them with the same first_start and overlapping episodes",
        )
    rows = [
        _row(evaluation, label, of_one, shared, evaluations[0], confidence)
        for evaluation, label, of_one in zip(evaluations, labels, episodes, strict=True)
    ]
    return {
        "task": evaluations[0]["task"],
        "horizon": evaluations[0]["horizon"],
        "confidence": confidence,
        "reference": labels[0],
        "shared_starts": shared,
        "rows": rows,
        "pairs": _pairs(labels, episodes, shared, confidence),
        "warnings": _warnings(evaluations, rows),
    }


def comparison_table(result: Json) -> ComparisonTable:
    """The comparison for a terminal, at most 100 columns wide if no label has more than 20 letters."""
    columns = ("policy", f"success\n[{result['confidence']:.0%}]", "last", "calls", "p50\nms", "p95\nms")
    columns += ("ms per\naction", "x\nfaster", "McNemar\np")
    return ComparisonTable(_title(result), columns, _cells(result), _caption(result))


def comparison_markdown(result: Json) -> str:
    """The comparison as a page of Markdown: table, what it shows, and what to beware of."""
    table = comparison_table(result)
    lines = [f"# {table.title}", ""]
    lines += [_markdown_row([column.replace("\n", " ") for column in table.columns])]
    lines += [_markdown_row(["---"] * len(table.columns)), *map(_markdown_row, table.rows)]
    lines += ["", table.caption, "", "## What it shows", ""]
    lines += [f"- {pair['sentence']}" for pair in result["pairs"]]
    if result["warnings"]:
        lines += ["", "## Beware", ""] + [f"- {warning}" for warning in result["warnings"]]
    return "\n".join(lines) + "\n"


def comparison_figure(result: Json, path: Path) -> None:
    """Draw success, with its interval, against the latency of an observation into `path` (PNG)."""
    points = [(row["label"], row["timings"]["observation_ms"]["p50"], row["success"]["ever"]) for row in result["rows"]]
    success_against_latency(_title(result), result["confidence"], points).savefig(path, format="png")


def _check_comparable(evaluations: Sequence[Json]) -> None:
    if len(evaluations) < 2:
        raise UserError(
            expected="at least two evaluations",
            found=f"{len(evaluations)}",
            remedy="name two or more: embodied compare RUN RUN",
        )
    for key, name in (("task", "task"), ("horizon", "horizon")):
        found = sorted({evaluation[key] for evaluation in evaluations})
        if len(found) > 1:
            raise UserError(
                expected=f"evaluations with one {name}",
                found=", ".join(str(value) for value in found),
                remedy=f"compare only evaluations whose {name} is the same, or evaluate again",
            )


def _labels(evaluations: Sequence[Json]) -> list[str]:
    """One label each: the setting, with network, run and a number added where that alone is not unique."""
    labels = [evaluation["setting"] for evaluation in evaluations]
    additions: tuple[Callable[[Sequence[Json]], list[str]], ...] = (
        lambda group: [evaluation["network"] for evaluation in group],
        lambda group: _telling_part([evaluation["checkpoint"]["run"] for evaluation in group]),
        lambda group: [f"step {evaluation['checkpoint']['step']}" for evaluation in group],
    )
    for addition in additions:
        for label in set(labels):
            group = [index for index, other in enumerate(labels) if other == label]
            added = addition([evaluations[index] for index in group])
            if len(set(added)) > 1:
                for index, text in zip(group, added, strict=True):
                    labels[index] = f"{label} {text}"
    seen: Counter[str] = Counter()
    for index, label in enumerate(labels):
        seen[label] += 1
        if seen[label] > 1:
            labels[index] = f"{label} #{seen[label]}"
    return labels


def _telling_part(paths: Sequence[str]) -> list[str]:
    """Of each path the last folder by which they differ, such as the run's name before `checkpoints/step-1500`."""
    for parts in zip(*(reversed(Path(path).parts) for path in paths), strict=False):
        if len(set(parts)) > 1:
            return list(parts)
    return [Path(path).name for path in paths]


def _by_start(evaluation: Json, label: str) -> dict[int, Json]:
    """The episodes without an error, by their start."""
    repeated = [start for start, n in Counter(e["start"] for e in evaluation["episodes"]).items() if n > 1]
    if repeated:
        raise UserError(
            expected="each start once in an evaluation",
            found=f"start {repeated[0]} more than once in '{label}'",
            remedy="evaluate again with one episode a start",
        )
    return {episode["start"]: episode for episode in evaluation["episodes"] if episode["error"] is None}


def _starts_in_words(episodes: dict[int, Json]) -> str:
    return f"{min(episodes)} to {max(episodes)}" if episodes else "no episode without an error"


def _row(
    evaluation: Json, label: str, episodes: dict[int, Json], shared: Sequence[int], reference: Json, confidence: float
) -> Json:
    latency, reference_latency = evaluation["timings"]["latency"], reference["timings"]["latency"]
    return {
        "label": label,
        "run": evaluation["checkpoint"]["run"],
        "step": evaluation["checkpoint"]["step"],
        "policy": evaluation["policy"],
        "network": evaluation["network"],
        "setting": evaluation["setting"],
        "parameters": evaluation["parameters"],
        "action_steps": evaluation["action_steps"],
        "success": {
            mode: _rate([episodes[start][f"success_{mode}"] for start in shared], confidence)
            for mode in ("ever", "last")
        },
        "errors": len(evaluation["episodes"]) - len(episodes),
        "starts_left_out": len(episodes) - len(shared),
        "network_calls_per_observation": evaluation["network_calls_per_observation"],
        "network_calls_per_action": evaluation["network_calls_per_action"],
        "timings": {
            "observation_ms": {key: latency["observation_ms"][key] for key in ("p50", "p95")},
            "action_ms_p50": latency["action_ms"]["p50"],
            "first_observation_ms": latency["first_observation_ms"],
            "speed_ratio": {
                "per_observation": reference_latency["observation_ms"]["p50"] / latency["observation_ms"]["p50"],
                "per_action": reference_latency["action_ms"]["p50"] / latency["action_ms"]["p50"],
            },
        },
    }


def _rate(successes: Sequence[bool], confidence: float) -> Json:
    k, n = sum(successes), len(successes)
    low, high = wilson_interval(k, n, confidence)
    return {"k": k, "n": n, "rate": k / n, "low": low, "high": high}


def _pairs(
    labels: Sequence[str], episodes: Sequence[dict[int, Json]], shared: Sequence[int], confidence: float
) -> list[Json]:
    outcomes = [[of_one[start]["success_ever"] for start in shared] for of_one in episodes]
    pairs = []
    for label, outcome in zip(labels[1:], outcomes[1:], strict=True):
        counts = Counter(zip(outcome, outcomes[0], strict=True))
        only_this, only_reference = counts[True, False], counts[False, True]
        low, high = paired_difference_interval(
            counts[True, True], only_this, only_reference, counts[False, False], confidence
        )
        n = len(shared)
        pairs.append(
            {
                "label": label,
                "reference": labels[0],
                "n": n,
                "discordant": {"only_this": only_this, "only_reference": only_reference},
                "mcnemar_p": exact_mcnemar(only_this, only_reference),
                "difference": {"estimate": (only_this - only_reference) / n, "low": low, "high": high},
                "smallest_detectable_difference": smallest_detectable_difference(
                    n, confidence=confidence, power=POWER, counter_rate=min(only_this, only_reference) / n
                ),
            }
        )
    adjusted = holm_adjusted([pair["mcnemar_p"] for pair in pairs])
    for pair, p in zip(pairs, adjusted, strict=True):
        pair["mcnemar_p_holm"] = p
        pair["sentence"] = _verdict(pair, confidence, len(pairs))
    return pairs


def _verdict(pair: Json, confidence: float, tests: int) -> str:
    """What can and what cannot be said of a pair at its n."""
    difference, smallest = pair["difference"], pair["smallest_detectable_difference"]
    p = f"McNemar p {_p_in_words(pair['mcnemar_p'])}"
    if tests > 1:
        p += f" ({_p_in_words(pair['mcnemar_p_holm'])} after Holm's correction for {tests} tests)"
    figures = (
        f"difference {difference['estimate']:+.3f}, {confidence:.0%} interval {difference['low']:+.3f} to "
        f"{difference['high']:+.3f}, {p}"
    )
    if pair["mcnemar_p_holm"] <= 1 - confidence:
        more = "more" if difference["estimate"] > 0 else "less"
        return (
            f"'{pair['label']}' succeeds {more} often than '{pair['reference']}' on {pair['n']} shared starts: "
            f"{figures}."
        )
    if smallest is None:
        limit = "so few starts would not reliably reveal even the largest difference"
    else:
        limit = (
            f"with as much disagreement as seen here, a true difference below {smallest:.2f} would show in less than "
            f"{POWER:.0%} of such comparisons"
        )
    return (
        f"{pair['n']} shared starts do not tell '{pair['label']}' and '{pair['reference']}' apart, nor show that they "
        f"are equal: {figures}; {limit}."
    )


def _warnings(evaluations: Sequence[Json], rows: Sequence[Json]) -> list[str]:
    warnings = []
    for evaluation, row in zip(evaluations[1:], rows[1:], strict=True):
        differing = _machine_differences(evaluation, evaluations[0])
        if differing:
            warnings.append(f"latency not comparable: '{row['label']}' against the reference: {', '.join(differing)}")
    for row in rows:
        if row["errors"]:
            warnings.append(
                f"'{row['label']}': {row['errors']} of its episodes could not be run; their starts are left out"
            )
        if row["starts_left_out"]:
            warnings.append(
                f"'{row['label']}': {row['starts_left_out']} of its starts are left out, since not all evaluations "
                "have them without an error"
            )
    return warnings


def _machine_differences(evaluation: Json, reference: Json) -> list[str]:
    mine = {**evaluation["machine"], "threads": evaluation["timings"]["latency"]["threads"]}
    theirs = {**reference["machine"], "threads": reference["timings"]["latency"]["threads"]}
    return [
        f"{key} {mine.get(key, '(absent)')} instead of {theirs.get(key, '(absent)')}"
        for key in sorted((mine.keys() | theirs.keys()) - set(NO_SPEED))
        if mine.get(key) != theirs.get(key)
    ]


def _cells(result: Json) -> list[list[str]]:
    p_values = {pair["label"]: _p_in_words(pair["mcnemar_p"]) for pair in result["pairs"]}
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
        ]
        for row in result["rows"]
    ]


def _title(result: Json) -> str:
    return f"{result['task']}: success within {result['horizon']} steps, {len(result['shared_starts'])} shared starts"


def _caption(result: Json) -> str:
    return (
        "Calls, p50 and p95 are per observation at batch 1; ms per action is the p50 per executed action; "
        f"x faster (per action) and the exact McNemar p are against '{result['reference']}'."
    )


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _p_in_words(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
