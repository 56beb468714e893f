"""Simulation against the real robot as people read it: a table, a page of Markdown, a figure."""

from __future__ import annotations

import math

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from embodied.evaluation.report_table import ReportTable, section
from embodied.types import Json

DPI, COLUMNS = 150, 3
Figures = dict[str, Figure]


def agreement_table(result: Json) -> ReportTable:
    """One row for each simulation of each task."""
    published = any(row["published"] for row in result["agreements"])
    interval = f"[{result['confidence']:.0%}]"
    columns = ("task", "simulation", "policies", f"MMRV\n{interval}", f"Pearson r\n{interval}")
    rows = []
    for row in result["agreements"]:
        cells = [row["task"], row["simulation"], str(len(row["policies"]))]
        cells += [_figure(row["mmrv"]), "none" if row["pearson"] is None else _figure(row["pearson"])]
        if published:
            theirs = row["published"]
            cells += ["-"] if theirs is None else [f"{theirs['mmrv']:.3f}, {theirs['pearson']:.3f}"]
        rows.append(cells)
    columns += ("published\nMMRV, r",) if published else ()
    return ReportTable("simulation against the real robot", columns, rows, _caption(result))


def agreement_markdown(result: Json) -> str:
    """The agreement as a page of Markdown."""
    return "\n".join(agreement_table(result).markdown() + section("Beware", result["warnings"]))


def agreement_figures(result: Json) -> Figures:
    """Simulated over real success, a panel for each simulation of each task."""
    count = len(result["agreements"])
    columns = min(COLUMNS, count)
    lines = math.ceil(count / columns)
    figure = Figure(figsize=(1 + 3.2 * columns, 0.4 + 3.3 * lines), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)  # never a display, whatever the process has chosen for pyplot
    all_axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, row in zip(all_axes, result["agreements"], strict=False):
        axes.axline((0, 0), slope=1, color="0.7", linewidth=1, linestyle="--", zorder=0)
        for color, policy in enumerate(row["policies"]):
            axes.plot(policy["real"], policy["sim"], "o", color=f"C{color % 10}", label=policy["label"])
        r = "none" if row["pearson"] is None else f"{row['pearson']['value']:.2f}"
        axes.set_title(f"{row['task']}, {row['simulation']}\nMMRV {row['mmrv']['value']:.3f}, r {r}", fontsize=9)
        axes.set_xlim(-0.05, 1.05)
        axes.set_ylim(-0.05, 1.05)
        axes.set_aspect("equal")
        axes.set_xlabel("real success", fontsize=8)
        axes.set_ylabel("simulated success", fontsize=8)
        axes.grid(alpha=0.3)
    for axes in all_axes[count:]:
        axes.set_visible(False)
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)
    return {"figure": figure}


def _caption(result: Json) -> str:
    caption = (
        "MMRV is the mean over policies of the largest real difference to a policy that the simulation ranks the other "
        "way round (0 is best), r is Pearson's. Intervals are of a bootstrap over the policies"
    )
    redrawn = [row["episodes_redrawn"] for row in result["agreements"]]
    if any(of_one["real"] or of_one["sim"] for of_one in redrawn):
        return caption + ", which also draws the episodes anew where their number is known."
    return caption + "."


def _figure(figure: Json) -> str:
    return "{value:.3f} [{low:.2f}, {high:.2f}]".format(**figure)
