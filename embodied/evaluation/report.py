"""A comparison as people read it: a table, a page of Markdown, a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from embodied.evaluation.comparison import p_in_words
from embodied.evaluation.comparison_plot import success_against_latency
from embodied.types import Json


@dataclass(frozen=True)
class ComparisonTable:
    """The comparison as text, for any medium."""

    title: str
    columns: tuple[str, ...]  # headings, some of two lines
    rows: list[list[str]]
    caption: str  # what the columns mean


def comparison_table(result: Json) -> ComparisonTable:
    """The comparison for a terminal, at most 100 columns wide if no label has more than 20 letters."""
    columns = ("policy", f"success\n[{result['confidence']:.0%}]", "last", "calls", "p50\nms", "p95\nms")
    columns += ("ms per\naction", "x\nfaster", "paired\np")
    return ComparisonTable(_title(result), columns, _cells(result), _caption(result))


def comparison_markdown(result: Json) -> str:
    """The comparison as a page of Markdown: table, what it shows, and what to beware of."""
    table = comparison_table(result)
    lines = [f"# {table.title}", ""]
    lines += [_markdown_row([column.replace("\n", " ") for column in table.columns])]
    lines += [_markdown_row(["---"] * len(table.columns)), *map(_markdown_row, table.rows)]
    lines += ["", table.caption, "", "## What it shows", ""]
    lines += [f"- {pair['sentence']}" for pair in result["pairs"]]
    if result["warnings"]:
        lines += ["", "## Beware", ""] + [f"- {warning}" for warning in result["warnings"]]
    return "\n".join(lines) + "\n"


def comparison_figure(result: Json, path: Path) -> None:
    """Draw success, with its interval, against the latency of an observation into `path` (PNG)."""
    points = [(row["label"], row["timings"]["observation_ms"]["p50"], row["success"]["ever"]) for row in result["rows"]]
    success_against_latency(_title(result), result["confidence"], points).savefig(path, format="png")


def _cells(result: Json) -> list[list[str]]:
    p_values = {pair["label"]: p_in_words(pair["p"]) for pair in result["pairs"]}
    return [
        [
            row["label"],
            "{k}/{n} [{low:.2f}, {high:.2f}]".format(**row["success"]["ever"]),
            "{k}/{n}".format(**row["success"]["last"]),
            f"{row['network_calls_per_observation']:.4g}",
            _three_digits(row["timings"]["observation_ms"]["p50"]),
            _three_digits(row["timings"]["observation_ms"]["p95"]),
            _three_digits(row["timings"]["action_ms_p50"]),
            _three_digits(row["timings"]["speed_ratio"]["per_action"]),
            p_values.get(row["label"], "-"),
        ]
        for row in result["rows"]
    ]


def _title(result: Json) -> str:
    return f"{result['task']}: success within {result['horizon']} steps, {len(result['shared_starts'])} shared starts"


def _caption(result: Json) -> str:
    caption = (
        "Calls, p50 and p95 are per observation at batch 1; ms per action is the p50 per executed action; "
        f"x faster (per action) and p, of the exact paired test (McNemar's), are against '{result['reference']}'."
    )
    pooled = [row for row in result["rows"] if len(row["seeds"]) > 1]
    if pooled:
        by_seed = "; ".join(
            f"{row['label']}: "
            + ", ".join(f"{k} (seed {seed})" for seed, k in zip(row["seeds"], row["successes_by_seed"], strict=True))
            for row in pooled
        )
        caption += (
            " Where seeds of the training are pooled, success counts the episodes of all, its interval is over starts, "
            "for these seeds and not for further ones, latency is the mean over them, and p is of sign flips over "
            "starts. "
            f"Successes of {len(result['shared_starts'])}: {by_seed}."
        )
    return caption


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
