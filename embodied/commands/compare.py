"""`embodied compare A B ...`: evaluations side by side, of one task or several, or simulation against reality."""

from __future__ import annotations

import hashlib
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from embodied.console import say, table
from embodied.errors import UserError
from embodied.evaluation.agreement import agreement_of_evaluations, agreement_of_file
from embodied.evaluation.agreement_report import agreement_figures, agreement_markdown, agreement_table
from embodied.evaluation.comparison import compare
from embodied.evaluation.comparison_report import comparison_figures, comparison_markdown, comparison_table, watched
from embodied.evaluation.report_table import ReportTable
from embodied.evaluation.suite_comparison import compare_suite
from embodied.evaluation.suite_report import suite_figures, suite_markdown, suite_table
from embodied.run_directory import SUMMARY, RunDirectory, find_run
from embodied.summaries import read_summary, validate_summary
from embodied.types import Json

TABLE = "comparison.md"
FIGURES = {"figure": "comparison.png", "differences": "differences.png"}


class _Report(NamedTuple):
    """How a result is told: on the terminal, as a page, and drawn."""

    tables: Callable[[Json], list[ReportTable]]
    sentences: Callable[[Json], list[str]]
    markdown: Callable[[Json], str]
    figures: Callable[[Json], dict[str, Any]]  # by name in FIGURES


def _pair_sentences(result: Json) -> list[str]:
    return [pair["sentence"] for pair in result["pairs"]]


REPORTS = {
    "task": _Report(
        lambda result: [comparison_table(result)],
        lambda result: [*_pair_sentences(result), *watched(result)],
        comparison_markdown,
        comparison_figures,
    ),
    "suite": _Report(
        lambda result: [suite_table(result), *map(comparison_table, result["comparisons"])],
        _pair_sentences,
        suite_markdown,
        suite_figures,
    ),
    "agreement": _Report(
        lambda result: [agreement_table(result)], lambda result: [], agreement_markdown, agreement_figures
    ),
}


def run(config: DictConfig) -> Path:
    """Compare what conf/compare.yaml names: evaluations, the first being the reference, or simulation and reality.

    Prints the tables, and writes them, figures and summary.json. It is cheap, so it is always computed anew.

    Returns:
        The path of summary.json.

    Raises:
        UserError: a run or file that is missing, unfinished or of another kind, or what cannot be compared.
    """
    if config.resume is not None:
        raise UserError(
            expected="no resume= for a comparison",
            found=f"resume={config.resume}",
            remedy="name the evaluations; a comparison is always computed anew",
        )
    runs = [config.runs] if isinstance(config.runs, str) else list(config.runs)
    if config.agreement is not None:
        return _compare_file(config, runs)
    if not runs:
        raise UserError(
            expected="evaluations to compare",
            found="none",
            remedy="usage: embodied compare RUN RUN ... [key=value], or embodied compare agreement=FILE",
        )
    directories = [_evaluation_directory(str(given), config.run_root) for given in runs]
    evaluations = [_evaluation(directory) for directory in directories]
    identity = [f"{evaluation['setting']} {evaluation['config_hash']}" for evaluation in evaluations]
    result = _result(config, evaluations)
    stem = evaluations[0]["task"] if result["what"] != "suite" else f"suite-of-{len(result['tasks'])}"
    named = {"evaluations": [str(path) for path in directories]}
    return _finish(_open(config, stem, identity, volatile=("runs",)), {**result, **named})


def _result(config: DictConfig, evaluations: list[Json]) -> Json:
    if config.real is not None:
        return agreement_of_evaluations(evaluations, list(config.real), config.confidence, config.pool_seeds)
    several = len({evaluation["task"] for evaluation in evaluations}) > 1
    compare_them = compare_suite if several else compare
    return compare_them(evaluations, config.confidence, config.pool_seeds, config.interval)


def _compare_file(config: DictConfig, runs: list[str]) -> Path:
    """Simulation against the real robot, from a file of success rates."""
    if runs or config.real is not None:
        raise UserError(
            expected="either agreement=FILE alone, or runs with real=[...]",
            found=f"agreement={config.agreement} and {'runs' if runs else 'real='} too",
            remedy="leave one of them out",
        )
    path = Path(config.agreement)
    result = agreement_of_file(path, config.confidence)
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    return _finish(_open(config, path.stem, [content], volatile=("agreement",)), {**result, "source": str(path)})


def _open(config: DictConfig, stem: str, identity: list[str], volatile: tuple[str, ...]) -> RunDirectory:
    """The run directory, whose name depends on what is compared and not on how the paths were written."""
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    described = OmegaConf.create({**values, "evaluations": identity})
    return RunDirectory.open("compare", stem, described, volatile=volatile)


def _finish(directory: RunDirectory, result: Json) -> Path:
    report = REPORTS[result["what"]]
    with directory.lock():
        files = _write(result, report, directory.path)
        summary = directory.write_summary({**result, "files": files})
    for drawn in report.tables(result):
        table(drawn.columns, drawn.rows, title=drawn.title)
        say(textwrap.fill(drawn.caption, 100) + "\n")
    for line in [*report.sentences(result), *result["warnings"]]:
        say(textwrap.fill(f"- {line}", 100, subsequent_indent="  "))
    return summary


def _write(result: Json, report: _Report, directory: Path) -> Json:
    files = {"table": TABLE}
    try:
        (directory / TABLE).write_text(report.markdown(result), encoding="utf-8")
        for name, figure in report.figures(result).items():
            files[name] = FIGURES[name]
            figure.savefig(directory / FIGURES[name], format="png")
    except OSError as error:
        raise UserError(
            expected=f"to write into {directory}",
            found=str(error.strerror or error),
            remedy="make space there, or choose another place with run_root=",
        ) from error
    return files


def _evaluation_directory(given: str, run_root: str) -> Path:
    """The evaluation that the user means: itself, or the one that a training run made at its end."""
    path = find_run(given, commands=["eval", "train", "distill"], run_root=run_root)
    if not (path / SUMMARY).is_file():
        raise UserError(
            expected=f"a finished run in {path}",
            found=f"no {SUMMARY}",
            remedy="run the command that began it once more, which finishes it",
        )
    summary = read_summary(path / SUMMARY)
    if summary.get("command") == "eval":
        return path
    named = summary.get("evaluation")
    if not isinstance(named, dict) or not isinstance(named.get("path"), str):
        raise UserError(
            expected=f"the training run {path} to name its evaluation",
            found="none in its summary",
            remedy=f"evaluate it with `embodied eval {path}` and compare that",
        )
    evaluation = Path(os.path.normpath(path / named["path"]))  # an absolute path stays as it is
    evaluation = evaluation.parent if evaluation.name == SUMMARY else evaluation
    if not (evaluation / SUMMARY).is_file():
        raise UserError(
            expected=f"the evaluation of {path} in {evaluation}",
            found=f"no {SUMMARY} there",
            remedy=f"evaluate it with `embodied eval {path}` and compare that",
        )
    return evaluation


def _evaluation(directory: Path) -> Json:
    summary = read_summary(directory / SUMMARY)
    try:
        validate_summary("eval", summary)
    except UserError as error:
        raise UserError(
            expected=f"an evaluation in {directory}",
            found=error.found,
            remedy="it is damaged or of another version: evaluate again with force=true",
        ) from error
    return summary
