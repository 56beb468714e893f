"""What `embodied bench policy` is to do: columns (tasks) by conditions by rows (methods), as conf/matrix declares them.

A training serves several rows. A cell is one row of one column under one condition; its words are those of the
commands that it stands for, and by a hash of them its results are known again.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import OmegaConf

from embodied.catalog import nearest
from embodied.commands.matrix_cells import filled, places, read_matrix_file, slug
from embodied.errors import UserError

MATRICES = ("frontier", "closed_loop", "ablations")
TABLES = ("experts", "policies")  # of conf/matrix too, and benchmarks of their own: `bench_matrix`
OF_TRAINED_POLICIES = ("train", "distill")  # they evaluate what they trained, and `embodied eval` takes their runs


@dataclass(frozen=True)
class Training:
    """One training of a column; what it trains serves several rows."""

    name: str
    command: str  # train, distill, or lerobot: LeRobot's own script
    overrides: tuple[str, ...]
    teacher: str | None = None  # the training of the same column that it distills

    @property
    def settings(self) -> dict[str, Any]:
        """The overrides by their keys."""
        return OmegaConf.to_container(OmegaConf.from_dotlist(list(self.overrides)))  # type: ignore[return-value]


@dataclass(frozen=True)
class Column:
    """A task with its demonstrations, and how long everything is trained on them."""

    task: str
    label: str
    data: tuple[str, ...]  # overrides that say where the demonstrations come from
    training: tuple[str, ...]
    evaluation: tuple[str, ...]

    @property
    def places(self) -> set[str]:
        """Names of the paths that the user must give."""
        return places(self.data)

    @property
    def task_words(self) -> list[str]:
        """Overrides that make the task, as it was trained on, of a command that knows no training of it."""
        return [f"task={self.task}", *(word for word in self.data if word.startswith("task."))]


@dataclass(frozen=True)
class Row:
    """A method: a training and run-time settings."""

    label: str
    training: str
    overrides: tuple[str, ...]
    evaluation: tuple[str, ...] = ()


@dataclass(frozen=True)
class Condition:
    """What is done to a robot while it is evaluated; nothing, where a matrix names none."""

    label: str = ""
    evaluation: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)  # of places in the rows' overrides
    rows: tuple[str, ...] = ("*",)  # patterns of the rows that it is for
    columns: tuple[str, ...] = ("*",)  # and of the columns


@dataclass(frozen=True)
class PolicyCell:
    """One row of a column under one condition."""

    column: Column
    row: Row
    condition: Condition
    training: Training
    evaluation: tuple[str, ...]  # overrides of `embodied eval`, the row's run-time settings among them

    @property
    def table_column(self) -> str:
        return self.column.label

    @property
    def name(self) -> str:
        return ", ".join(filter(None, (self.column.label, self.condition.label, self.row.label)))

    @property
    def file(self) -> str:
        return slug(self.name) + ".json"


@dataclass(frozen=True)
class PolicyMatrix:
    """conf/matrix/<name>.yaml."""

    name: str
    title: str
    reference: str | None  # label of the row that the others are paired with
    baseline: tuple[str, ...]  # labels of the samplers to beat
    rivals: tuple[str, ...]  # labels of others that are judged likewise, beside the line to beat
    peers: tuple[str, ...]  # labels of other programs' policies, with whose latency the headline's is compared too
    headline: tuple[str, ...]  # labels of the rows that the targets are about
    pairs: tuple[tuple[str, str], ...]  # labels of rows of which the first is compared with the second
    discriminating: tuple[str, ...]  # labels of the columns that were chosen because they tell methods apart
    trainings: Mapping[str, Training]
    columns: tuple[Column, ...]
    conditions: tuple[Condition, ...]
    rows: tuple[Row, ...]
    cells: tuple[PolicyCell, ...]  # in the order of work

    @property
    def has_conditions(self) -> bool:
        """Whether methods are compared with themselves under conditions, rather than with each other."""
        return len(self.conditions) > 1

    def training_words(self, column: Column, training: Training) -> list[str]:
        """Overrides of a training's command, without its teacher's run; `places` of the column are left open."""
        if training.command == "distill":
            return [*training.overrides, *column.training]
        return [*self.column_words(column), *training.overrides]

    def column_words(self, column: Column) -> list[str]:
        """What every training of a column is told."""
        return [f"task={column.task}", *column.data, *column.training]

    def training_declared(self, column: Column, training: Training) -> str:
        """Hash of all words of a training and of the teacher's."""
        words = self.training_words(column, training)
        if training.teacher is not None:
            words.append(self.training_declared(column, self.trainings[training.teacher]))
        return _hash([training.command, *words])

    def declared(self, cell: PolicyCell) -> str:
        """Hash of all words that a cell stands for."""
        return _hash([self.training_declared(cell.column, cell.training), *cell.evaluation])

    def training_file(self, column: Column, training: Training) -> str:
        return slug(f"{column.label}, training {training.name}") + ".json"

    def latency_file(self, column: Column) -> str:
        return slug(f"{column.label}, latency") + ".json"


