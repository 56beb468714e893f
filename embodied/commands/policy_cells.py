"""What `embodied bench policy` keeps of its runs: small JSON files, from which alone its pages are written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from embodied.commands.matrix_cells import CELLS, make_cells_folder, read_cell, write_whole
from embodied.commands.policy_matrix import Column, PolicyCell, PolicyMatrix
from embodied.commands.policy_trainings import training_facts
from embodied.types import Json

DIGITS = 5  # of rewards: enough for a mean, and small


class Kept:
    """The JSON files of one matrix in a folder for results."""

    def __init__(self, folder: Path, matrix: PolicyMatrix) -> None:
        self.folder = folder
        self._folder = folder / CELLS
        self._matrix = matrix

    def make(self) -> None:
        """
        Raises:
            UserError: the folder cannot be written.
        """
        make_cells_folder(self.folder)

    def cell(self, cell: PolicyCell) -> Json | None:
        """Of a cell as the matrix declares it now; None where there is none yet, or one of other words.

        Raises:
            UserError: a file that cannot be read.
        """
        return self._read(cell.file, self._matrix.declared(cell))

    def training(self, cell: PolicyCell) -> Json | None:
        """Of the training that a cell is one row of.

        Raises:
            UserError: a file that cannot be read.
        """
        declared = self._matrix.training_declared(cell.column, cell.training)
        return self._read(self._matrix.training_file(cell.column, cell.training), declared)

    def latency(self, column: Column) -> Json | None:
        """Of a column, without the rows of trainings that are declared otherwise now; None where it was not measured.

        Raises:
            UserError: a file that cannot be read.
        """
        timed = self._read(self._matrix.latency_file(column), None)
        if timed is None:
            return None
        trainings = {row.label: self._matrix.trainings[row.training] for row in self._matrix.rows}
        declared = {label: self._matrix.training_declared(column, training) for label, training in trainings.items()}
        rows = [row for row in timed["rows"] if (row["label"], row.get("training")) in declared.items()]
        return {**timed, "rows": rows}

    def keep_cell(self, cell: PolicyCell, summary: Json, directory: Path) -> None:
        """Of a finished evaluation.

        Raises:
            UserError: it cannot be written.
        """
        facts = {
            "task": cell.column.task,
            "column": cell.column.label,
            "condition": cell.condition.label,
            "label": cell.row.label,
            "training": cell.training.name,
            "declared": self._matrix.declared(cell),
            "words": list(cell.evaluation),
            "run": directory.name,
            **evaluation_facts(summary),
        }
        self._write(cell.file, facts)

    def keep_training(self, cell: PolicyCell, directory: Path) -> None:
        """Of a finished training.

        Raises:
            UserError: it cannot be written.
        """
        column, training = cell.column, cell.training
        facts = {
            "task": column.task,
            "column": column.label,
            "training": training.name,
            "declared": self._matrix.training_declared(column, training),
            "words": self._matrix.training_words(column, training),
            **training_facts(directory),
        }
        self._write(self._matrix.training_file(column, training), facts)

    def keep_latency(self, column: Column, facts: Json) -> None:
        """Of a column.

        Raises:
            UserError: it cannot be written.
        """
        self._write(self._matrix.latency_file(column), facts)

    def _read(self, name: str, declared: str | None) -> Json | None:
        path = self._folder / name
        if not path.exists():
            return None
        facts = read_cell(path)
        return facts if declared in (None, facts.get("declared")) else None

    def _write(self, name: str, facts: Json) -> None:
        write_whole(self._folder / name, _a_key_a_line(facts))


def evaluation_facts(summary: Json) -> Json:
    """What is kept of an evaluation's summary. Outcomes stand start by start, so that pairs can be counted again."""
    rows = sorted(summary["episodes"], key=lambda row: row["start"])
    graded = any(row["return"] != round(row["return"]) for row in rows)
    return {
        "setting": summary["setting"],
        "run_time_settings": summary["run_time_settings"],
        "policy": summary["policy"],
        "network": summary["network"],
        "parameters": summary["parameters"],
        "checkpoint": {key: summary["checkpoint"][key] for key in ("step", "config_hash", "seed")},
        "history": summary["history"],
        "buffer": summary["buffer"],
        "action_steps": summary["action_steps"],
        "delay_steps": summary["delay_steps"],
        "action_noise": summary["action_noise"],
        "first_start": rows[0]["start"],
        "ever": outcomes(rows, "success_ever"),
        "last": outcomes(rows, "success_last"),
        "errors": summary["errors"],
        "success": {mode: _rate(summary["success"][mode]) for mode in ("ever", "last")},
        "max_reward": [None if r["error"] else round(r["max_reward"], DIGITS) for r in rows] if graded else None,
        "mean_max_reward": summary["mean_max_reward"] if graded else None,
        "motion": summary["motion"],
        "calls_per_observation": summary["network_calls_per_observation"],
        "calls_per_action": summary["network_calls_per_action"],
        "first_observation_calls": summary["first_observation_calls"],
        **{key: summary[key] for key in ("config_hash", "version", "machine")},
        "timings": {"contended": True, "latency": summary["timings"]["latency"]},
    }


def outcomes(rows: Sequence[Json], key: str) -> str:
    """One character a start, in order: 1 success, 0 failure, e where the episode could not be run."""
    return "".join("e" if row["error"] else str(int(row[key])) for row in rows)


def _rate(rate: Json | None) -> Json | None:
    return None if rate is None else {key: rate[key] for key in ("k", "n", "rate", "low", "high")}


def _a_key_a_line(facts: Json) -> str:
    """JSON that is short, and whose changes can be read."""
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in facts.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"
