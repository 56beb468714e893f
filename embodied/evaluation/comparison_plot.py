"""Success against latency, as a picture on which no two labels cover each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from embodied.types import Json

Point = tuple[str, float, Json]  # label, p50 latency in ms, rate with "rate", "low" and "high"
DPI = 150


def success_against_latency(title: str, confidence: float, points: Sequence[Point]) -> Figure:
    """Success with its interval over the p50 latency of an observation, on a logarithmic axis."""
    figure = Figure(figsize=(8, 5), dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)  # never a display, whatever the process has chosen for pyplot
    axes = figure.add_subplot()
    _prepare_axes(axes, points)
    axes.set_title(title, fontsize=11)
    axes.set_ylabel(f"success rate ({confidence:.0%} interval)")
    for index, (_, latency_ms, rate) in enumerate(points):
        errors = [[max(rate["rate"] - rate["low"], 0)], [max(rate["high"] - rate["rate"], 0)]]
        axes.errorbar(latency_ms, rate["rate"], yerr=errors, fmt="o", color=f"C{index % 10}", capsize=4, markersize=7)
    canvas.draw()  # settles the layout, from which the labels are placed
    figure.set_layout_engine("none")
    _place_labels(axes, points, canvas)
    return figure


def _prepare_axes(axes: Axes, points: Sequence[Point]) -> None:
    latencies = [latency_ms for _, latency_ms, _ in points]
    axes.set_xscale("log")
    axes.set_xlim(min(latencies) / 2, max(latencies) * 2)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=30))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("latency of one observation, p50 (ms, logarithmic)")
    lowest = min(rate["low"] for _, _, rate in points)
    axes.set_ylim(max(lowest - 0.1, -0.05), 1.05)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2f}" if -1e-9 < value < 1 + 1e-9 else ""))
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)


def _place_labels(axes: Axes, points: Sequence[Point], canvas: FigureCanvasAgg) -> None:
    """Put each label at the nearest free place around its point, tied to it by a thin line where it is far."""
    renderer = canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    taken = [_interval_box(axes, latency_ms, rate) for _, latency_ms, rate in points]
    for index, (label, latency_ms, rate) in enumerate(points):
        color = f"C{index % 10}"
        x, y = axes.transData.transform((latency_ms, rate["rate"]))
        text = axes.text(0, 0, label, transform=None, ha="center", va="center", fontsize=9, color=color, zorder=5)
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})
        for dx, dy in _offsets():
            text.set_position((x + dx, y + dy))
            box = text.get_window_extent(renderer).padded(3)
            if _inside(box, frame) and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
        if math.hypot(dx, dy) > 60:
            axes.add_line(Line2D((x, x + dx), (y, y + dy), transform=None, color=color, linewidth=0.6, zorder=1.5))


def _offsets() -> Iterator[tuple[float, float]]:
    """Places to try around a point, in pixels, the nearest first."""
    for radius in range(20, 700, 8):
        for step in range(16):
            angle = 2 * math.pi * step / 16
            yield 1.6 * radius * math.cos(angle), radius * math.sin(angle)


def _interval_box(axes: Axes, latency_ms: float, rate: Json) -> Bbox:
    """The pixels that a point and its interval cover, with a margin."""
    (x, low), (_, high) = axes.transData.transform([(latency_ms, rate["low"]), (latency_ms, rate["high"])])
    return Bbox([(x - 14, low - 5), (x + 14, high + 12)])


def _inside(box: Bbox, frame: Bbox) -> bool:
    return frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1