def read_policy_matrix(name: str) -> PolicyMatrix:
    """
    Raises:
        UserError: no such matrix.
    """
    if name not in MATRICES:
        raise UserError(
            expected="a plan of bench policy",
            found=f"'{name}'",
            remedy=f"use `embodied bench {name}`" if name in TABLES else nearest(str(name), MATRICES),
        )
    data = read_matrix_file(name)
    if data.get("like") is not None:
        data = _completed(data, read_matrix_file(data["like"]))
    return parsed_matrix(name, data)


def _completed(data: Any, like: Any) -> Any:
    """A file that names another one's trainings and columns, with them in it."""
    columns = {entry.get("label", entry["task"]): entry for group in like["columns"] for entry in group}
    groups = [[columns[entry] if isinstance(entry, str) else entry for entry in group] for group in data["columns"]]
    return {**data, "trainings": {**like["trainings"], **data.get("trainings", {})}, "columns": groups}


def parsed_matrix(name: str, data: Any) -> PolicyMatrix:
    """A matrix of what its file says."""
    trainings = {
        key: Training(key, entry["command"], tuple(entry["overrides"]), entry.get("teacher"))
        for key, entry in data["trainings"].items()
    }
    columns = [[_column(entry) for entry in group] for group in data["columns"]]
    rows = [[_row(entry) for entry in group] for group in data["rows"]]
    conditions = [_condition(entry) for entry in data.get("conditions", [{}])]
    shared = tuple(data["evaluation"])
    return PolicyMatrix(
        name=name,
        title=data["title"],
        reference=data.get("reference"),
        baseline=tuple(data.get("baseline", ())),
        rivals=tuple(data.get("rivals", ())),
        peers=tuple(data.get("peers", ())),
        headline=tuple(data.get("headline", ())),
        pairs=tuple((one, other) for one, other in data.get("pairs", ())),
        discriminating=tuple(data.get("discriminating", ())),
        trainings=trainings,
        columns=tuple(column for group in columns for column in group),
        conditions=tuple(conditions),
        rows=tuple(row for group in rows for row in group),
        cells=tuple(
            _cell(column, row, condition, trainings[row.training], shared)
            for column_group in columns
            for row_group in rows
            for column in column_group
            for row in row_group
            for condition in conditions
            if _is_for(condition, column, row)
        ),
    )


def _column(entry: Any) -> Column:
    return Column(
        task=entry["task"],
        label=entry.get("label", entry["task"]),
        data=tuple(entry["data"]),
        training=tuple(entry["training"]),
        evaluation=tuple(entry.get("evaluation", ())),
    )


def _row(entry: Any) -> Row:
    return Row(entry["label"], entry["training"], tuple(entry["overrides"]), tuple(entry.get("evaluation", ())))


def _condition(entry: Any) -> Condition:
    return Condition(
        label=entry.get("label", ""),
        evaluation=tuple(entry.get("evaluation", ())),
        values=entry.get("values", {}),
        rows=tuple(entry.get("rows", ("*",))),
        columns=tuple(entry.get("columns", ("*",))),
    )


def _cell(column: Column, row: Row, condition: Condition, training: Training, shared: tuple[str, ...]) -> PolicyCell:
    settings = filled(row.overrides, condition.values)
    words = (*shared, *column.evaluation, *condition.evaluation, *row.evaluation, *settings)
    return PolicyCell(column, row, condition, training, _last_of_each_key(words))


def _is_for(condition: Condition, column: Column, row: Row) -> bool:
    return any(fnmatch.fnmatch(row.label, pattern) for pattern in condition.rows) and any(
        fnmatch.fnmatch(column.label, pattern) for pattern in condition.columns
    )


def _last_of_each_key(words: Sequence[str]) -> tuple[str, ...]:
    """Each key once: what is said last about it holds."""
    return tuple({word.partition("=")[0]: word for word in words}.values())


def _hash(words: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(words)).encode()).hexdigest()[:8]
