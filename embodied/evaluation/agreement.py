"""Simulation against the real robot: do they rank the same policies alike? From a file, or from evaluations.

The file is JSON: `policies` names them, and under `tasks` each task has the list `real` of their real success rates
and one list for each simulation of it. Optional are `episodes` (under the same names, how many are behind each rate: a
number or a list) and, in a task, `paper_NAME` with a published [MMRV, r], which is shown beside ours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embodied.errors import UserError
from embodied.evaluation.compared_methods import compared_rows
from embodied.evaluation.rank_agreement import rank_agreement
from embodied.types import Json

REAL, PUBLISHED = "real", "paper_"
REMEDY = "the form is written down in docs/evaluation.md"


def agreement_of_file(path: Path, confidence: float = 0.95) -> Json:
    """MMRV and r of each simulation of each task in a file.

    Returns:
        What schemas/compare.schema.json describes, without the keys that the command and its run directory add.

    Raises:
        UserError: no such file, or not of the form above.
    """
    content = _read(path)
    policies = _field(content, "policies", list, path)
    episodes = content.get("episodes", {})
    if not isinstance(episodes, dict):
        raise UserError(expected=f"'episodes' by name in {path}", found=f"{episodes}", remedy=REMEDY)
    agreements = []
    for task, columns in _field(content, "tasks", dict, path).items():
        real = _rates(columns, REAL, task, policies, path)
        for name in columns:
            if name == REAL or name.startswith(PUBLISHED):
                continue
            sim = _rates(columns, name, task, policies, path)
            counts = [_counts(episodes.get(key), policies, path) for key in (REAL, name)]
            published = _published(columns.get(f"{PUBLISHED}{name}"), path)
            agreements.append(_agreement(task, name, policies, real, sim, counts, confidence, published))
    if not agreements:
        raise UserError(expected=f"simulated rates in {path}", found="none", remedy=REMEDY)
    return _result(agreements, confidence)


def agreement_of_evaluations(
    evaluations: Sequence[Json], real: Sequence[Any], confidence: float = 0.95, pool_seeds: bool = True
) -> Json:
    """MMRV and r of evaluated policies against their real success rates.

    Args:
        real: of each method, in the order of the evaluations: a rate, or successes over episodes as '17/20'.

    Raises:
        UserError: evaluations of several tasks, or real rates that are unreadable or of another number.
    """
    compared = compared_rows(evaluations, pool_seeds)
    labels = [row.label for row in compared.rows]
    if len(real) != len(labels):
        raise UserError(
            expected=f"a real success rate for each of {', '.join(labels)}",
            found=f"{len(real)}",
            remedy="give one each, in this order: real=[17/20,0.4]",
        )
    parsed = [_real_rate(value) for value in real]
    counts = [n for _, n in parsed]
    real_counts = [n for n in counts if n is not None]
    sim_counts = [len(row.outcomes.starts) for row in compared.rows]  # start states, see described_rate
    agreement = _agreement(
        evaluations[0]["task"],
        "evaluations",
        labels,
        [rate for rate, _ in parsed],
        [row.outcomes.k / row.outcomes.n for row in compared.rows],
        [real_counts if len(real_counts) == len(counts) else None, sim_counts],
        confidence,
        None,
    )
    return _result([agreement], confidence)


def _result(agreements: list[Json], confidence: float) -> Json:
    warnings = [
        f"{of_one['task']}, {of_one['simulation']}: {text}" for of_one in agreements for text in of_one["warnings"]
    ]
    return {"what": "agreement", "confidence": confidence, "agreements": agreements, "warnings": warnings}


def _agreement(
    task: str,
    simulation: str,
    policies: Sequence[str],
    real: Sequence[float],
    sim: Sequence[float],
    counts: Sequence[Sequence[int] | None],
    confidence: float,
    published: Sequence[float] | None,
) -> Json:
    real_episodes, sim_episodes = counts
    found = rank_agreement(real, sim, confidence, real_episodes=real_episodes, sim_episodes=sim_episodes)
    r = None
    if found.pearson is not None and found.pearson_interval is not None:
        r = {"value": found.pearson, "low": found.pearson_interval[0], "high": found.pearson_interval[1]}
    return {
        "task": task,
        "simulation": simulation,
        "policies": [
            {"label": label, "real": of_real, "sim": of_sim}
            for label, of_real, of_sim in zip(policies, real, sim, strict=True)
        ],
        "mmrv": {"value": found.mmrv, "low": found.mmrv_interval[0], "high": found.mmrv_interval[1]},
        "pearson": r,
        "episodes_redrawn": {"real": real_episodes is not None, "sim": sim_episodes is not None},
        "published": None if published is None else {"mmrv": published[0], "pearson": published[1]},
        "warnings": list(found.warnings),
    }


def _real_rate(value: Any) -> tuple[float, int | None]:
    """A rate, and the number of episodes where it is given."""
    successes, slash, n = str(value).partition("/")
    try:
        rate, episodes = (int(successes) / int(n), int(n)) if slash else (float(successes), None)
    except (ValueError, ZeroDivisionError):
        raise UserError(
            expected="real success rates as 0.85 or 17/20", found=f"'{value}'", remedy="for example real=[17/20,0.4]"
        ) from None
    return rate, episodes


def _read(path: Path) -> Json:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found = error.strerror if isinstance(error, OSError) else f"damaged JSON ({error})"
        raise UserError(expected=f"a readable {path}", found=str(found), remedy=REMEDY) from error
    if not isinstance(content, dict):
        raise UserError(expected=f"a JSON object in {path}", found=type(content).__name__, remedy=REMEDY)
    return content


def _field(content: Json, key: str, kind: type, path: Path) -> Any:
    value = content.get(key)
    if not isinstance(value, kind) or not all(isinstance(item, str) for item in value):
        raise UserError(expected=f"'{key}' in {path}", found=type(value).__name__, remedy=REMEDY)
    return value


def _published(value: Any, path: Path) -> tuple[float, float] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(map(_is_number, value)):
        raise UserError(expected=f"a published [MMRV, r] in {path}", found=f"{value}", remedy=REMEDY)
    return float(value[0]), float(value[1])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _rates(columns: Any, name: str, task: str, policies: Sequence[str], path: Path) -> list[float]:
    values = columns.get(name) if isinstance(columns, dict) else None
    if not isinstance(values, list) or len(values) != len(policies) or not all(map(_is_number, values)):
        raise UserError(
            expected=f"{len(policies)} numbers under '{name}' of task '{task}' in {path}",
            found=f"{values}",
            remedy=REMEDY,
        )
    return [float(value) for value in values]


def _counts(value: Any, policies: Sequence[str], path: Path) -> list[int] | None:
    if value is None:
        return None
    counts = value if isinstance(value, list) else [value] * len(policies)
    if len(counts) != len(policies) or not all(type(count) is int and count > 0 for count in counts):
        raise UserError(
            expected=f"a number of episodes, or one for each of {len(policies)} policies, in {path}",
            found=f"{value}",
            remedy=REMEDY,
        )
    return counts
