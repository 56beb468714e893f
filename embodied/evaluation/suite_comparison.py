"""Methods over several tasks: one score each, the mean over the tasks, and its difference to that of the reference."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from embodied.catalog import CHUNK_EXECUTOR, in_words
from embodied.errors import UserError
from embodied.evaluation.compared_methods import (
    ComparedRows,
    Row,
    compared_rows,
    error_warning,
    executor_of,
    method_facts,
)
from embodied.evaluation.comparison import compare
from embodied.evaluation.statistics import described_rate
from embodied.evaluation.suite_score import Stratum, suite_difference_interval, suite_interval, suite_score
from embodied.types import Json

# What evaluations of one method on different tasks have in common.
METHOD = ("policy", "network", "setting", "run_time_settings", "delay_steps", "action_noise", "executor")


def compare_suite(
    evaluations: Sequence[Json], confidence: float = 0.95, pool_seeds: bool = True, interval: str = "wilson"
) -> Json:
    """The suite score of each method, and the comparison within each task.

    Methods are matched across tasks by policy, network and setting; each has to have been evaluated on every task. The
    first evaluation's is the reference.

    Args:
        interval: of each task's success rates, a name in `statistics.INTERVALS`.

    Returns:
        What schemas/compare.schema.json describes, without the keys that the command and its run directory add.

    Raises:
        UserError: a method that lacks a task or has it twice, or as `comparison.compare` within a task.
    """
    order = list(dict.fromkeys(_identity(evaluation) for evaluation in evaluations))
    ordered = sorted(evaluations, key=lambda evaluation: order.index(_identity(evaluation)))
    tasks = list(dict.fromkeys(evaluation["task"] for evaluation in evaluations))
    by_task = {task: [evaluation for evaluation in ordered if evaluation["task"] == task] for task in tasks}
    compared = {task: compared_rows(of_task, pool_seeds) for task, of_task in by_task.items()}
    _check_complete(compared, order)
    labels = _labels([row.method.evaluations[0] for row in compared[tasks[0]].rows])
    rows = [
        _score(label, [compared[task].rows[index] for task in tasks], tasks, confidence, interval)
        for index, label in enumerate(labels)
    ]
    pairs = [_pair(index, labels, list(compared.values()), confidence) for index in range(1, len(labels))]
    comparisons = [compare(by_task[task], confidence, pool_seeds, interval) for task in tasks] if pairs else []
    return {
        "what": "suite",
        "tasks": tasks,
        "confidence": confidence,
        "interval": interval,
        "reference": labels[0],
        "rows": rows,
        "pairs": pairs,
        "comparisons": comparisons,
        "warnings": _warnings(rows, comparisons),
    }


def _identity(evaluation: Json) -> str:
    return json.dumps(method_facts(evaluation, METHOD))


def _check_complete(compared: dict[str, ComparedRows], order: Sequence[str]) -> None:
    for task, of_task in compared.items():
        found = [_identity(row.method.evaluations[0]) for row in of_task.rows]
        if found != list(order):
            lacking = [json.loads(method)[2] for method in order if method not in found]
            raise UserError(
                expected="each method on every task, once",
                found=f"'{lacking[0]}' without {task}" if lacking else f"one method twice on {task}",
                remedy="evaluate it there, or leave it out; trainings that differ only by their seed are pooled",
            )


def _labels(evaluations: Sequence[Json]) -> list[str]:
    """The setting, with executor (unless it is the plain one), network and policy where that alone is not unique."""
    labels = [evaluation["setting"] for evaluation in evaluations]
    executors = [executor_of(evaluation) for evaluation in evaluations]
    for words in (
        ["" if executor == CHUNK_EXECUTOR else in_words(executor) for executor in executors],
        [evaluation["network"] for evaluation in evaluations],
        [evaluation["policy"] for evaluation in evaluations],
    ):
        labels = [
            f"{label} {word}" if labels.count(label) > 1 and word else label
            for label, word in zip(labels, words, strict=True)
        ]
    return [f"{label} #{index + 1}" if labels.count(label) > 1 else label for index, label in enumerate(labels)]


def _stratum(row: Row) -> Stratum:
    of_row = row.outcomes
    totals = np.array([of_row.ever[start] for start in of_row.starts], np.float64)
    return Stratum(totals, np.full(len(totals), float(of_row.episodes_each)))


def _score(label: str, rows: Sequence[Row], tasks: Sequence[str], confidence: float, interval: str) -> Json:
    strata = [_stratum(row) for row in rows]
    low, high = suite_interval(strata, confidence)
    return {
        "label": label,
        "score": {"rate": suite_score(strata), "low": low, "high": high},
        "by_task": [
            {
                "task": task,
                "seeds": [evaluation["checkpoint"]["seed"] for evaluation in row.method.evaluations],
                "success": described_rate(
                    row.outcomes.k, row.outcomes.n, len(row.outcomes.starts), confidence=confidence, interval=interval
                ),
                **row.method.errors(),
            }
            for task, row in zip(tasks, rows, strict=True)
        ],
    }


def _warnings(rows: Sequence[Json], comparisons: Sequence[Json]) -> list[str]:
    if comparisons:
        return [f"{result['task']}: {text}" for result in comparisons for text in result["warnings"]]
    told = [(of_task["task"], error_warning(row["label"], of_task)) for row in rows for of_task in row["by_task"]]
    return [f"{task}: {warning}" for task, warning in told if warning is not None]


def _pair(index: int, labels: Sequence[str], compared: Sequence[ComparedRows], confidence: float) -> Json:
    strata = [_stratum(of_task.rows[index]) for of_task in compared]
    reference = [_stratum(of_task.rows[0]) for of_task in compared]
    low, high = suite_difference_interval(strata, reference, [bool(of_task.shared) for of_task in compared], confidence)
    estimate = suite_score(strata) - suite_score(reference)
    apart = low > 0 or high < 0
    figures = f"difference {estimate:+.3f}, {confidence:.0%} interval {low:+.3f} to {high:+.3f}"
    if apart:
        more = "more" if estimate > 0 else "less"
        sentence = f"over {len(compared)} tasks '{labels[index]}' succeeds {more} often than '{labels[0]}': {figures}."
    else:
        sentence = (
            f"{len(compared)} tasks do not tell '{labels[index]}' and '{labels[0]}' apart, nor show that they are "
            f"equal: {figures}."
        )
    return {
        "label": labels[index],
        "reference": labels[0],
        "paired": all(of_task.shared for of_task in compared),
        "difference": {"estimate": estimate, "low": low, "high": high},
        "sentence": sentence[0].upper() + sentence[1:],
    }
