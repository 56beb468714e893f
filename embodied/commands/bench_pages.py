"""Benchmarks that write a page: measured once, and put beside other results as often as wanted."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from embodied.console import say
from embodied.errors import UserError
from embodied.run_directory import SUMMARY, RunDirectory
from embodied.types import Json


def run_with_page(config: DictConfig, what: str, measured: Callable[[RunDirectory], tuple[list[Json], str]]) -> Path:
    """Measure in the run directory of `bench <what>`, unless that is finished, and copy the page if `config.results`
    says where to.

    Args:
        measured: the rows of the summary, and the page.

    Returns:
        the summary's path.

    Raises:
        UserError: as `measured` raises it, or a folder for the results that cannot be written.
    """
    directory = RunDirectory.open("bench", what, config, volatile=("results",))
    page = directory.path / f"{what}.md"
    with directory.lock():
        if directory.is_finished:
            say(f"{directory.path} is finished already (force=true makes a new one beside it)")
        else:
            rows, text = measured(directory)
            page.write_text(text, encoding="utf-8")
            directory.write_summary({"what": what, "files": {"table": page.name}, "rows": rows, "timings": {}})
        if config.results is not None:
            with results_folder(config.results) as folder:
                say(f"results: {shutil.copyfile(page, folder / page.name)}")
        return directory.path / SUMMARY


@contextmanager
def results_folder(path: str | Path) -> Iterator[Path]:
    """The folder, made if need be, to write results into.

    Raises:
        UserError: it cannot be written.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise UserError(
            expected=f"to write into {folder}",
            found=str(error.strerror or error),
            remedy="choose another folder with results=",
        ) from error


def markdown(columns: Sequence[str], rows: Iterable[list[str]]) -> str:
    """A table; line breaks in the names of columns are for terminals."""
    lines = [[column.replace("\n", " ") for column in columns], ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
