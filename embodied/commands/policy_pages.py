"""The pages of `embodied bench policy`, from its small files alone; they can be written from part of them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from embodied.commands.bench_pages import markdown, results_folder
from embodied.commands.policy_cells import Kept
from embodied.commands.policy_conditions import conditions_section, delay_panel
from embodied.commands.policy_matrix import Column, PolicyCell, PolicyMatrix
from embodied.evaluation.delay_plot import delay_figure
from embodied.evaluation.frontier import (
    Paired,
    RewardDifference,
    cheapest_keeping,
    is_saturated,
    keeps_success,
    mean_comparison,
    paired,
    reward_difference,
)
from embodied.evaluation.frontier_plot import FrontierPanel, FrontierPoint, frontier_figure
from embodied.types import Json

PAGE = "README.md"
FIGURES = {False: "frontier.png", True: "delay.png"}  # by whether there are conditions
FIGURE_ENGINE = "eager"
ENGINES = {"eager": "eager", "onnxruntime": "ONNX Runtime"}
WIDTH = 120  # of the page's text
COLUMNS = (
    *("method", "success ever", "rate [95 % Wilson]", "at the last step", "against reference"),
    *("mean max. reward", "against reference"),
    *("calls / observation", "calls / action", "first calls", "p50 (p95) ms / observation, eager", "/ action"),
    *("p50 (p95) ms, ONNX Runtime", "/ action", "first ms", "jerk", "seam jump", "training min"),
)


def write_pages(kept: Kept, matrix: PolicyMatrix) -> Path:
    """README.md of a matrix, from the cells that are there.

    Returns:
        its path.

    Raises:
        UserError: a cell that cannot be read, or a folder that cannot be written.
    """
    with results_folder(kept.folder) as folder:
        figure = _figure(kept, matrix)
        if figure is not None:
            figure.savefig(folder / FIGURES[matrix.has_conditions], format="png")
        page = folder / PAGE
        page.write_text(_page(kept, matrix, has_figure=figure is not None), encoding="utf-8")
        return page


def _page(kept: Kept, matrix: PolicyMatrix, has_figure: bool) -> str:
    parts = [_head(kept, matrix)]
    if has_figure:
        parts.append(f"![{matrix.title}, by task]({FIGURES[matrix.has_conditions]})\n")
    parts.append(_means(kept, matrix))
    parts += [_column(kept, matrix, column) for column in matrix.columns]
    parts += [_unmeasured(kept, matrix), _runs(kept, matrix)]
    return "\n".join(part for part in parts if part)


def _found(kept: Kept, matrix: PolicyMatrix, column: Column) -> list[tuple[PolicyCell, Json]]:
    """The cells of a column that are there, in the order of the matrix."""
    cells = [cell for cell in matrix.cells if cell.column == column]
    return [(cell, facts) for cell in cells if (facts := kept.cell(cell)) is not None]


def _figure(kept: Kept, matrix: PolicyMatrix) -> Figure | None:
    """Success against delay or against latency; None where there is nothing to show yet."""
    if matrix.has_conditions:
        found = ((column.label, _found(kept, matrix, column)) for column in matrix.columns)
        delays = [panel for label, cells in found if (panel := delay_panel(label, matrix.conditions, cells))]
        return delay_figure(delays, "control steps") if delays else None
    panels = _panels(kept, matrix)
    return frontier_figure(panels, matrix.baseline) if panels else None


def _panels(kept: Kept, matrix: PolicyMatrix) -> list[FrontierPanel]:
    """Of the columns whose latency has been measured."""
    panels = []
    for column in matrix.columns:
        timed = kept.latency(column)
        points = []
        for cell, facts in _found(kept, matrix, column):
            timings = _latency(timed, cell.row.label, FIGURE_ENGINE)
            if timings is not None:
                p50_ms = timings["observation_ms"]["p50"]
                points.append(FrontierPoint(cell.row.label, p50_ms, facts["success"]["ever"]))
        if points:
            panels.append(FrontierPanel(column.label, tuple(points)))
    return panels


def _head(kept: Kept, matrix: PolicyMatrix) -> str:
    found = [facts for column in matrix.columns for _, facts in _found(kept, matrix, column)]
    machines = sorted({f"{facts['machine']['cpu']}, {facts['machine']['cores']} cores" for facts in found})
    sentences = [
        f"Written by `embodied bench policy plan={matrix.name}`: {len(found)} of {len(matrix.cells)} cells are there.",
        "Success is ever within the task's horizon, on starts that no demonstration began from, the same ones for "
        "every method of a column.",
        "One network and one training serve the rows of a method; checkpoints are the last ones.",
        "Jerk and seam jump are root mean squares of the actions asked for, in half action ranges.",
    ]
    if matrix.reference:
        sentences.append(
            f"Beside success stands exact McNemar against {matrix.reference} on shared starts; where a task grades how "
            "near an episode came, its largest reward, and the mean difference on shared starts."
        )
    if not matrix.has_conditions:
        sentences.append(
            "Latency is of a whole observation at batch 1 with one thread, measured apart, all methods of a column in "
            "turn. Trainings ran beside each other, so their minutes are upper bounds and compare no methods. A "
            "sampler keeps the success of the reference where it is neither significantly below it on shared starts "
            "nor below its interval; baselines are samplers of the reference's network, rivals of another."
        )
    own = [f"{row.label} with {' '.join(row.evaluation)}" for row in matrix.rows if row.evaluation]
    if own:
        sentences.append(f"Evaluated otherwise than the rest: {'; '.join(own)}.")
    machines_in_words = f"Evaluated on {'; '.join(machines) or 'nothing yet'}; trained on {_devices(kept, matrix)}."
    text = textwrap.fill(" ".join(sentences), WIDTH, break_on_hyphens=False)
    return f"# {matrix.title}\n\n{text}\n\n{machines_in_words}\n"


def _devices(kept: Kept, matrix: PolicyMatrix) -> str:
    """What the trainings of the cells ran on."""
    trainings = [kept.training(cell) for column in matrix.columns for cell, _ in _found(kept, matrix, column)]
    return ", ".join(sorted({_device(training) for training in trainings if training is not None})) or "nothing yet"


def _column(kept: Kept, matrix: PolicyMatrix, column: Column) -> str:
    found = _found(kept, matrix, column)
    if not found:
        return ""
    heading = f"## {column.label}\n"
    if column.evaluation:
        heading += f"\nEvaluated with {', '.join(column.evaluation)}.\n"
    if matrix.has_conditions:
        return f"{heading}\n{conditions_section(matrix.conditions, found)}"
    timed = kept.latency(column)
    reference = next((facts for cell, facts in found if cell.row.label == matrix.reference), None)
    lines = [_line(cell, facts, reference, timed, kept.training(cell)) for cell, facts in found]
    parts = [heading, markdown(COLUMNS, lines), _timed_fresh(timed)]
    if reference is not None:
        parts.append(_verdict(matrix, found, reference, timed))
    return "\n".join(part for part in parts if part)


def _timed_fresh(timed: Json | None) -> str:
    """Of which methods the latency is one of fresh weights."""
    rows = [] if timed is None else timed["rows"]
    fresh = dict.fromkeys(row["label"] for row in rows if row.get("weights") == "fresh")
    return f"Latency with fresh weights of the same shape: {', '.join(fresh)}.\n" if fresh else ""


def _line(
    cell: PolicyCell, facts: Json, reference: Json | None, timed: Json | None, training: Json | None
) -> list[str]:
    ever, last = facts["success"]["ever"], facts["success"]["last"]
    reward, motion = facts["mean_max_reward"], facts["motion"]
    graded = None if reference is None else reward_difference(facts, reference)
    eager, onnx = _latency(timed, cell.row.label, "eager"), _latency(timed, cell.row.label, "onnxruntime")
    per_action = facts["calls_per_action"] / facts["calls_per_observation"] if facts["calls_per_observation"] else None
    return [
        cell.row.label,
        f"{ever['k']}/{ever['n']}",
        f"{ever['rate']:.3f} [{ever['low']:.3f}, {ever['high']:.3f}]",
        f"{last['rate']:.2f}",
        "" if reference is None or reference is facts else _pair_in_words(paired(facts, reference)),
        "" if reward is None else f"{reward['mean']:.3f} [{reward['low']:.3f}, {reward['high']:.3f}]",
        "" if graded is None or reference is facts else _difference(graded),
        f"{facts['calls_per_observation']:g}",
        f"{facts['calls_per_action']:g}",
        f"{facts['first_observation_calls']:g}",
        *_milliseconds(eager, per_action),
        *_milliseconds(onnx, per_action),
        "" if eager is None else f"{eager['first_observation_ms']:.1f}",
        *("" if motion[name] is None else f"{motion[name]:.4f}" for name in ("jerk", "seam_jump")),
        "" if training is None else _training_time(training),
    ]


def _training_time(training: Json) -> str:
    """In minutes, and on what, if not on a CPU."""
    minutes, device = training["timings"]["train_min"], _device(training)
    time = f"{minutes:.0f}" if minutes >= 10 else f"{minutes:.1f}"
    return time if device == "cpu" else f"{time} ({device})"


def _device(training: Json) -> str:
    """What a training ran on; versions that did not note it trained on the GPU of their machine, if it had one."""
    if "device" in training:
        return training["device"] or "unknown device"
    return training["machine"].get("gpu") or "cpu"


def _pair_in_words(pair: Paired | None) -> str:
    if pair is None:
        return "no shared start"
    return f"+{pair.only_mine} -{pair.only_theirs} of {pair.n}, p {pair.p:.2g}, {_difference(pair)}"


def _difference(pair: Paired | RewardDifference) -> str:
    return f"{pair.difference:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}]"


def _latency(timed: Json | None, label: str, engine: str) -> Json | None:
    """Timings of a method on an engine; None where it was not timed or cannot run there."""
    rows = [] if timed is None else timed["rows"]
    return next((r["timings"] for r in rows if (r["label"], r["engine"]) == (label, engine) and r["timings"]), None)


def _milliseconds(timings: Json | None, per_action: float | None) -> tuple[str, str]:
    """Of an observation, and of an action that is executed."""
    if timings is None:
        return "", ""
    observation = timings["observation_ms"]
    action = "" if per_action is None else f"{observation['p50'] * per_action:.2f}"
    return f"{observation['p50']:.2f} ({observation['p95']:.2f})", action


def _verdict(
    matrix: PolicyMatrix, cells: Sequence[tuple[PolicyCell, Json]], reference: Json, timed: Json | None
) -> str:
    """Whether the column tells methods apart, and the speed-up over the cheapest samplers that keep the success."""
    by_label = {cell.row.label: facts for cell, facts in cells}
    sentences, others = [], []
    if is_saturated(list(by_label.values()), reference):
        sentences.append(
            f"Saturated: every method that is measured ({len(by_label)} of {len(matrix.rows)}) lies within the "
            f"interval of {matrix.reference}."
        )
    here = [label for label in matrix.headline if label in by_label]
    keeping = [label for label in here if keeps_success(by_label[label], reference)]
    for kind, labels in (("baseline", matrix.baseline), ("rival", matrix.rivals)):
        present = [by_label[label] for label in labels if label in by_label]
        if present:
            missing = [label for label in labels if label not in by_label]
            among = f" of those measured (not: {', '.join(missing)})" if missing else ""
            cheapest = cheapest_keeping(present, reference)
            sentences.append(
                f"No {kind}{among} keeps the success of {matrix.reference}."
                if cheapest is None
                else f"The cheapest {kind}{among} that keeps the success of {matrix.reference}: {cheapest['label']}."
            )
            others += [] if cheapest is None else [cheapest["label"]]
    sentences += [f"{label} does not keep it." for label in here if label not in keeping]
    text = textwrap.fill(" ".join(sentences), WIDTH, break_on_hyphens=False)
    table = _times_as_long(keeping, list(dict.fromkeys([*others, reference["label"], *matrix.peers])), timed)
    return "\n".join(f"{part.rstrip()}\n" for part in (text, table) if part)


def _times_as_long(methods: Sequence[str], others: Sequence[str], timed: Json | None) -> str:
    """A table of how many times as long as each method others take for an observation, on each engine."""
    lines = []
    for other in others:
        cells = []
        for label in methods:
            for engine in ENGINES:
                mine, theirs = _latency(timed, label, engine), _latency(timed, other, engine)
                if label == other or mine is None or theirs is None:
                    cells.append("")
                    continue
                ratio = theirs["observation_ms"]["p50"] / mine["observation_ms"]["p50"]
                cells.append(f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}")
        if any(cells):
            lines.append([other, *cells])
    columns = [f"{label}, {name}" for label in methods for name in ENGINES.values()]
    return markdown(("times as long an observation as", *columns), lines) if lines else ""


def _means(kept: Kept, matrix: PolicyMatrix) -> str:
    """Each row over the columns that it shares with the reference: all, and those that tell methods apart."""
    if matrix.reference is None:
        return ""
    by_row: dict[str, dict[str, Json]] = {row.label: {} for row in matrix.rows}
    for column in matrix.columns:
        for cell, facts in _found(kept, matrix, column):
            by_row[cell.row.label][column.label] = facts
    against_reference = [(row.label, matrix.reference) for row in matrix.rows if row.label != matrix.reference]
    table = _means_table(by_row, against_reference)
    if not table:
        return ""
    text = (
        f"## Means\n\nOver the columns that a method shares with {matrix.reference}, on shared starts, each column "
        f"counting the same; intervals by a bootstrap of starts within columns.\n\n{table}"
    )
    chosen = {
        label: {column: facts for column, facts in cells.items() if column in matrix.discriminating}
        for label, cells in by_row.items()
    }
    few_only = "Over those columns alone that were chosen beforehand because they tell methods apart:"
    if few := _means_table(chosen, against_reference):
        text += f"\n{few_only}\n\n{few}"
    if pairs := _means_table(by_row, matrix.pairs):
        text += f"\nOne method against another, on all starts that they share:\n\n{pairs}"
        if few_pairs := _means_table(chosen, matrix.pairs):
            text += f"\n{few_only}\n\n{few_pairs}"
    return text


def _means_table(by_row: Mapping[str, Mapping[str, Json]], pairs: Sequence[tuple[str, str]]) -> str:
    """A line for each pair, and below the table which columns each number of them is; nothing without a pair."""
    lines, sets = [], {}
    of_one = len({other for _, other in pairs}) == 1
    for label, other in pairs:
        found = mean_comparison(by_row[label], by_row[other])
        if found is None:
            continue
        low, high = found.difference_interval
        ratio = "-" if found.ratio is None else f"{found.ratio:.3f}"
        if found.ratio_interval is not None:
            ratio += f" [{found.ratio_interval[0]:.3f}, {found.ratio_interval[1]:.3f}]"
        theirs = f"{found.theirs:.3f}" if of_one else f"{found.theirs:.3f} ({other})"
        difference = f"{found.difference:+.3f} [{low:+.3f}, {high:+.3f}]"
        lines.append([label, str(len(found.columns)), f"{found.mine:.3f}", theirs, difference, ratio])
        sets.setdefault(found.columns, []).append(label)
    if not lines:
        return ""
    there = f"{pairs[0][1]} there" if of_one else "the other there"
    names = ("method", "columns", "mean success", there, "difference [95 %]", "ratio [95 %]")
    columns = [
        textwrap.fill(
            f"- {len(those)} column{'s' if len(those) > 1 else ''} of {', '.join(labels)}: {', '.join(those)}.",
            WIDTH,
            break_on_hyphens=False,
            subsequent_indent="  ",
        )
        for those, labels in sets.items()
    ]
    return f"{markdown(names, lines)}\n" + "\n".join(columns) + "\n"


def _unmeasured(kept: Kept, matrix: PolicyMatrix) -> str:
    missing = [cell.name for cell in matrix.cells if kept.cell(cell) is None]
    untimed = [] if matrix.has_conditions else [c.label for c in matrix.columns if kept.latency(c) is None]
    if not missing and not untimed:
        return ""
    lines = [f"- {name}" for name in missing] + [f"- latency of {label}" for label in untimed]
    return "## Not measured\n\n" + "\n".join(lines) + "\n"


def _runs(kept: Kept, matrix: PolicyMatrix) -> str:
    """Every cell with the directory and the configuration hash of its evaluation and of its training."""
    lines = []
    for column in matrix.columns:
        for cell, facts in _found(kept, matrix, column):
            training = kept.training(cell)
            trained = ["", ""] if training is None else [f"`{training['run']}`", f"`{training['config_hash'][:16]}`"]
            lines.append([cell.name, f"`{facts['run']}`", f"`{facts['config_hash'][:16]}`", *trained])
    if not lines:
        return ""
    names = ("cell", "evaluation", "configuration", "training", "configuration")
    return f"## Runs\n\n{markdown(names, lines)}"
