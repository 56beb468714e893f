"""Rows of many episodes as figures: success overall, by variant, by axis, and stage by stage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embodied.evaluation.statistics import bootstrap_mean_interval, described_rate, error_bounds
from embodied.protocols import Variant
from embodied.types import Json

MODES = ("ever", "last")
SMOOTHNESS = ("jerk", "seam_jump", "step_change")


def success(rows: Sequence[Json]) -> Json:
    """Of the episodes without an error: k of n with Wilson's interval, ever and at the last step; null without any."""
    return {mode: rate(rows, [row[f"success_{mode}"] for row in _ran(rows)]) for mode in MODES}


def rate(rows: Sequence[Json], outcomes: Sequence[bool]) -> Json | None:
    """k of n with Wilson's 95 % interval, over the starts of the rows, and a posterior; None of nothing."""
    starts = len({row["start"] for row in _ran(rows)})
    return described_rate(sum(outcomes), len(outcomes), starts) if outcomes else None


def overall(rows: Sequence[Json]) -> Json:
    """The figures of all episodes together. At least one ran without an error."""
    ran = _ran(rows)
    rewards = [row["max_reward"] for row in ran]
    low, high = bootstrap_mean_interval(rewards)
    errors, rates = len(rows) - len(ran), success(rows)
    return {
        "episodes": list(rows),
        "success": rates,
        "stages": funnel(rows),
        "mean_return": float(np.mean([row["return"] for row in ran])),
        # The score of tasks whose reward is graded, such as Push-T: of each episode its best step.
        "mean_max_reward": {"mean": float(np.mean(rewards)), "n": len(rewards), "low": low, "high": high},
        "motion": motion(rows),
        "mean_steps_to_success": mean_steps_to_success(rows),
        "errors": errors,
        "error_bounds": {mode: error_bounds(rates[mode]["k"], len(ran), errors) for mode in MODES},
    }


def success_within(rows: Sequence[Json], steps: float) -> Json | None:
    """As `success`, of the episodes that had one after at most so many control steps."""
    firsts = [row["first_success"] for row in _ran(rows)]
    return rate(rows, [first is not None and first <= steps for first in firsts])


def mean_steps_to_success(rows: Sequence[Json]) -> float | None:
    """Control steps until the first success, of the episodes that had one; None without any."""
    steps = [row["first_success"] for row in _ran(rows) if row["first_success"] is not None]
    return float(np.mean(steps)) if steps else None


def motion(rows: Sequence[Json]) -> Json:
    """Means of `smoothness` over the episodes, null where none has the figure."""
    found = [row["motion"] for row in _ran(rows) if row.get("motion")]  # a row of an earlier version has none
    values = {name: [one[name] for one in found if one[name] is not None] for name in SMOOTHNESS}
    return {name: float(np.mean(of_name)) if of_name else None for name, of_name in values.items()}


def funnel(rows: Sequence[Json]) -> list[Json]:
    """How many episodes ever reached each sub-stage, in the task's order; empty for a task without any."""
    ran = _ran(rows)
    names = list(dict.fromkeys(name for row in ran for name in row["stages"]))
    return [{"stage": name, "reached": rate(rows, [row["stages"].get(name, False) for row in ran])} for name in names]


def by_variant(rows: Sequence[Json], variants: Sequence[Variant]) -> list[Json]:
    """Success of each variant, in their order."""
    return [
        {
            "variant": variant.id,
            "axis": variant.axis,
            "counted": variant.counted,
            "success": success(own := [row for row in rows if row["variant"] == variant.id]),
            "errors": len(own) - len(_ran(own)),
        }
        for variant in variants
    ]


def by_axis(rows: Sequence[Json], variants: Sequence[Variant]) -> list[Json]:
    """Success of each axis, its variants together, and how far it lies from the task as it is, start by start."""
    base = {row["start"]: row for row in _ran(rows) if row["axis"] == "base"}
    axes = dict.fromkeys(variant.axis for variant in variants)
    return [
        {
            "axis": axis,
            "variants": sum(variant.axis == axis for variant in variants),
            "success": success(own := [row for row in rows if row["axis"] == axis]),
            "difference": None if axis == "base" else _difference(own, base),
        }
        for axis in axes
    ]


def _difference(rows: Sequence[Json], base: dict[int, Json]) -> Json | None:
    """Mean over the starts that both ran of the axis's success ever minus the base's, with its bootstrap interval."""
    pairs = [
        (start, float(np.mean([row["success_ever"] for row in own])))
        for start, own in _by_start(rows).items()
        if start in base
    ]
    if not pairs:
        return None
    differences = [mean - base[start]["success_ever"] for start, mean in pairs]
    low, high = bootstrap_mean_interval(differences)
    return {"estimate": float(np.mean(differences)), "n": len(differences), "low": low, "high": high}


def by_protocol(rows: Sequence[Json], variants: Sequence[Variant]) -> list[Json]:
    """SimplerEnv's figures: of each protocol the plain mean over its counted variants of their success rates.

    Episodes from one start are alike whatever the variant, so the interval is a bootstrap over starts.
    """
    protocols = dict.fromkeys(variant.protocol for variant in variants if variant.counted and variant.protocol)
    means = []
    for protocol in protocols:
        members = [variant.id for variant in variants if variant.counted and variant.protocol == protocol]
        own = [row for row in _ran(rows) if row["variant"] in members]
        if own:
            means.append({"protocol": protocol, "variants": len(members), **{mode: _mean(own, mode) for mode in MODES}})
    return means


def _mean(rows: Sequence[Json], mode: str) -> Json:
    """Over the variants in these rows, each counting the same."""
    rates = [
        float(np.mean([row[f"success_{mode}"] for row in rows if row["variant"] == variant]))
        for variant in dict.fromkeys(row["variant"] for row in rows)
    ]
    by_start = [float(np.mean([row[f"success_{mode}"] for row in own])) for own in _by_start(rows).values()]
    low, high = bootstrap_mean_interval(by_start)
    return {"mean": float(np.mean(rates)), "starts": len(by_start), "low": low, "high": high}


def _by_start(rows: Sequence[Json]) -> dict[int, list[Json]]:
    """The rows without an error, by their start."""
    groups: dict[int, list[Json]] = {}
    for row in _ran(rows):
        groups.setdefault(row["start"], []).append(row)
    return groups


def _ran(rows: Sequence[Json]) -> list[Json]:
    return [row for row in rows if row["error"] is None]
