"""What the matrices of conf/matrix have in common: words with the user's paths, `only=`, a small file for each cell."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig, OmegaConf

from embodied.catalog import nearest
from embodied.configuration import quote
from embodied.errors import UserError
from embodied.types import Json

CELLS = "cells"
_PLACE = re.compile(r"{(\w+)}")  # of a value that is not known yet, in overrides


class NamedCell(Protocol):
    """One cell of a matrix."""

    @property
    def table_column(self) -> str: ...  # most often a task

    @property
    def name(self) -> str: ...  # the column and what tells the cell from the others of it


def read_matrix_file(name: str) -> Any:
    """What conf/matrix/<name>.yaml says, as plain values."""
    file = resources.files("embodied.conf") / "matrix" / f"{name}.yaml"
    return OmegaConf.to_container(OmegaConf.create(file.read_text(encoding="utf-8")))


def places(words: Iterable[str]) -> set[str]:
    """Names of what the words leave open, `{name}`: paths that the user must give, for example."""
    return {name for word in words for name in _PLACE.findall(word)}


def filled(words: Iterable[str], values: Mapping[str, object]) -> list[str]:
    """The words with values in their places."""
    return [_PLACE.sub(lambda place: str(values[place[1]]), word) for word in words]


def given_paths(config: DictConfig) -> dict[str, str]:
    """The paths that the user gave, absolute, by their places."""
    return {name: str(Path(path).absolute()) for name, path in config.paths.items() if path is not None}


def shared_words(config: DictConfig) -> list[str]:
    """Overrides of every command that a cell runs: where its runs lie, and how many processes it takes."""
    workers = "null" if config.workers is None else config.workers
    return [f"run_root={quote(str(Path(config.run_root).absolute()))}", f"workers={workers}"]


def chosen[Cell: NamedCell](cells: Sequence[Cell], only: Any) -> list[Cell]:
    """Those whose column or whole name fits one of the patterns in `only`, in their order; all without any.

    Raises:
        UserError: a pattern that fits none.
    """
    if only is None:
        return list(cells)
    patterns = [only] if isinstance(only, str) else [str(pattern) for pattern in only]
    for pattern in patterns:
        if not any(_fits(cell, pattern) for cell in cells):
            raise UserError(
                expected="tasks of the table in only=, or cells as 'task, label'",
                found=f"'{pattern}'",
                remedy=nearest(pattern, {cell.table_column for cell in cells}),
            )
    return [cell for cell in cells if any(_fits(cell, pattern) for pattern in patterns)]


def _fits(cell: NamedCell, pattern: str) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for name in (cell.table_column, cell.name))


def slug(text: str) -> str:
    """For the name of a file."""
    return re.sub(r"[^\w.=-]+", "-", text).strip("-")


def make_cells_folder(folder: Path) -> Path:
    """
    Args:
        folder: for results.

    Returns:
        that of the cells, in it.

    Raises:
        UserError: it cannot be made.
    """
    try:
        (folder / CELLS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(folder, error) from error
    return folder / CELLS


def read_cell(path: Path) -> Json:
    """
    Raises:
        UserError: a file that cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            expected=f"a cell's results in {path}", found=f"{error}", remedy="delete it: the same command makes it anew"
        ) from error


def write_whole(path: Path, text: str) -> None:
    """All of a file, or nothing where the program ends meanwhile.

    Raises:
        UserError: it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise _not_writable(path.parent, error) from error


def _not_writable(folder: Path, error: OSError) -> UserError:
    return UserError(
        expected=f"a folder for results at {folder}", found=str(error), remedy="name another with results="
    )
