"""One self-contained page of HTML: text, tables, charts, pictures. Nothing is fetched and no script runs.

Everything that comes from outside passes `html.escape`, and the page's own policy forbids what would slip through:
scripts, and any address but pictures that stand in the page itself.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
STYLE = """
:root { --ink: #1c2733; --soft: #5b6b7b; --line: #dbe2e9; --blue: #2563a8; --orange: #d9702b; --paper: #ffffff; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1000px; padding: 28px 24px 60px; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 25px; margin: 0 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 34px 0 8px; border-bottom: 1px solid var(--line); padding-bottom: 4px; }
h3 { font-size: 15px; margin: 18px 0 4px; overflow-wrap: anywhere; }
p { margin: 6px 0; color: var(--soft); max-width: 78ch; overflow-wrap: anywhere; }
.headline { font-size: 19px; color: var(--ink); margin-bottom: 12px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 8px 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 4px 16px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; font-size: 13px; white-space: nowrap; }
td { overflow-wrap: anywhere; }
.facts { width: 100%; } .facts th { width: 190px; }
svg { max-width: 100%; height: auto; font-size: 13px; }
svg text { fill: var(--ink); } svg .small { font-size: 11px; fill: var(--soft); } svg .strong { font-weight: 600; }
.axis { stroke: var(--soft); } .grid { stroke: var(--line); } .hit { fill: transparent; }
.mark line { stroke: var(--blue); stroke-width: 2; } .mark circle { fill: var(--blue); }
.mean line { stroke: var(--orange); stroke-width: 2; } .mean circle { fill: var(--orange); }
.mark .bar { fill: var(--blue); fill-opacity: 0.75; } .mean .bar { fill: var(--orange); fill-opacity: 0.75; }
.mark .whisker, .mean .whisker { stroke: var(--ink); stroke-width: 1.2; }
.mark:hover circle, .mean:hover circle { stroke: var(--ink); stroke-width: 2; }
.frames { display: flex; flex-wrap: wrap; gap: 10px; }
figure { margin: 0; } figure img { display: block; width: 225px; border: 1px solid var(--line); border-radius: 4px;
  image-rendering: auto; } figcaption { font-size: 12px; color: var(--soft); }
details { margin-top: 8px; } summary { cursor: pointer; color: var(--blue); }
"""


@dataclass(frozen=True)
class Picture:
    """A PNG with a line below it."""

    caption: str
    png: bytes


def page(title: str, parts: Sequence[str]) -> str:
    """The whole document around parts that the functions below made."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def heading(text: str, level: int = 2) -> str:
    return f"<h{level}>{html.escape(text)}</h{level}>"


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{html.escape(text)}</p>' if kind else f"<p>{html.escape(text)}</p>"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with a heading for each column."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """A table of names and what they are."""
    body = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows)
    return f'<table class="facts"><tbody>{body}</tbody></table>'


def pictures(frames: Sequence[Picture]) -> str:
    """Pictures side by side, held by the page itself."""
    figures = []
    for frame in frames:
        data, caption = base64.b64encode(frame.png).decode("ascii"), html.escape(frame.caption)
        image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
        figures.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    return f'<div class="frames">{"".join(figures)}</div>'


def folded(title: str, part: str) -> str:
    """Something that a click shows."""
    return f"<details><summary>{html.escape(title)}</summary>{part}</details>"
