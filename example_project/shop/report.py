"""The sales report: bars drawn as SVG, which needs no library."""

import os
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path

WIDTH, ROW, TOP = 250, 46, 4
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #40382f }
  .sum { font-variant-numeric: tabular-nums; text-anchor: end; fill: #6a5f52 }
  .track { fill: #ece5d8 } .bar { fill: #2f6b5e }
  @media (prefers-color-scheme: dark) {
    text { fill: #e9e2d6 } .sum { fill: #b3a898 } .track { fill: #332e27 } .bar { fill: #7cc0ad }
  }
"""


def draw(sales: Sequence[tuple[str, int]]) -> str:
    """Return *sales*, pairs of a book and cents, as an SVG picture with a bar for each."""
    most = max((cents for _, cents in sales), default=0) or 1
    rows = "".join(
        _row(number, book, cents, cents / most) for number, (book, cents) in enumerate(sales)
    )
    height = TOP + ROW * max(len(sales), 1)
    empty = "" if sales else f'<text x="0" y="{TOP + 16}">No orders yet.</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
        f"<title>Sales by book</title><style>{STYLE}</style>{rows}{empty}</svg>"
    )


def _row(number: int, book: str, cents: int, share: float) -> str:
    y = TOP + ROW * number
    return (
        f'<text x="0" y="{y + 14}">{escape(book)}</text>'
        f'<text class="sum" x="{WIDTH}" y="{y + 14}">€{cents / 100:,.2f}</text>'
        f'<rect class="track" x="0" y="{y + 22}" width="{WIDTH}" height="8" rx="4"/>'
        f'<rect class="bar" x="0" y="{y + 22}" width="{WIDTH * share:.1f}" height="8" rx="4"/>'
    )


def save(picture: str, path: Path) -> None:
    """Write *picture* so that a reader finds the old one or the new one, never half of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(picture)
    Path(temporary).replace(path)
