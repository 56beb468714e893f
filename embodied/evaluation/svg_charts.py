"""Small charts as SVG text, to stand in a page of HTML. What a mark means shows when the pointer is over it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

LABEL_WIDTH, PLOT_WIDTH, NOTE_WIDTH = 190, 420, 130  # pixels
LINE, TOP, BOTTOM = 26, 8, 34
HISTOGRAM_HEIGHT = 150
LONGEST_LABEL = 27  # letters that fit; the rest shows when the pointer is over the mark


@dataclass(frozen=True)
class Mark:
    """One line of a chart."""

    label: str
    value: float
    low: float
    high: float
    note: str = ""  # at the right end
    strong: bool = False  # a mean over other marks


def interval_chart(title: str, marks: Sequence[Mark], axis: str) -> str:
    """Rates from 0 to 1 with their intervals, one a line, the first on top."""
    height = TOP + LINE * len(marks) + BOTTOM
    parts = _axis(TOP + LINE * len(marks), axis, (0.0, 1.0), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0], "{:.1f}".format)
    for line, mark in enumerate(marks):
        y = TOP + LINE * (line + 0.5)
        kind = "mean" if mark.strong else "mark"
        tip = f"{mark.label}: {mark.value:.3f} [{mark.low:.3f}, {mark.high:.3f}] {mark.note}"
        parts += [
            _text(LABEL_WIDTH - 10, y, _shortened(mark.label), "end", "strong" if mark.strong else ""),
            f'<g class="{kind}"><title>{html.escape(tip)}</title>'
            f'<rect class="hit" x="{LABEL_WIDTH}" y="{y - LINE / 2:.1f}" width="{PLOT_WIDTH}" height="{LINE}"/>'
            f'<line x1="{_x(mark.low):.1f}" y1="{y:.1f}" x2="{_x(mark.high):.1f}" y2="{y:.1f}"/>'
            f'<circle cx="{_x(mark.value):.1f}" cy="{y:.1f}" r="5"/></g>',
            _text(LABEL_WIDTH + PLOT_WIDTH + 12, y, mark.note, "start"),
        ]
    return _svg(title, height, parts)


def funnel_chart(title: str, marks: Sequence[Mark]) -> str:
    """Rates as bars one below the other, with their intervals: how many get as far as each stage."""
    height = TOP + LINE * len(marks) + BOTTOM
    parts = _axis(
        TOP + LINE * len(marks), "share of the episodes", (0.0, 1.0), [0.0, 0.25, 0.5, 0.75, 1.0], "{:.0%}".format
    )
    for line, mark in enumerate(marks):
        y = TOP + LINE * (line + 0.5)
        tip = f"{mark.label}: {mark.value:.3f} [{mark.low:.3f}, {mark.high:.3f}] {mark.note}"
        parts += [
            _text(LABEL_WIDTH - 10, y, _shortened(mark.label), "end", "strong" if mark.strong else ""),
            f'<g class="{"mean" if mark.strong else "mark"}"><title>{html.escape(tip)}</title>'
            f'<rect class="bar" x="{LABEL_WIDTH}" y="{y - 9:.1f}" width="{mark.value * PLOT_WIDTH:.1f}" height="18"/>'
            f'<line class="whisker" x1="{_x(mark.low):.1f}" y1="{y:.1f}" x2="{_x(mark.high):.1f}" y2="{y:.1f}"/></g>',
            _text(LABEL_WIDTH + PLOT_WIDTH + 12, y, mark.note, "start"),
        ]
    return _svg(title, height, parts)


def histogram(title: str, values: Sequence[int], highest: int, axis: str, bins: int = 20) -> str:
    """How many of the values, from 1 to `highest`, lie in each of some equal ranges."""
    bins = min(bins, highest)
    counts = [0] * bins
    for value in values:
        counts[min((value - 1) * bins // highest, bins - 1)] += 1
    most = max([1, *counts])
    base = TOP + HISTOGRAM_HEIGHT
    ticks = sorted({0, highest // 4, highest // 2, 3 * highest // 4, highest})
    parts = _axis(base, axis, (0, highest), ticks, "{:.0f}".format)
    parts += [_text(LABEL_WIDTH - 10, TOP + 6, f"{most}", "end"), _text(LABEL_WIDTH - 10, base - 4, "0", "end")]
    parts.append(_text(LABEL_WIDTH - 40, TOP + HISTOGRAM_HEIGHT / 2, "episodes", "end"))
    width = PLOT_WIDTH / bins
    for index, count in enumerate(counts):
        bar = HISTOGRAM_HEIGHT * count / most
        first, last = index * highest // bins + 1, (index + 1) * highest // bins
        tip = f"{count} episodes in {first} to {last} steps"
        parts.append(
            f'<g class="mark"><title>{html.escape(tip)}</title><rect class="bar" '
            f'x="{LABEL_WIDTH + index * width + 1:.1f}" y="{base - bar:.1f}" width="{width - 2:.1f}" '
            f'height="{bar:.1f}"/></g>'
        )
    return _svg(title, base + BOTTOM, parts)


def _shortened(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…"


def _x(share: float) -> float:
    return LABEL_WIDTH + share * PLOT_WIDTH


def _axis(y: float, name: str, ends: tuple[float, float], ticks: Sequence[float], form) -> list[str]:
    parts = [f'<line class="axis" x1="{LABEL_WIDTH}" y1="{y}" x2="{LABEL_WIDTH + PLOT_WIDTH}" y2="{y}"/>']
    for tick in ticks:
        x = _x((tick - ends[0]) / (ends[1] - ends[0]))
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{y}"/>')
        parts.append(_text(x, y + 12, form(tick), "middle", "small"))
    parts.append(_text(LABEL_WIDTH + PLOT_WIDTH / 2, y + 27, name, "middle", "small"))
    return parts


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    marked = f' class="{kind}"' if kind else ""
    return f'<text{marked} x="{x:.1f}" y="{y:.1f}" dy="0.35em" text-anchor="{anchor}">{html.escape(text)}</text>'


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    width = LABEL_WIDTH + PLOT_WIDTH + NOTE_WIDTH
    return (
        f'<svg viewBox="0 0 {width} {height:.0f}" width="{width}" height="{height:.0f}" role="img" '
        f'aria-label="{html.escape(title)}">{"".join(parts)}</svg>'
    )
