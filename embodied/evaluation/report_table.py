"""A table as text, for any medium, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ReportTable:
    """Text only: a terminal and a page draw the same one."""

    title: str
    columns: tuple[str, ...]  # headings, some of two lines
    rows: list[list[str]]
    caption: str  # what the columns mean

    def markdown(self, heading: str = "#") -> list[str]:
        """Lines of Markdown: the title as a heading, the table, the caption."""
        return [
            f"{heading} {self.title}",
            "",
            _row([column.replace("\n", " ") for column in self.columns]),
            _row(["---"] * len(self.columns)),
            *map(_row, self.rows),
            "",
            self.caption,
            "",
        ]


def section(title: str, lines: Sequence[str]) -> list[str]:
    """A list under a heading of its own; nothing if it is empty."""
    return [f"## {title}", "", *(f"- {line}" for line in lines), ""] if lines else []


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
