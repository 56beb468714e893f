"""The report of one evaluation as a page of HTML, from its summary (schemas/eval.schema.json) and pictures.

Rows of episodes may name a `task`, a `variant` of the scene with the `axis` that it varies, and the `stages` that they
reached; without them the page has no such sections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from embodied.catalog import in_words
from embodied.evaluation.compared_methods import executor_of
from embodied.evaluation.paired_proportions import paired_difference_interval
from embodied.evaluation.report_page import Picture, facts, folded, heading, page, paragraph, pictures, table
from embodied.evaluation.result_file import BASE
from embodied.evaluation.statistics import wilson_interval
from embodied.evaluation.suite_score import Stratum, suite_interval, suite_score
from embodied.evaluation.svg_charts import Mark, funnel_chart, histogram, interval_chart
from embodied.types import Json

LATENCIES = {
    "observation_ms": "one observation",
    "encode_ms": "of it, the encoder",
    "denoise_ms": "of it, the sampler",
    "network_call_ms": "one bare network call",
    "action_ms": "per executed action",
}


@dataclass(frozen=True)
class GalleryEpisode:
    """Pictures of a recorded episode."""

    row: Json  # of the summary's episodes
    frames: Sequence[Picture]


def evaluation_report(summary: Json, gallery: Sequence[GalleryEpisode]) -> str:
    """The page.

    Args:
        summary: of one evaluation; the keys that only a finished run has are not needed.
        gallery: recorded episodes, in the order that they are shown.
    """
    title = f"{summary['task']}: {summary['setting']}"
    parts = [heading(title, 1), paragraph(_headline(summary), "headline"), _facts(summary)]
    parts += _result(summary)
    ran = [row for row in summary["episodes"] if row["error"] is None]
    tasks = list(dict.fromkeys(row.get("task", summary["task"]) for row in ran))
    for task in tasks:
        of_task = [row for row in ran if row.get("task", summary["task"]) == task]
        suffix = f" of {task}" if len(tasks) > 1 else ""
        parts += _axes(of_task, suffix)
        in_base = [row for row in of_task if row.get("variant", BASE) == BASE]
        if 0 < len(in_base) < len(of_task):  # episodes from one start are alike: only these are one each
            of_task, suffix = in_base, f"{suffix} in the base scene"
        parts += _stages(of_task, suffix) + _steps_to_success(of_task, summary["horizon"], suffix)
    parts += _latency(summary["timings"]["latency"])
    parts += _gallery(gallery)
    parts += _episodes(summary["episodes"])
    return page(title, parts)


def _headline(summary: Json) -> str:
    ever = summary["success"]["ever"]
    if ever is None:
        return "No episode ran to its end."
    errors = f"; {summary['errors']} could not be run" if summary["errors"] else ""
    return (
        f"{ever['k']} of {ever['n']} episodes succeed: {ever['rate']:.1%}, 95 % interval {ever['low']:.1%} to "
        f"{ever['high']:.1%}{errors}."
    )


def _facts(summary: Json) -> str:
    checkpoint, machine = summary["checkpoint"], summary["machine"]
    starts = [row["start"] for row in summary["episodes"]]
    torch = f", torch {machine['torch']}" if machine["torch"] else ""
    rows = [
        ("task", f"{summary['task']}, horizon {summary['horizon']} steps"),
        ("policy", " ".join(str(summary[key]) for key in ("policy", "network", "encoder") if summary.get(key))),
        ("setting", _settings(summary)),
        ("executor", in_words(executor_of(summary)) + _disturbed(summary)),
        ("checkpoint", _checkpoint(checkpoint)),
        ("starts", f"{len(set(starts))} from {min(starts)} to {max(starts)}" if starts else "none"),
        ("machine", f"{machine['cpu']}, {machine['cores']} cores, {machine['gpu'] or 'no GPU'}, {machine['system']}"),
        ("program", f"embodied {summary['version']}, Python {machine['python']}{torch}"),
    ]
    return facts(rows)


def _settings(summary: Json) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in summary["run_time_settings"].items())
    return f"{summary['setting']} ({settings})" if settings else summary["setting"]


def _disturbed(summary: Json) -> str:
    delay = f", delay of {summary['delay_steps']} control steps" if summary.get("delay_steps") else ""
    return delay + (f", action noise {summary['action_noise']:g}" if summary.get("action_noise") else "")


def _checkpoint(checkpoint: Json) -> str:
    step = "" if checkpoint["step"] is None else f", step {checkpoint['step']}"
    seed = "" if checkpoint["seed"] is None else f", training seed {checkpoint['seed']}"
    return f"{checkpoint['run']}{step}{seed}"


def _result(summary: Json) -> list[str]:
    rows, marks = [], []
    for mode, name in (("ever", "success within the horizon"), ("last", "success at the last step")):
        rate = summary["success"][mode]
        if rate is not None:
            rows.append([name, f"{rate['k']}/{rate['n']}", f"{rate['rate']:.3f}", _interval(rate), "Wilson"])
            marks.append(Mark(name, rate["rate"], rate["low"], rate["high"], f"{rate['k']}/{rate['n']}"))
    bounds = summary.get("error_bounds")
    if summary["errors"] and bounds is not None:
        both = bounds["ever"]
        rows.append(
            [
                "the same, with the errors",
                f"errors: {summary['errors']}",
                "-",
                f"{both['if_failed']:.3f} to {both['if_succeeded']:.3f}",
                "had they all failed, had they all succeeded",
            ]
        )
    reward = summary.get("mean_max_reward")
    if reward is not None:
        rows.append(
            ["mean maximum reward", f"n = {reward['n']}", f"{reward['mean']:.3f}", _interval(reward), "bootstrap"]
        )
    for mean in summary.get("protocols", []):
        name = f"{mean['protocol']}, plain mean over {mean['variants']} variants"
        ever = mean["ever"]
        rows.append([name, f"{ever['starts']} starts", f"{ever['mean']:.3f}", _interval(ever), "bootstrap over starts"])
    parts = [heading("Result"), table(["", "count", "value", "95 % interval", "method"], rows)]
    if marks:
        parts.append(interval_chart("success", marks, "success rate, 95 % interval"))
    return parts


def _interval(figure: Json) -> str:
    return f"{figure['low']:.3f} to {figure['high']:.3f}"


def _axes(rows: Sequence[Json], suffix: str) -> list[str]:
    """Success in each variant of the scene, grouped by the axis that it varies."""
    variants = list(dict.fromkeys((row.get("axis", BASE), row.get("variant", BASE)) for row in rows))
    if len(variants) < 2:
        return []
    base = {row["start"]: row for row in rows if row.get("variant", BASE) == BASE}
    parts = [
        heading(f"Variants of the scene{suffix}"),
        paragraph(
            "One factor is varied at a time. Each variant has Wilson's interval; the mean of an axis, in orange, has "
            "one of a bootstrap over start states. The difference is to the base on the same starts, with Tango's "
            "interval."
        ),
    ]
    marks, lines = [], []
    for axis in dict.fromkeys(axis for axis, _ in variants):
        of_axis = [row for row in rows if row.get("axis", BASE) == axis]
        names = [variant for of_variant, variant in variants if of_variant == axis]
        for variant in names:
            of_variant = [row for row in of_axis if row.get("variant", BASE) == variant]
            k, n = sum(row["success_ever"] for row in of_variant), len(of_variant)
            low, high = wilson_interval(k, n)
            marks.append(
                Mark(variant if variant.startswith(axis) else f"{axis}: {variant}", k / n, low, high, f"{k}/{n}")
            )
            difference = "-" if variant == BASE else _difference(of_variant, base)
            lines.append([axis, variant, f"{k}/{n}", f"{k / n:.3f}", f"{low:.3f} to {high:.3f}", difference])
        if len(names) > 1:
            stratum = _by_start(of_axis)
            low, high = suite_interval([stratum])
            marks.append(Mark(f"{axis}: mean", suite_score([stratum]), low, high, strong=True))
    parts.append(interval_chart("success in each variant", marks, "success rate, 95 % interval"))
    columns = ["axis", "variant", "count", "rate", "95 % interval", "difference to the base"]
    return [*parts, folded("The same as a table", table(columns, lines))]


def _by_start(rows: Sequence[Json]) -> Stratum:
    starts = sorted({row["start"] for row in rows})
    grouped = [[row["success_ever"] for row in rows if row["start"] == start] for start in starts]
    return Stratum(
        np.array([sum(group) for group in grouped], float), np.array([len(group) for group in grouped], float)
    )


def _difference(rows: Sequence[Json], base: dict[int, Json]) -> str:
    pairs = [(row["success_ever"], base[row["start"]]["success_ever"]) for row in rows if row["start"] in base]
    if not pairs:
        return "no shared start"
    counts = [pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))]
    low, high = paired_difference_interval(*counts)
    return f"{(counts[1] - counts[2]) / len(pairs):+.3f} [{low:+.3f}, {high:+.3f}]"


def _stages(rows: Sequence[Json], suffix: str) -> list[str]:
    """How far the episodes get."""
    staged = [row for row in rows if row.get("stages")]
    names = list(dict.fromkeys(name for row in staged for name in row["stages"]))
    if not names:
        return []
    marks = []
    for name in names:
        k = sum(bool(row["stages"].get(name)) for row in staged)
        marks.append(_reached(name, k, len(staged)))
    marks.append(_reached("success", sum(row["success_ever"] for row in staged), len(staged), strong=True))
    return [
        heading(f"Stages{suffix}"),
        paragraph(f"Of {len(staged)} episodes, how many reach each stage of the task, with Wilson's 95 % interval."),
        funnel_chart("stages", marks),
    ]


def _reached(name: str, k: int, n: int, strong: bool = False) -> Mark:
    low, high = wilson_interval(k, n)
    return Mark(name, k / n, low, high, f"{k}/{n}", strong)


def _steps_to_success(rows: Sequence[Json], horizon: int, suffix: str) -> list[str]:
    steps = [row["first_success"] for row in rows if row["first_success"] is not None]
    parts = [heading(f"Steps to success{suffix}")]
    if not steps:
        return [*parts, paragraph("No episode succeeded.")]
    return [
        *parts,
        paragraph(
            f"Of the {len(steps)} episodes that succeed: median {median(steps):g} steps, from {min(steps)} to "
            f"{max(steps)}, of {horizon}."
        ),
        histogram("steps to the first success", steps, horizon, "control steps until the first success"),
    ]


def _latency(latency: Json) -> list[str]:
    rows = []
    for key, name in LATENCIES.items():
        if key in latency:
            figures = latency[key]
            rows.append([name, *(f"{figures[p]:.3g}" if p in figures else "-" for p in ("p50", "p95", "p99", "mean"))])
    rows.append(["first observation of an episode", f"{latency['first_observation_ms']:.3g}", "-", "-", "-"])
    return [
        heading("Latency"),
        paragraph(f"At batch 1, in ms; CPU threads of the policy: {latency['threads']}."),
        table(["", "p50", "p95", "p99", "mean"], rows),
    ]


def _gallery(gallery: Sequence[GalleryEpisode]) -> list[str]:
    if not gallery:
        return []
    failures = [shown for shown in gallery if not shown.row["success_ever"]]
    others = [shown for shown in gallery if shown.row["success_ever"]]
    parts = []
    for title, group in (("Failures", failures), ("Successes", others)):
        if group:
            parts.append(heading(title))
            for shown in group:
                parts.append(heading(_episode_title(shown.row), 3))
                parts.append(pictures(shown.frames) if shown.frames else paragraph("Nothing of it can be drawn."))
    return parts


def _episode_title(row: Json) -> str:
    parts = [f"start {row['start']}"]
    if row.get("variant", BASE) != BASE:
        parts.append(f"variant {row['variant']}")
    if row["first_success"] is not None:
        parts.append(f"success after {row['first_success']} steps" + ("" if row["success_last"] else ", lost again"))
    else:
        reached = [name for name, done in (row.get("stages") or {}).items() if done]
        parts.append(f"no success, reached: {' '.join(reached)}" if reached else "no success")
    if row.get("max_reward") is not None:
        parts.append(f"maximum reward {row['max_reward']:.3g}")
    if row["recording"]:
        parts.append(row["recording"])
    return ", ".join(parts)


def _episodes(rows: Sequence[Json]) -> list[str]:
    columns = ["start", "variant", "success", "at the last step", "first success", "maximum reward", "steps", "error"]
    lines = [
        [
            str(row["start"]),
            row.get("variant", BASE),
            "-" if row["error"] else "yes" if row["success_ever"] else "no",
            "-" if row["error"] else "yes" if row["success_last"] else "no",
            "-" if row["first_success"] is None else str(row["first_success"]),
            "-" if row.get("max_reward") is None else f"{row['max_reward']:.3g}",
            str(row["length"]),
            row["error"] or "",
        ]
        for row in rows
    ]
    errors = [line for line in lines if line[-1]]
    parts = [heading("Episodes")]
    if errors:
        parts += [paragraph(f"{len(errors)} could not be run:"), table(columns, errors)]
    return [*parts, folded(f"All {len(lines)}", table(columns, lines))]
