"""What a person reads while a command runs: lines, tables, progress. Everything goes to stdout."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

LINE_EVERY_S = 10.0  # of progress where there is no terminal


def _console(file: TextIO | None = None) -> Console:
    # No markup, no highlighting, no hard wrap: a path or a list in brackets comes out as it is.
    return Console(file=file, markup=False, highlight=False, emoji=False, soft_wrap=True)


def say(text: str) -> None:
    """One line (or several) for the reader, exactly as given."""
    _console().print(text)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> None:
    """Print rows of text under column names; without a terminal the table takes the width that it needs."""
    console = _console()
    drawn = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        drawn.add_row(*row)
    if not console.is_terminal:
        console.width = 10_000  # as wide as its content, so that nothing is wrapped in a file
    console.print(drawn)


def duration(seconds: float) -> str:
    """`1:08` or `2:00:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def rate(per_second: float) -> str:
    """`2.1/s`, or `4.2/min` for slow work."""
    value, unit = (per_second, "s") if per_second >= 0.1 or per_second == 0 else (per_second * 60, "min")
    return f"{value:.0f}/{unit}" if value >= 100 else f"{value:.2g}/{unit}"


class Progress:
    """Progress of long work: a bar on a terminal, otherwise plain lines (the first, one every 10 s, the last).

        with Progress("collect", 200, "episodes") as progress:
            progress.advance(success=0.98)

    Prints `collect  57/200 episodes  2.1/s  1:08 left  success 0.98`.
    """

    def __init__(
        self,
        description: str,
        total: int,
        unit: str,
        *,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
        file: TextIO | None = None,
    ) -> None:
        """
        Args:
            total: of all work, what an interrupted run did before included.
            done: what was done before; it counts neither for the rate nor for the time left.
            clock: seconds.
            file: stdout unless given.
        """
        self.description, self.total, self.unit, self.done = description, total, unit, done
        self._done_before = done
        self._clock = clock
        self._console = _console(file)
        self._figures: dict[str, float | int | str] = {}
        self._began_s = self._last_line_s = clock()
        self._bar: Bar | None = None

    def __enter__(self) -> Progress:
        self._began_s = self._last_line_s = self._clock()
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24))
            figures = TextColumn("{task.fields[figures]}", markup=False)
            bar = Bar(*columns, figures, console=self._console)
            self._task = bar.add_task(self.description, total=self.total, completed=self.done, figures=self._tail())
            bar.start()
            self._bar = bar
        else:
            self._console.print(self.line())
        return self

    def advance(self, n: int = 1, **figures: float | int | str) -> None:
        """Note that `n` more units are done; `figures` stay beside the count until they change."""
        self.done += n
        self._figures.update(figures)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, figures=self._tail())
        elif self._clock() - self._last_line_s >= LINE_EVERY_S and self.done < self.total:
            self._last_line_s = self._clock()
            self._console.print(self.line())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, figures=self._tail())
            self._bar.stop()
        else:
            self._console.print(self.line())

    def line(self) -> str:
        """The present state in one line."""
        return f"{self.description}  {self._tail()}"

    def _tail(self) -> str:
        parts = [f"{self.done}/{self.total} {self.unit}"]
        elapsed_s = self._clock() - self._began_s
        done_now = self.done - self._done_before
        if done_now > 0 and elapsed_s > 0:
            per_second = done_now / elapsed_s
            left = self.total - self.done
            parts += [
                rate(per_second),
                f"{duration(left / per_second)} left" if left > 0 else f"in {duration(elapsed_s)}",
            ]
        parts += [f"{name.replace('_', ' ')} {_figure(value)}" for name, value in self._figures.items()]
        return "  ".join(parts)


def _figure(value: float | int | str) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
