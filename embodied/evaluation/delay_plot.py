"""Success over the delay from an observation to the actions that are computed from it, a panel for each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from embodied.types import Json

DPI = 100
SIDE_STEP = 0.06  # between methods at one delay, as a share of the smallest gap between two delays


@dataclass(frozen=True)
class DelayPanel:
    """One task: of each method the success rates by delay."""

    title: str
    curves: Mapping[str, Mapping[float, Json]]  # label -> delay -> rate with "rate", "low" and "high"


def delay_figure(panels: Sequence[DelayPanel], unit: str, confidence: float = 0.95) -> Figure:
    """Every method has one colour in all panels, and stands a little beside the others.

    Args:
        panels: at least one.
        unit: of the delays, for the axis.
        confidence: of the intervals, for the axis.
    """
    figure = Figure(figsize=(max(6.4, 4.4 * len(panels)), 4.2), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)  # never a display, whatever the process has chosen for pyplot
    grid = figure.subplots(1, len(panels), squeeze=False).ravel()
    labels = list(dict.fromkeys(label for panel in panels for label in panel.curves))
    lines = {}
    for axes, panel in zip(grid, panels, strict=True):
        all_delays = sorted({delay for curve in panel.curves.values() for delay in curve})
        side_step = SIDE_STEP * min((later - delay for delay, later in pairwise(all_delays)), default=1.0)
        for label, curve in panel.curves.items():
            index = labels.index(label)
            rates = [curve[delay] for delay in sorted(curve)]
            places = [delay + side_step * (index - (len(labels) - 1) / 2) for delay in sorted(curve)]
            below = [max(rate["rate"] - rate["low"], 0) for rate in rates]
            above = [max(rate["high"] - rate["rate"], 0) for rate in rates]
            values = [rate["rate"] for rate in rates]
            colour = f"C{index % 10}"
            lines[label] = axes.errorbar(places, values, yerr=[below, above], marker="o", color=colour, capsize=2)
        axes.set_title(panel.title, fontsize=10)
        axes.set_xlabel(f"delay ({unit})")
        axes.set_xticks(all_delays)
        axes.set_ylim(-0.03, 1.03)
        axes.grid(alpha=0.3)
    grid[0].set_ylabel(f"success rate ({confidence:.0%} interval)")
    handles = [lines[label] for label in labels]
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), fontsize=8)
    return figure
