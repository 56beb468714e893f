"""Success over the delay between robot and policy, a line for each way of execution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from embodied.types import Json

DPI = 150


def success_over_delay(title: str, delays_ms: Sequence[float], rates: Mapping[str, Sequence[Json]]) -> Figure:
    """
    Args:
        rates: by the name of each line, at each delay, with "rate", "low" and "high".
    """
    figure = Figure(figsize=(8, 4.5), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)  # never a display, whatever the process has chosen for pyplot
    axes = figure.add_subplot()
    for index, (name, line) in enumerate(rates.items()):
        color = f"C{index % 10}"
        axes.plot(delays_ms, [rate["rate"] for rate in line], "o-", color=color, label=name)
        low, high = ([rate[end] for rate in line] for end in ("low", "high"))
        axes.fill_between(delays_ms, low, high, color=color, alpha=0.12, linewidth=0)
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("delay from an observation to the actions computed from it (ms)")
    axes.set_ylabel("success rate (95% interval)")
    axes.set_xticks(list(delays_ms))
    axes.set_ylim(-0.03, 1.03)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    return figure
