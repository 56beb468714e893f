"""`embodied bench policy`: success against latency, cell by cell, going on wherever it was interrupted.

Stages: `success` trains and evaluates, `latency` times all methods of a column in turn on a quiet machine, `pages`
writes the pages from what there is, as the other two do after every cell.
"""

from __future__ import annotations

import importlib
import json
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from embodied.catalog import nearest
from embodied.commands.matrix_cells import chosen
from embodied.commands.policy_cells import Kept
from embodied.commands.policy_matrix import PolicyCell, read_policy_matrix
from embodied.commands.policy_pages import write_pages
from embodied.commands.policy_trainings import Runs
from embodied.configuration import check
from embodied.console import say
from embodied.errors import UserError
from embodied.run_directory import RunDirectory

WHAT = "policy"
STAGES = ("success", "latency", "pages")
VOLATILE = ("results", "list", "time_budget_min", "paths")


def run(config: DictConfig) -> Path | None:
    """Do what is left of a stage, as far as `config.only` and `config.time_budget_min` say.

    Returns:
        The path of the summary; None where only the list was asked for.

    Raises:
        UserError: an unknown matrix or stage, `only` fits no cell, a folder that cannot be written, or, at the end,
            cells whose runs failed.
    """
    if config.stage not in STAGES:
        raise UserError(
            expected="a stage of bench policy", found=f"'{config.stage}'", remedy=nearest(str(config.stage), STAGES)
        )
    matrix = read_policy_matrix(config.plan)
    cells = chosen(matrix.cells, config.only)
    directory = RunDirectory.open("bench", f"{WHAT}-{matrix.name}-{config.stage}", config, volatile=VOLATILE)
    kept, runs = Kept(Path(config.results or directory.path), matrix), Runs.of(matrix, config)
    if config.list:
        _say_what_is_left(cells, kept, runs)
        return None
    with directory.lock():
        kept.make()
        session = _Session(cells, kept, runs, config)
        if config.stage == "success":
            session.succeed()
        elif config.stage == "latency":
            session.time()
        page = write_pages(kept, matrix)
        _say_what_is_left(cells, kept, runs)
        if session.failed:
            raise UserError(
                expected="cells without a failure",
                found=f"{len(session.failed)} failed: " + "; ".join(session.failed),
                remedy="see above why, and give the same command again: it goes on with what is missing",
            )
        say(f"page: {page}")
        rows = [facts for cell in matrix.cells if (facts := kept.cell(cell))]
        return directory.write_summary(
            {"what": WHAT, "files": {"table": os.path.relpath(page, directory.path)}, "rows": rows, "timings": {}}
        )


class _Session:
    """One call of the command: what it does until its time is over."""

    def __init__(self, cells: list[PolicyCell], kept: Kept, runs: Runs, config: DictConfig) -> None:
        self._cells, self._kept, self._runs = cells, kept, runs
        self._latency = config.latency_stage.observations, config.latency_stage.rounds
        time_budget_min = config.time_budget_min
        self._ends_s = float("inf") if time_budget_min is None else time.monotonic() + 60 * time_budget_min
        self.failed: list[str] = []  # in words

    @property
    def _is_over(self) -> bool:
        return time.monotonic() >= self._ends_s

    def succeed(self) -> None:
        """Train and evaluate what is missing. A training that failed is not tried again for its other rows."""
        trained: dict[str, Path | None] = {}
        for cell in self._cells:
            if self._kept.cell(cell) is not None:
                continue
            if self._runs.missing(cell.column, cell.training):
                continue  # named in the list of what is left
            file = self._runs.matrix.training_file(cell.column, cell.training)
            if self._is_over:
                return
            if file not in trained:
                trained[file] = self._tried(f"{cell.column.label}, training {cell.training.name}", self._train, cell)
            directory = trained[file]
            if directory is None or self._is_over:
                continue
            self._tried(cell.name, self._evaluate, cell, directory)
            write_pages(self._kept, self._runs.matrix)

    def time(self) -> None:
        """Time every column with a training, all its methods in turn.

        Raises:
            UserError: a matrix with conditions, which change no latency.
        """
        from embodied.commands.policy_latency import measure_column  # torch

        if self._runs.matrix.has_conditions:
            raise UserError(
                expected="a plan whose methods are timed",
                found=f"{self._runs.matrix.name}, whose conditions change no latency",
                remedy="time plan=frontier",
            )

        for column in dict.fromkeys(cell.column for cell in self._cells):
            if self._is_over:
                return
            rows = [cell for cell in self._cells if cell.column == column]
            rows = [cell for cell in rows if not self._runs.missing(column, cell.training)]
            if rows:
                self._tried(
                    f"{column.label}, latency",
                    lambda column=column, rows=rows: self._kept.keep_latency(
                        column, measure_column(rows, self._runs, *self._latency)
                    ),
                )
                write_pages(self._kept, self._runs.matrix)

    def _train(self, cell: PolicyCell) -> Path:
        directory = self._runs.trained(cell.column, cell.training)
        self._kept.keep_training(cell, directory)
        return directory

    def _evaluate(self, cell: PolicyCell, directory: Path) -> Path:
        path = evaluated(cell, directory, self._runs)
        self._kept.keep_cell(cell, json.loads(path.read_text(encoding="utf-8")), path.parent)
        return path

    def _tried(self, name: str, work: Callable[..., Path | None], *arguments: object) -> Path | None:
        """What `work` returns; None where it failed, which leaves the others their turn."""
        say(name)
        try:
            return work(*arguments)
        except UserError as error:
            say(f"{name}: {error}")
        except Exception as error:  # hours of other cells do not end with whatever one simulator or library raises
            say(f"{name}: {''.join(traceback.format_exception(error))}")
        self.failed.append(name)
        return None


def evaluated(cell: PolicyCell, directory: Path, runs: Runs) -> Path:
    """The summary of a cell's evaluation, run now if need be.

    Raises:
        UserError: as `embodied eval` raises it.
    """
    command = importlib.import_module("embodied.commands.eval")
    return command.run(check("eval", [*runs.source_words(cell, directory), *cell.evaluation, *runs.shared]))


def _say_what_is_left(cells: list[PolicyCell], kept: Kept, runs: Runs) -> None:
    left = [cell for cell in cells if kept.cell(cell) is None]
    for cell in left:
        why = runs.missing(cell.column, cell.training)
        trained = "" if kept.training(cell) is None else " (trained)"
        say(f"left: {cell.name}{trained}{': ' + '; '.join(why) if why else ''}")
    timed = () if runs.matrix.has_conditions else dict.fromkeys(cell.column for cell in cells)
    untimed = [column.label for column in timed if kept.latency(column) is None]
    if untimed:
        say(f"latency not measured: {', '.join(untimed)}")
    say(f"{len(cells) - len(left)} of {len(cells)} cells are there, {len(left)} are left")
