"""Two or more evaluations of one task side by side. The first is the reference.

They are paired on the starts that they share; where they share none, they are compared as separate samples, and the
result says so. An evaluation is the content of its `summary.json` (schemas/eval.schema.json).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from embodied.errors import UserError
from embodied.evaluation.compared_methods import Method, Row, compared_rows, error_warning
from embodied.evaluation.compared_pairs import all_pairs, pair_test, reference_pairs
from embodied.evaluation.statistics import described_rate
from embodied.types import Json

NO_SPEED = ("memory_bytes",)  # of a machine's description: says nothing about latency


def compare(
    evaluations: Sequence[Json], confidence: float = 0.95, pool_seeds: bool = True, interval: str = "wilson"
) -> Json:
    """Success of each method, speed, each pair against the reference, and letters over all pairs.

    Evaluations that differ by nothing but the seed of the training are one method, and pooled into one row
    (`pool_seeds`). Episodes that could not be run (`error`) are left out and counted. A start is shared if every
    evaluation ran it without an error, in every variant of the scene that all were evaluated in.

    A pair is tested over its starts, since episodes from one start are alike whatever the seed: exactly, by flipping
    the sign of each start's difference, which with one episode a start is McNemar's test. Where no start is shared by
    all, each row shows all its own, and a pair is tested on the starts that it shares, or with Barnard's test.

    Args:
        interval: of the success rates, a name in `statistics.INTERVALS`.

    Returns:
        What schemas/compare.schema.json describes, without the keys that the command and its run directory add.

    Raises:
        UserError: fewer than two methods, different tasks or horizons, a start twice in one evaluation, a method
            without an episode, separate samples with several episodes a start, or a confidence outside (0, 1).
    """
    if len(evaluations) < 2:
        raise UserError(
            expected="at least two evaluations",
            found=f"{len(evaluations)}",
            remedy="name two or more: embodied compare RUN RUN",
        )
    compared = compared_rows(evaluations, pool_seeds)
    rows, shared = compared.rows, compared.shared
    if len(rows) < 2:
        raise UserError(
            expected="at least two methods",
            found=f"{len(evaluations)} evaluations of one, trained with different seeds",
            remedy="name another method too, or compare the seeds with each other: pool_seeds=false",
        )
    tests = {(a, b): pair_test(rows[a], rows[b]) for a, b in itertools.combinations(range(len(rows)), 2)}
    every_pair, letters = all_pairs(rows, tests, confidence)
    described = [_describe(row, rows[0], confidence, interval) for row in rows]
    for row, of_row in zip(described, letters, strict=True):
        row["letters"] = of_row
    return {
        "what": "task",
        "task": evaluations[0]["task"],
        "horizon": evaluations[0]["horizon"],
        "confidence": confidence,
        "interval": interval,
        "reference": rows[0].label,
        "variants": sorted(compared.variants),
        "shared_starts": sorted(shared),
        "rows": described,
        "pairs": reference_pairs(rows, [tests[0, index] for index in range(1, len(rows))], confidence),
        "all_pairs": every_pair,
        "warnings": _warnings(rows, described, bool(shared)),
    }


def _describe(row: Row, reference: Row, confidence: float, interval: str) -> Json:
    method, of_row = row.method, row.outcomes
    first = method.evaluations[0]
    observation_ms, action_ms = _latency(method, "observation_ms"), _latency(method, "action_ms")
    return {
        "label": row.label,
        "runs": [evaluation["checkpoint"]["run"] for evaluation in method.evaluations],
        "seeds": [evaluation["checkpoint"]["seed"] for evaluation in method.evaluations],
        "step": first["checkpoint"]["step"],
        "policy": first["policy"],
        "network": first["network"],
        "setting": first["setting"],
        "parameters": first["parameters"],
        "action_steps": first["action_steps"],
        "success": {
            mode: described_rate(
                sum(solved.values()), of_row.n, len(of_row.starts), confidence=confidence, interval=interval
            )
            for mode, solved in (("ever", of_row.ever), ("last", of_row.last))
        },
        "successes_by_seed": list(of_row.ever_by_seed),
        **method.errors(),
        "starts_left_out": method.ran - of_row.n,
        "network_calls_per_observation": first["network_calls_per_observation"],
        "network_calls_per_action": first["network_calls_per_action"],
        "timings": {
            "observation_ms": observation_ms,
            "action_ms_p50": action_ms["p50"],
            "first_observation_ms": _mean(
                [evaluation["timings"]["latency"]["first_observation_ms"] for evaluation in method.evaluations]
            ),
            "speed_ratio": {
                "per_observation": _latency(reference.method, "observation_ms")["p50"] / observation_ms["p50"],
                "per_action": _latency(reference.method, "action_ms")["p50"] / action_ms["p50"],
            },
        },
    }


def _latency(method: Method, what: str) -> dict[str, float]:
    """p50 and p95, the mean over the evaluations of a method: networks of one shape."""
    measured = [evaluation["timings"]["latency"][what] for evaluation in method.evaluations]
    return {key: _mean([of_one[key] for of_one in measured]) for key in ("p50", "p95")}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _warnings(rows: Sequence[Row], described: Sequence[Json], paired: bool) -> list[str]:
    reference = rows[0].method.evaluations[0]
    warnings = []
    if not paired:
        ran = "; ".join(f"'{row.label}': {row.outcomes.starts[0]} to {row.outcomes.starts[-1]}" for row in rows)
        warnings.append(
            f"no start is shared by all evaluations ({ran}): each row shows its own starts. The same first_start would "
            "pair them, which needs fewer episodes"
        )
    for row in rows:
        for evaluation in row.method.evaluations:
            differing = _machine_differences(evaluation, reference)
            if differing:
                warnings.append(f"latency not comparable: '{row.label}' against the reference: {', '.join(differing)}")
    for row in described:
        if (warning := error_warning(row["label"], row)) is not None:
            warnings.append(warning)
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
