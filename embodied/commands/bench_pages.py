"""The pages of benchmarks: tables in Markdown, and their place beside other results."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from embodied.errors import UserError


def markdown(columns: Sequence[str], rows: Iterable[list[str]]) -> str:
    """A table; line breaks in the names of columns are for terminals."""
    lines = [[column.replace("\n", " ") for column in columns], ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def copy_page(page: Path, folder: Path) -> Path:
    """Put a page into a folder of results; returns where it is then.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(page, folder / page.name)
    except OSError as error:
        raise UserError(
            expected=f"to write into {folder}",
            found=str(error.strerror or error),
            remedy="choose another folder with results=",
        ) from error
    return folder / page.name
