"""Success against an injected delay, a panel for each task, a line for each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from embodied.types import Json

DPI = 80


@dataclass(frozen=True)
class DelayPanel:
    """One task: of each method the success rates by delay, in control steps."""

    title: str
    curves: Mapping[str, Mapping[int, Json]]  # label -> delay -> rate with "rate", "low" and "high"


def delay_figure(panels: Sequence[DelayPanel], confidence: float = 0.95) -> Figure:
    """At least one panel; every method has one colour in all of them, and stands a little beside the others."""
    figure = Figure(figsize=(4.4 * len(panels), 4.2), dpi=DPI, layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False).ravel()
    labels = list(dict.fromkeys(label for panel in panels for label in panel.curves))
    for axes, panel in zip(grid, panels, strict=True):
        for label, curve in panel.curves.items():
            index = labels.index(label)
            delays = sorted(curve)
            rates = [curve[delay] for delay in delays]
            below = [max(rate["rate"] - rate["low"], 0) for rate in rates]
            above = [max(rate["high"] - rate["rate"], 0) for rate in rates]
            places = [delay + 0.05 * (index - len(labels) / 2) for delay in delays]
            values = [rate["rate"] for rate in rates]
            axes.errorbar(
                places, values, yerr=[below, above], marker="o", color=f"C{index % 10}", capsize=2, label=label
            )
        axes.set_title(panel.title, fontsize=10)
        axes.set_xlabel("injected delay (control steps)")
        axes.set_ylim(-0.03, 1.03)
        axes.grid(alpha=0.3)
    grid[0].set_ylabel(f"success rate ({confidence:.0%} interval)")
    handles, names = max((axes.get_legend_handles_labels() for axes in grid), key=lambda pair: len(pair[0]))
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 6), fontsize=8)
    return figure
