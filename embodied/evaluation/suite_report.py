"""A comparison over several tasks as people read it: a table, a page of Markdown, a figure."""

from __future__ import annotations

from matplotlib.figure import Figure

from embodied.evaluation.comparison_report import comparison_table, watched
from embodied.evaluation.forest_plot import Estimate, differences_panel, forest_figure, rates_panel
from embodied.evaluation.report_table import ReportTable, section
from embodied.types import Json


def suite_table(result: Json) -> ReportTable:
    """One row a method, one column a task."""
    short = _short(result["tasks"])
    columns = ("policy", f"score\n[{result['confidence']:.0%}]", *short)
    differences = {pair["label"]: pair["difference"] for pair in result["pairs"]}
    columns += ("difference",) if differences else ()
    rows = []
    for row in result["rows"]:
        cells = [row["label"], "{rate:.3f} [{low:.2f}, {high:.2f}]".format(**row["score"])]
        cells += ["{k}/{n}".format(**of_task["success"]) for of_task in row["by_task"]]
        if differences:
            difference = differences.get(row["label"])
            cells.append("{estimate:+.3f} [{low:+.2f}, {high:+.2f}]".format(**difference) if difference else "-")
        rows.append(cells)
    return ReportTable(
        f"suite of {len(result['tasks'])} tasks: {', '.join(result['tasks'])}", columns, rows, _caption(result)
    )


def suite_markdown(result: Json) -> str:
    """The suite as a page of Markdown: scores, then the table of each task."""
    lines = suite_table(result).markdown()
    lines += section("What it shows", [pair["sentence"] for pair in result["pairs"]])
    for comparison in result["comparisons"]:
        lines += comparison_table(comparison).markdown("##")
        lines += [f"- {pair['sentence']}" for pair in comparison["pairs"]]
        lines += [f"- {sentence}" for sentence in watched(comparison)] + [""]
    lines += section("Beware", result["warnings"])
    return "\n".join(lines)


def suite_figures(result: Json) -> dict[str, Figure]:
    """Scores, the success within each task, and the differences of the scores."""
    confidence = result["confidence"]
    scores = [
        Estimate(row["label"], row["score"]["rate"], row["score"]["low"], row["score"]["high"], color=color)
        for color, row in enumerate(result["rows"])
    ]
    panels = [rates_panel("suite score", f"mean of the tasks' success rates ({confidence:.0%} interval)", scores)]
    for index, task in enumerate(result["tasks"]):
        estimates = []
        for color, row in enumerate(result["rows"]):
            success = row["by_task"][index]["success"]
            note = "{k}/{n}".format(**success)
            estimates.append(Estimate(row["label"], success["rate"], success["low"], success["high"], note, color))
        panels.append(rates_panel(task, "success rate", estimates))
    if result["pairs"]:
        differences = [
            Estimate(pair["label"], difference["estimate"], difference["low"], difference["high"], color=color)
            for color, pair in enumerate(result["pairs"], 1)
            for difference in [pair["difference"]]
        ]
        title = f"difference of the scores to '{result['reference']}'"
        panels.append(differences_panel(title, f"difference ({confidence:.0%} interval)", differences))
    return {"figure": forest_figure(f"suite of {len(result['tasks'])} tasks", panels)}


def _caption(result: Json) -> str:
    caption = (
        "The score is the mean of the tasks' success rates, each task counting the same. Its interval is of a "
        "bootstrap that draws start states within each task, with all episodes from a start together; tasks are fixed."
    )
    if result["pairs"]:
        caption += f" Differences are to '{result['reference']}', with an interval of the same bootstrap."
    return caption


def _short(tasks: list[str]) -> list[str]:
    """Names without the family that all have in common."""
    families = {task.rpartition("/")[0] for task in tasks}
    return [task.rpartition("/")[2] for task in tasks] if len(families) == 1 else tasks
