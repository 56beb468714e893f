"""`embodied compare A B ...`: evaluations side by side, paired on the starts that they share."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from embodied.console import say, table
from embodied.errors import UserError
from embodied.evaluation.comparison import compare
from embodied.evaluation.report import comparison_figure, comparison_markdown, comparison_table
from embodied.run_directory import SUMMARY, RunDirectory, find_run
from embodied.summaries import read_summary, validate_summary
from embodied.types import Json

TABLE, FIGURE = "comparison.md", "comparison.png"


def run(config: DictConfig) -> Path:
    """Compare the evaluations that `config.runs` names (conf/compare.yaml); the first is the reference.

    Prints the table, and writes it, a figure and summary.json. It is cheap, so it is always computed anew.

    Returns:
        The path of summary.json.

    Raises:
        UserError: a run that is missing, unfinished or of another kind, or evaluations that cannot be compared.
    """
    if config.resume is not None:
        raise UserError(
            expected="no resume= for a comparison",
            found=f"resume={config.resume}",
            remedy="name the evaluations; a comparison is always computed anew",
        )
    runs = [config.runs] if isinstance(config.runs, str) else list(config.runs)
    directories = [_evaluation_directory(str(given), config.run_root) for given in runs]
    evaluations = [_evaluation(directory) for directory in directories]
    result = compare(evaluations, config.confidence, config.pool_seeds)
    directory = _open(config, evaluations)
    with directory.lock():
        _write(result, directory.path)
        summary = directory.write_summary(
            {
                **result,
                "evaluations": [str(path) for path in directories],
                "files": {"table": TABLE, "figure": FIGURE},
            }
        )
    _print(result)
    return summary


def _evaluation_directory(given: str, run_root: str) -> Path:
    """The evaluation that the user means: itself, or the one that a training run made at its end."""
    path = find_run(given, commands=["eval", "train"], run_root=run_root)
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


def _open(config: DictConfig, evaluations: list[Json]) -> RunDirectory:
    """The run directory, whose name depends on what the evaluations are and not on how their paths were written."""
    identity = [f"{evaluation['setting']} {evaluation['config_hash']}" for evaluation in evaluations]
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    described = OmegaConf.create({**values, "evaluations": identity})
    return RunDirectory.open("compare", evaluations[0]["task"], described, volatile=("runs",))


def _write(result: Json, directory: Path) -> None:
    try:
        (directory / TABLE).write_text(comparison_markdown(result), encoding="utf-8")
        comparison_figure(result, directory / FIGURE)
    except OSError as error:
        raise UserError(
            expected=f"to write into {directory}",
            found=str(error.strerror or error),
            remedy="make space there, or choose another place with run_root=",
        ) from error


def _print(result: Json) -> None:
    drawn = comparison_table(result)
    table(drawn.columns, drawn.rows, title=drawn.title)
    say(textwrap.fill(drawn.caption, 100) + "\n")
    for line in [*(pair["sentence"] for pair in result["pairs"]), *result["warnings"]]:
        say(textwrap.fill(f"- {line}", 100, subsequent_indent="  "))
