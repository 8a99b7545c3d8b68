"""Tables, on a terminal and in a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from uwsgi_tasks.cli import shown

_LONG = {"TASK", "ERROR", "OPTIONS", "WHERE"}
"""The columns that go on in the next line where a terminal is narrow."""


def output() -> Console:
    """Return where tables go."""
    return Console(highlight=False, soft_wrap=False)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table for the terminal, without the columns that have nothing in them."""
    made = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    kept = [number for number in range(len(headings)) if not rows or any(r[number] for r in rows)]
    for number in kept:
        made.add_column(headings[number], no_wrap=headings[number] not in _LONG, overflow="fold")
    for row in rows:
        # As Text: what stands in brackets would be taken for a style.
        made.add_row(*(Text(shown.clean(row[number])) for number in kept))
    return made


def columns(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table for a pipe: one line a row, however long, nothing cut."""
    cells = [[shown.clean(shown.one_line(cell)) for cell in row] for row in (headings, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def show_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], where: Console | None = None
) -> None:
    """Print a table for a person, as fits where it goes."""
    console = where or output()
    if console.is_terminal:
        console.print(table(headings, rows))
    else:
        console.out(columns(headings, rows), highlight=False)


def show_pairs(pairs: Iterable[tuple[str, str | None]], where: Console | None = None) -> None:
    """Print names and values, leaving out those that are None; long ones follow indented."""
    console = where or output()
    known = [(name, shown.clean(value)) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in known), default=0)
    for name, value in known:
        first, *rest = value.rstrip("\n").split("\n")
        if rest:
            first, rest = "", [first, *rest]
        line = Text(f"{name.ljust(width)}  ", style="bold").append(first, style="not bold")
        console.print(line, soft_wrap=True)
        for more in rest:
            console.print(Text(f"    {more}"), soft_wrap=True)
