"""Success against latency, a panel for each task, with a baseline's samplers as the line to beat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from embodied.types import Json

DPI = 80
PANELS_A_ROW = 3
MARKERS = "os^DvP*X<>hp"
BASELINE_COLOUR = "0.35"


@dataclass(frozen=True)
class FrontierPoint:
    """A method of one panel."""

    label: str
    latency_ms: float  # p50 of an observation
    rate: Json  # with "rate", "low" and "high"


@dataclass(frozen=True)
class FrontierPanel:
    """One task."""

    title: str
    points: tuple[FrontierPoint, ...]


def frontier_figure(panels: Sequence[FrontierPanel], baseline: Sequence[str], confidence: float = 0.95) -> Figure:
    """The panels; every method has one colour and marker in all of them, the baseline's are joined in grey.

    Args:
        panels: at least one, each with points.
        baseline: labels of the line to beat, from the fewest calls on.
        confidence: of the intervals, for the axis.
    """
    columns = min(PANELS_A_ROW, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.6 * columns, 3.4 * rows + 1.2), dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    methods = list(dict.fromkeys(p.label for panel in panels for p in panel.points if p.label not in baseline))
    styles = {label: (f"C{i}" if i < 10 else "k", MARKERS[i % len(MARKERS)]) for i, label in enumerate(methods)}
    for axes, panel in zip(grid, panels, strict=False):
        _draw(axes, panel, baseline, styles)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[::columns]:
        axes.set_ylabel(f"success rate ({confidence:.0%} interval)")
    handles = []
    if baseline:
        handles.append(Line2D([], [], color=BASELINE_COLOUR, marker=".", label=f"{baseline[0]} .. {baseline[-1]}"))
    handles += [Line2D([], [], color=c, marker=m, linestyle="", label=label) for label, (c, m) in styles.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), fontsize=8)
    return figure


def _draw(axes: Axes, panel: FrontierPanel, baseline: Sequence[str], styles: dict[str, tuple[str, str]]) -> None:
    _prepare(axes, panel)
    by_label = {point.label: point for point in panel.points}
    line = [by_label[label] for label in baseline if label in by_label]
    axes.plot([p.latency_ms for p in line], [p.rate["rate"] for p in line], color=BASELINE_COLOUR, zorder=1)
    for point in panel.points:
        colour, marker = styles.get(point.label, (BASELINE_COLOUR, "."))
        rate = point.rate
        errors = [[max(rate["rate"] - rate["low"], 0)], [max(rate["high"] - rate["rate"], 0)]]
        axes.errorbar(
            point.latency_ms,
            rate["rate"],
            yerr=errors,
            fmt=marker,
            color=colour,
            capsize=2,
            markersize=5,
            elinewidth=0.8,
        )
    for point in line:
        axes.annotate(
            point.label.rpartition("-")[2],  # calls
            (point.latency_ms, point.rate["rate"]),
            xytext=(3, -9),
            textcoords="offset points",
            fontsize=7,
            color=BASELINE_COLOUR,
        )


def _prepare(axes: Axes, panel: FrontierPanel) -> None:
    latencies = [point.latency_ms for point in panel.points]
    axes.set_title(panel.title, fontsize=10)
    axes.set_xscale("log")
    axes.set_xlim(min(latencies) / 1.6, max(latencies) * 1.6)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("p50 of an observation (ms)", fontsize=8)
    axes.set_ylim(-0.03, 1.03)  # in all panels, so that what differs little looks so
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
