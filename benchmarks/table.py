"""The table: one row a figure, with its ratio to raw uWSGI and what we want of it."""

from dataclasses import dataclass

HEAD = f"{'':44} {'raw':>10} {'0.7.3':>10} {'ours':>10} {'ours/raw':>9}  wanted"


@dataclass(frozen=True, kw_only=False)
class Row:
    """What was measured of each system, and one wish: for the ratio, or for our own figure."""

    name: str
    unit: str
    figures: dict[str, float]
    at_least: float | None = None
    at_most: float | None = None
    at_most_above: float | None = None
    wanted_value: float | None = None
    wanted_below: float | None = None
    ratio: bool = True

    def wish(self) -> tuple[str, bool] | None:
        """Return what is wanted in words, and whether it is so."""
        ours, raw = self.figures["ours"], self.figures.get("raw", 0.0)
        if self.at_least is not None:
            return f">= {self.at_least:g} x raw", ours >= self.at_least * raw
        if self.at_most is not None:
            return f"<= {self.at_most:g} x raw", ours <= self.at_most * raw
        if self.at_most_above is not None:
            return f"<= raw + {self.at_most_above:g}", ours <= raw + self.at_most_above
        if self.wanted_value is not None:
            return f">= {self.wanted_value:,.0f}", ours >= self.wanted_value
        if self.wanted_below is not None:
            return f"<= {self.wanted_below:.3g}", ours <= self.wanted_below
        return None

    def __str__(self) -> str:
        raw, ours = self.figures.get("raw"), self.figures["ours"]
        name = f"{self.name} [{self.unit}]" if self.unit else self.name
        shown = [_number(self.figures.get(system)) for system in ("raw", "old", "ours")]
        cells = [f"{name:44}", *(f"{number:>10}" for number in shown)]
        cells.append(f"{ours / raw:>9.2f}" if raw and self.ratio else " " * 9)
        wish = self.wish()
        if wish:
            cells.append(f" {wish[0]}  {'ok' if wish[1] else 'MISSED'}")
        return " ".join(cells).rstrip()


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
