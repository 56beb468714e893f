"""How methods stand what is done to them: each condition beside the first one of its matrix, on the same starts."""

from __future__ import annotations

from collections.abc import Sequence

from embodied.commands.bench_pages import markdown
from embodied.commands.policy_matrix import Condition, PolicyCell
from embodied.evaluation.delay_plot import DelayPanel
from embodied.evaluation.frontier import paired
from embodied.types import Json

Found = Sequence[tuple[PolicyCell, Json]]  # the cells of one column that are there
DELAY = "delay"  # of a condition's values: the injected one, in control steps


def conditions_section(conditions: Sequence[Condition], found: Found) -> str:
    """Success of each method under each condition and what it lost, then jerk and seam jump; of one column."""
    by_place = {(cell.row.label, cell.condition.label): facts for cell, facts in found}
    methods = list(dict.fromkeys(label for label, _ in by_place))
    names = [condition.label for condition in conditions if any(name == condition.label for _, name in by_place)]
    first = conditions[0].label
    success, motion = [], []
    for method in methods:
        facts = [by_place.get((method, name)) for name in names]
        undisturbed = by_place.get((method, first))
        success.append([method, *(_success(one, undisturbed) for one in facts)])
        motion.append([method, *(_motion(one) for one in facts)])
    return (
        f"Successes, and the difference to {first} with its 95 % interval (paired starts):\n\n"
        f"{markdown(('method', *names), success)}\nJerk / seam jump / step change within a chunk:\n\n"
        f"{markdown(('method', *names), motion)}"
    )


def delay_panel(title: str, conditions: Sequence[Condition], found: Found) -> DelayPanel | None:
    """Of one column; None where no delay was injected yet. The conditions are the first one, and those that do nothing
    but delay."""
    delays = {c.label: int(c.values[DELAY]) for c in conditions if c is conditions[0] or _only_delays(c)}
    curves: dict[str, dict[float, Json]] = {}
    for cell, facts in found:
        if cell.condition.label in delays:
            curve = curves.setdefault(cell.row.label, {})
            curve[delays[cell.condition.label]] = facts["success"]["ever"]
    is_delayed = any(max(curve) > 0 for curve in curves.values())
    return DelayPanel(title, curves) if is_delayed else None


def _only_delays(condition: Condition) -> bool:
    keys = {word.partition("=")[0] for word in condition.evaluation}
    return DELAY in condition.values and keys == {"delay_steps"}


def _success(facts: Json | None, undisturbed: Json | None) -> str:
    if facts is None:
        return ""
    ever = facts["success"]["ever"]
    counts = f"{ever['k']}/{ever['n']}"
    pair = None if undisturbed is None or undisturbed is facts else paired(facts, undisturbed)
    return counts if pair is None else f"{counts}, {pair.difference:+.2f} [{pair.low:+.2f}, {pair.high:+.2f}]"


def _motion(facts: Json | None) -> str:
    if facts is None:
        return ""
    values = [facts["motion"][name] for name in ("jerk", "seam_jump", "step_change")]
    return " / ".join("-" if value is None else f"{value:.3f}" for value in values)
