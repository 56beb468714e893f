"""The data of a store as one picture: lengths, what scaling leaves, actions, jerk, standing still, and the warnings."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from embodied.datasets.episode_measures import EpisodeMeasure, StoreMeasures
from embodied.types import Json, TaskSpec

DPI = 100
MOST_ROWS = 20  # elements in one panel; of more, those that outliers stretch the most
BINS = 48
MOST_WARNINGS = 7
GOOD, BAD, INK, PALE = "#2a7f62", "#b9b9b9", "#30507a", "#a9bfdc"


def draw_data(report: Json, measures: StoreMeasures, spec: TaskSpec, path: Path) -> None:
    """Draw into `path` (PNG).

    Args:
        report: of `data_report.describe_data`.
    """
    figure = Figure(figsize=(11, 10), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)  # never a display, whatever the process has chosen for pyplot
    figure.suptitle(
        f"{report['task']}: {report['episodes']} episodes, {report['steps']} steps at {report['control_hz']:g} Hz",
        fontsize=13,
    )
    axes = figure.subplots(3, 2)
    _draw_lengths(axes[0, 0], measures, spec)
    _draw_ranges(axes[0, 1], report["elements"])
    _draw_actions(axes[1, 0], report, measures, spec)
    _draw_jerk(axes[1, 1], measures)
    _draw_idle(axes[2, 0], report, measures.episodes, spec)
    _draw_warnings(axes[2, 1], report["warnings"])
    figure.savefig(path, format="png", pil_kwargs={"optimize": True})


def _by_success(measures: StoreMeasures) -> list[tuple[str, str, list[EpisodeMeasure]]]:
    """Label, colour and episodes: those that succeed, then the others; none that is empty."""
    if not measures.is_recorded:
        return [("success not recorded", INK, measures.episodes)]
    groups = [
        ("success", GOOD, [episode for episode in measures.episodes if episode.success]),
        ("no success", BAD, [episode for episode in measures.episodes if not episode.success]),
    ]
    return [(f"{label} ({len(members)})", colour, members) for label, colour, members in groups if members]


def _draw_lengths(axes: Axes, measures: StoreMeasures, spec: TaskSpec) -> None:
    groups = _by_success(measures)
    lengths = [[episode.length for episode in members] for _, _, members in groups]
    bins = np.histogram_bin_edges(np.concatenate(lengths), bins=min(30, max(5, len(measures.episodes) // 3)))
    axes.hist(
        lengths, bins=bins, stacked=True, color=[c for _, c, _ in groups], label=[label for label, _, _ in groups]
    )
    median = float(np.median(np.concatenate(lengths)))
    axes.axvline(median, color="black", linewidth=1, linestyle="--", label=f"median {median:.0f}")
    _finish(axes, "Length of the episodes", f"steps (one takes {spec.dt_s:.3g} s)", "episodes")
    axes.legend(fontsize=8, frameon=False)


def _draw_ranges(axes: Axes, elements: Sequence[Json]) -> None:
    """Where the values lie once the smallest is at -1 and the largest at 1, as training scales them."""
    varying = [element for element in elements if element["maximum"] > element["minimum"]]
    shown = sorted(varying, key=lambda element: _scaled(element, "q995") - _scaled(element, "q005"))[:MOST_ROWS]
    shown = [element for element in elements if any(element is other for other in shown)]
    for place, element in enumerate(shown):
        colour = INK if element["key"] == "action" else GOOD
        axes.plot([-1, 1], [place, place], color=BAD, linewidth=1, zorder=1)
        for (low, high), width, alpha in ((("q005", "q995"), 5, 0.4), (("q25", "q75"), 9, 0.9)):
            ends = [_scaled(element, low), _scaled(element, high)]
            axes.plot(ends, [place, place], color=colour, linewidth=width, alpha=alpha, solid_capstyle="butt", zorder=2)
        axes.plot(_scaled(element, "q50"), place, "|", color="white", markersize=8, markeredgewidth=1.5, zorder=3)
    names = [f"{element['key'].removeprefix('state/')} {element['element']}" for element in shown]
    axes.set_yticks(range(len(shown)), names)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    left_out = f", {len(varying) - len(shown)} others left out" if len(varying) > len(shown) else ""
    title = f"What scaling to -1 .. 1 makes of the values{left_out}"
    _finish(axes, title, "line: all values; bar: 99 %; thick bar: half; white: median", "")


def _scaled(element: Json, quantile: str) -> float:
    span = element["maximum"] - element["minimum"]
    return 2 * (element[quantile] - element["minimum"]) / span - 1


def _draw_actions(axes: Axes, report: Json, measures: StoreMeasures, spec: TaskSpec) -> None:
    """A histogram an element of the action, one above the other, between its bounds or the ends of the data."""
    samples = measures.samples["action"]
    count = min(spec.action.size, MOST_ROWS)
    for place in range(count):
        low, high = _ends(spec, place, samples[:, place])
        shares = np.clip((samples[:, place] - low) / (high - low), 0, 1)  # beyond a bound counts at the bound
        heights, edges = np.histogram(shares, bins=BINS, range=(0, 1))
        base = count - 1 - place
        outline = base + 0.85 * heights / max(heights.max(), 1)
        axes.fill_between(edges, base, np.append(outline, outline[-1]), step="post", color=INK, alpha=0.75, linewidth=0)
        for x, key, side in ((0.0, "at_low", "left"), (1.0, "at_high", "right")):
            share = report["clipped"][place][key]
            if share >= 0.005:
                words = f"{share:.0%} at bound"
                axes.text(x, base + 0.88, words, ha=side, va="bottom", fontsize=7, color="#b03a2e")
    names = [f"{name}\n{unit}" if len(unit) < 16 and count <= 10 else name for name, unit in _named_units(spec)][:count]
    axes.set_yticks([count - 1 - place + 0.4 for place in range(count)], names, fontsize=8 if count <= 10 else 6)
    axes.set_ylim(-0.05, count + 0.1)
    axes.set_xlim(-0.02, 1.02)
    bounded = "its bounds" if np.isfinite([*spec.action.low, *spec.action.high]).all() else "its bounds or ends"
    _finish(axes, f"Actions ({report['representation']})", f"each element between {bounded}", "")
    axes.set_xticks([0, 0.5, 1], ["lowest", "middle", "highest"])


def _named_units(spec: TaskSpec) -> list[tuple[str, str]]:
    return list(zip(spec.action.elements, spec.action.units, strict=True))


def _ends(spec: TaskSpec, element: int, values: np.ndarray) -> tuple[float, float]:
    low, high = spec.action.low[element], spec.action.high[element]
    if not np.isfinite([low, high]).all():
        low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _draw_jerk(axes: Axes, measures: StoreMeasures) -> None:
    measured = [episode for episode in measures.episodes if episode.jerk is not None]
    for label, colour, members in reversed(_by_success(measures)):
        shown = [episode for episode in members if episode.jerk is not None]
        lengths, jerks = [episode.length for episode in shown], [episode.jerk for episode in shown]
        axes.plot(lengths, jerks, "o", color=colour, markersize=4, alpha=0.8, markeredgewidth=0, label=label)
    for episode in sorted(measured, key=lambda e: -(e.jerk or 0))[:3]:
        place = (episode.length, episode.jerk or 0.0)
        axes.annotate(str(episode.seed), place, (4, 2), textcoords="offset points", fontsize=7)
    axes.set_ylim(bottom=0)
    _finish(axes, "Jerk of the actions, an episode each", "steps", "share of the range, per step cubed")


def _draw_idle(axes: Axes, report: Json, episodes: Sequence[EpisodeMeasure], spec: TaskSpec) -> None:
    seconds = np.sort([episode.longest_idle * spec.dt_s for episode in episodes])[::-1]
    axes.fill_between(np.arange(len(seconds) + 1), np.append(seconds, seconds[-1]), step="post", color=PALE)
    axes.step(np.arange(len(seconds) + 1), np.append(seconds, seconds[-1]), where="post", color=INK, linewidth=1)
    axes.set_xlim(0, len(seconds))
    axes.set_ylim(0, max(seconds.max() * 1.1, spec.dt_s))
    title = f"Longest stretch without motion ({report['idle']['share']:.1%} of all steps are idle)"
    _finish(axes, title, "episodes, the longest first", "seconds")


def _draw_warnings(axes: Axes, warnings: Sequence[Json]) -> None:
    axes.set_axis_off()
    axes.set_title("What will hurt training", fontsize=10, loc="left")
    lines = [textwrap.fill(f"• {w['text']}", 78, subsequent_indent="   ") for w in warnings[:MOST_WARNINGS]]
    if len(warnings) > MOST_WARNINGS:
        lines.append(f"and {len(warnings) - MOST_WARNINGS} more, see the table of the command")
    words = "\n".join(lines) if lines else "Nothing that these figures show."
    axes.text(0, 0.98, words, va="top", fontsize=8, linespacing=1.35, transform=axes.transAxes)


def _finish(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=8, length=2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
