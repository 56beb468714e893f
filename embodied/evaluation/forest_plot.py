"""Estimates with their intervals, one a line: the picture of a table of intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 150
GREY = "0.45"


@dataclass(frozen=True)
class Estimate:
    """One line of a panel."""

    label: str
    value: float
    low: float
    high: float
    note: str = ""  # at the right end
    color: int = 0  # of matplotlib's cycle


@dataclass(frozen=True)
class Panel:
    """Lines on one axis."""

    title: str
    axis: str
    estimates: Sequence[Estimate]
    limits: tuple[float, float]
    reference: float | None = None  # where a vertical line stands


def rates_panel(title: str, axis: str, estimates: Sequence[Estimate]) -> Panel:
    """Success rates, on an axis from 0 to 1."""
    return Panel(title, axis, estimates, (-0.02, 1.02))


def differences_panel(title: str, axis: str, estimates: Sequence[Estimate]) -> Panel:
    """Differences, on an axis with a line at 0 in its middle."""
    reach = 1.1 * max([0.1, *(max(abs(estimate.low), abs(estimate.high)) for estimate in estimates)])
    return Panel(title, axis, estimates, (-reach, reach), reference=0.0)


def forest_figure(title: str, panels: Sequence[Panel]) -> Figure:
    """The panels below each other, the first line of each on top."""
    heights = [len(panel.estimates) + 1.0 for panel in panels]
    figure = Figure(figsize=(8, 0.9 + 0.34 * sum(heights) + 0.5 * len(panels)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)  # never a display, whatever the process has chosen for pyplot
    figure.suptitle(title, fontsize=11)
    all_axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, panel in zip(all_axes, panels, strict=True):
        _draw(axes, panel)
    return figure


def _draw(axes: Axes, panel: Panel) -> None:
    for line, estimate in enumerate(panel.estimates):
        errors = [[max(estimate.value - estimate.low, 0)], [max(estimate.high - estimate.value, 0)]]
        color = f"C{estimate.color % 10}"
        axes.errorbar(estimate.value, line, xerr=errors, fmt="o", color=color, capsize=4, markersize=6)
        axes.annotate(
            estimate.note,
            (1.01, line),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=9,
            annotation_clip=False,
        )
    if panel.reference is not None:
        axes.axvline(panel.reference, color=GREY, linewidth=1, linestyle="--", zorder=0)
    axes.set_yticks(range(len(panel.estimates)), [estimate.label for estimate in panel.estimates], fontsize=9)
    axes.set_ylim(len(panel.estimates) - 0.5, -0.5)
    axes.set_xlim(*panel.limits)
    axes.set_xlabel(panel.axis, fontsize=9)
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
