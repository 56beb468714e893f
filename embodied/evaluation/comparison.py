"""Two or more evaluations side by side, paired on the starts that they share. The first is the reference.

An evaluation is the content of its `summary.json` (schemas/eval.schema.json).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from embodied.errors import UserError
from embodied.evaluation.statistics import (
    exact_sign_flip,
    holm_adjusted,
    paired_difference_interval,
    smallest_detectable_difference,
    wilson_interval,
)
from embodied.types import Json

POWER = 0.8  # of the smallest detectable difference
# What evaluations of one method have in common, besides what the checkpoint says.
METHOD = ("policy", "network", "setting", "run_time_settings", "action_steps")
NO_SPEED = ("memory_bytes",)  # of a machine's description: says nothing about latency


@dataclass(frozen=True)
class _Row:
    """What one row shows: the evaluations of one method, one for each seed that it was trained with."""

    label: str
    evaluations: tuple[Json, ...]
    episodes: tuple[dict[int, Json], ...]  # of each evaluation those without an error, by their start

    def solved(self, start: int, mode: str) -> int:
        """How many of the seeds succeeded from a start."""
        return sum(of_one[start][f"success_{mode}"] for of_one in self.episodes)


def compare(evaluations: Sequence[Json], confidence: float = 0.95, pool_seeds: bool = True) -> Json:
    """Success of each method on the shared starts, speed, and each pair against the reference.

    Evaluations that differ by nothing but the seed of the training are one method, and pooled into one row
    (`pool_seeds`). Episodes that could not be run (`error`) are left out and counted; a start is shared if every
    evaluation ran it without an error. Returns what schemas/compare.schema.json describes, without the keys that the
    command and its run directory add.

    A pair is tested over its starts, since episodes from one start are alike whatever the seed: exactly, by flipping
    the sign of each start's difference, which with one seed is McNemar's test.

    Raises:
        UserError: fewer than two methods, different tasks or horizons, a start twice in one evaluation, no shared
            start, or a confidence outside (0, 1).
    """
    _check_comparable(evaluations)
    methods = _methods(evaluations, pool_seeds)
    if len(methods) < 2:
        raise UserError(
            expected="at least two methods",
            found=f"{len(evaluations)} evaluations of one, trained with different seeds",
            remedy="name another method too, or compare the seeds with each other: pool_seeds=false",
        )
    rows = [
        _Row(label, method, tuple(_by_start(evaluation, label) for evaluation in method))
        for label, method in zip(_labels(methods), methods, strict=True)
    ]
    shared = sorted(set.intersection(*(set(of_one) for row in rows for of_one in row.episodes)))
    if not shared:
        ran = "; ".join(f"'{row.label}': {_starts_in_words(of_one)}" for row in rows for of_one in row.episodes)
        raise UserError(
            expected="evaluations that share starts",
            found=f"none in common ({ran})",
            remedy="evaluate them with the same first_start and overlapping episodes",
        )
    described = [_describe(row, shared, rows[0], confidence) for row in rows]
    return {
        "task": evaluations[0]["task"],
        "horizon": evaluations[0]["horizon"],
        "confidence": confidence,
        "reference": rows[0].label,
        "shared_starts": shared,
        "rows": described,
        "pairs": _pairs(rows, shared, confidence),
        "warnings": _warnings(rows, described),
    }


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


def _methods(evaluations: Sequence[Json], pool_seeds: bool) -> list[tuple[Json, ...]]:
    """Evaluations by method, in order of first appearance; a method with a seed twice is not pooled."""
    groups: dict[str, list[Json]] = {}
    for index, evaluation in enumerate(evaluations):
        checkpoint = evaluation["checkpoint"]
        identity = json.dumps([*(evaluation[key] for key in METHOD), checkpoint["method_hash"], checkpoint["step"]])
        groups.setdefault(identity if pool_seeds else str(index), []).append(evaluation)
    methods = []
    for group in groups.values():
        seeds = {evaluation["checkpoint"]["seed"] for evaluation in group}
        methods += [tuple(group)] if len(seeds) == len(group) else [(evaluation,) for evaluation in group]
    return methods


def _labels(methods: Sequence[tuple[Json, ...]]) -> list[str]:
    """One label each: the setting, with network, run, seeds or a number added where that alone is not unique."""
    first = [method[0] for method in methods]
    labels = [
        evaluation["setting"] + (f", {len(method)} seeds" if len(method) > 1 else "")
        for evaluation, method in zip(first, methods, strict=True)
    ]
    additions: tuple[Callable[[Sequence[Json]], list[str]], ...] = (
        lambda group: [evaluation["network"] for evaluation in group],
        lambda group: _telling_part([evaluation["checkpoint"]["run"] for evaluation in group]),
        lambda group: [f"step {evaluation['checkpoint']['step']}" for evaluation in group],
    )
    for addition in additions:
        for label in set(labels):
            group = [index for index, other in enumerate(labels) if other == label]
            added = addition([first[index] for index in group])
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


def _describe(row: _Row, shared: Sequence[int], reference: _Row, confidence: float) -> Json:
    first = row.evaluations[0]
    observation_ms, action_ms = _latency(row, "observation_ms"), _latency(row, "action_ms")
    return {
        "label": row.label,
        "runs": [evaluation["checkpoint"]["run"] for evaluation in row.evaluations],
        "seeds": [evaluation["checkpoint"]["seed"] for evaluation in row.evaluations],
        "step": first["checkpoint"]["step"],
        "policy": first["policy"],
        "network": first["network"],
        "setting": first["setting"],
        "parameters": first["parameters"],
        "action_steps": first["action_steps"],
        "success": {
            mode: _rate(sum(row.solved(start, mode) for start in shared), len(shared), len(row.evaluations), confidence)
            for mode in ("ever", "last")
        },
        "successes_by_seed": [sum(of_one[start]["success_ever"] for start in shared) for of_one in row.episodes],
        "errors": sum(
            len(evaluation["episodes"]) - len(of_one)
            for evaluation, of_one in zip(row.evaluations, row.episodes, strict=True)
        ),
        "starts_left_out": sum(len(of_one) - len(shared) for of_one in row.episodes),
        "network_calls_per_observation": first["network_calls_per_observation"],
        "network_calls_per_action": first["network_calls_per_action"],
        "timings": {
            "observation_ms": observation_ms,
            "action_ms_p50": action_ms["p50"],
            "first_observation_ms": _mean(
                [evaluation["timings"]["latency"]["first_observation_ms"] for evaluation in row.evaluations]
            ),
            "speed_ratio": {
                "per_observation": _latency(reference, "observation_ms")["p50"] / observation_ms["p50"],
                "per_action": _latency(reference, "action_ms")["p50"] / action_ms["p50"],
            },
        },
    }


def _latency(row: _Row, what: str) -> dict[str, float]:
    """p50 and p95, the mean over the evaluations of a row: networks of one shape."""
    measured = [evaluation["timings"]["latency"][what] for evaluation in row.evaluations]
    return {key: _mean([of_one[key] for of_one in measured]) for key in ("p50", "p95")}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _rate(k: int, starts: int, seeds: int, confidence: float) -> Json:
    """Successes of all episodes. The interval is over starts, whose episodes are alike whatever the seed: that of one
    seed, and wider than it need be."""
    low, high = wilson_interval(k / seeds, starts, confidence)
    n = starts * seeds
    return {"k": k, "n": n, "rate": k / n, "low": low, "high": high}


def _pairs(rows: Sequence[_Row], shared: Sequence[int], confidence: float) -> list[Json]:
    pairs = [_pair(row, rows[0], shared, confidence) for row in rows[1:]]
    adjusted = holm_adjusted([pair["p"] for pair in pairs])
    for pair, p in zip(pairs, adjusted, strict=True):
        pair["p_holm"] = p
        pair["sentence"] = _verdict(pair, confidence, len(pairs))
    return pairs


def _pair(row: _Row, reference: _Row, shared: Sequence[int], confidence: float) -> Json:
    """One method against the reference. Counts are starts: with several seeds, the mean over the pairs of seeds."""
    seeds, reference_seeds = len(row.evaluations), len(reference.evaluations)
    both = only_this = only_reference = neither = 0.0
    differences = []  # of each start, in units of 1 / (seeds * reference_seeds)
    for start in shared:
        solved, reference_solved = row.solved(start, "ever"), reference.solved(start, "ever")
        differences.append(solved * reference_seeds - reference_solved * seeds)
        rate, reference_rate = solved / seeds, reference_solved / reference_seeds
        both += rate * reference_rate
        only_this += rate * (1 - reference_rate)
        only_reference += (1 - rate) * reference_rate
        neither += (1 - rate) * (1 - reference_rate)
    low, high = paired_difference_interval(both, only_this, only_reference, neither, confidence)
    n = len(shared)
    return {
        "label": row.label,
        "reference": reference.label,
        "n": n,
        "test": "McNemar" if seeds == reference_seeds == 1 else "sign flips",
        "discordant": {"only_this": only_this, "only_reference": only_reference},
        "p": exact_sign_flip(differences),
        "difference": {"estimate": (only_this - only_reference) / n, "low": low, "high": high},
        "smallest_detectable_difference": smallest_detectable_difference(
            n, confidence=confidence, power=POWER, counter_rate=min(only_this, only_reference) / n
        ),
    }


def _verdict(pair: Json, confidence: float, tests: int) -> str:
    """What can and what cannot be said of a pair at its n."""
    difference, smallest = pair["difference"], pair["smallest_detectable_difference"]
    p = f"{pair['test']} p {p_in_words(pair['p'])}"
    if tests > 1:
        p += f" ({p_in_words(pair['p_holm'])} after Holm's correction for {tests} tests)"
    figures = (
        f"difference {difference['estimate']:+.3f}, {confidence:.0%} interval {difference['low']:+.3f} to "
        f"{difference['high']:+.3f}, {p}"
    )
    if pair["p_holm"] <= 1 - confidence:
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


def _warnings(rows: Sequence[_Row], described: Sequence[Json]) -> list[str]:
    reference = rows[0].evaluations[0]
    warnings = []
    for row in rows:
        for evaluation in row.evaluations:
            differing = _machine_differences(evaluation, reference)
            if differing:
                warnings.append(f"latency not comparable: '{row.label}' against the reference: {', '.join(differing)}")
    for row in described:
        if row["errors"]:
            warnings.append(
                f"'{row['label']}': {row['errors']} of its episodes could not be run; their starts are left out"
            )
        if row["starts_left_out"]:
            warnings.append(
                f"'{row['label']}': {row['starts_left_out']} of its starts are left out, since not all evaluations "
                "have them without an error"
            )
    return list(dict.fromkeys(warnings))


def _machine_differences(evaluation: Json, reference: Json) -> list[str]:
    mine = {**evaluation["machine"], "threads": evaluation["timings"]["latency"]["threads"]}
    theirs = {**reference["machine"], "threads": reference["timings"]["latency"]["threads"]}
    return [
        f"{key} {mine.get(key, '(absent)')} instead of {theirs.get(key, '(absent)')}"
        for key in sorted((mine.keys() | theirs.keys()) - set(NO_SPEED))
        if mine.get(key) != theirs.get(key)
    ]


def p_in_words(p: float) -> str:
    """A probability as a table shows it."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"
