"""The table of what uses Redis: one row a figure, one column a system, and what we want of ours."""

import statistics
from dataclasses import dataclass

WIDTH = 44


@dataclass(frozen=True)
class Figure:
    """What is measured, and a wish: for the ratio to the best of the others, or for ours alone."""

    column: str
    name: str
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    below: float | None = None
    times: tuple[str, float] | None = None
    """So many times our own figure of another column."""
    best: object = max

    def wish(self, ours, others):
        """Return what is wanted in words, and whether it is so; None where nothing is."""
        value = ours.get(self.column)
        if value is None:
            return None
        if self.times and self.times[0] in ours:
            column, factor = self.times
            return f">= {factor:g} x {column}", value >= factor * ours[column]
        if self.below is not None:
            return f"<= {self.below:g}", value <= self.below
        if others and self.at_least is not None:
            return f">= {self.at_least:g} x best", value >= self.at_least * max(others)
        if others and self.at_most is not None:
            return f"<= {self.at_most:g} x best", value <= self.at_most * min(others)
        return None


FIGURES = (
    Figure("submit", "submit, one by one", "calls/s", at_least=1.2),
    Figure("submit, beside", "the same, Redis on our processor", "calls/s"),
    Figure("bulk", "submit, a thousand at a time", "calls/s", at_least=8),
    Figure("drain", "drain, one process", "jobs/s", at_least=10),
    Figure("drain, two", "drain, two processes", "jobs/s", times=("drain", 1.6)),
    Figure("p50", "call to first line, p50", "ms", at_most=0.6, best=min),
    Figure("p99", "call to first line, p99", "ms", below=1.5, best=min),
    Figure("redis, submit", "Redis, a single submit", "us CPU", best=min),
    Figure("redis, bulk", "Redis, one of a thousand submitted", "us CPU", below=10, best=min),
    Figure("redis, drain", "Redis, one job drained", "us CPU", below=10, best=min),
    Figure("worker", "worker, one job", "us CPU", best=min),
    Figure("bytes", "Redis, one waiting job", "bytes", below=250, best=min),
    Figure("idle", "idle worker", "% CPU", below=1, best=min),
    Figure("resident", "idle worker", "MB", below=35, best=min),
)


def table(systems, spreads):
    """Print {system: {column: figure}}, ours last; return how many wishes were missed."""
    *others, ours = systems
    widths = {name: max(9, len(name) + 1) for name in systems}
    head = "".join(f"{name:>{width}}" for name, width in widths.items())
    print(f"{'':{WIDTH}}{head} {'ours/best':>10}  wanted")
    missed = 0
    for figure in FIGURES:
        values = {name: systems[name].get(figure.column) for name in systems}
        rivals = [value for name in others if (value := values[name]) is not None]
        cells = "".join(f"{number(values[name]):>{width}}" for name, width in widths.items())
        line = f"{f'{figure.name} [{figure.unit}]':{WIDTH}}{cells}"
        ratio = ""
        if rivals and values[ours] is not None and figure.best(rivals):
            ratio = f"{values[ours] / figure.best(rivals):.2f}"
        line += f" {ratio:>10}"
        if wish := figure.wish(systems[ours], rivals):
            line += f"  {wish[0]}  {'ok' if wish[1] else 'MISSED'}"
            missed += not wish[1]
        print(line.rstrip(), flush=True)
    if len(spreads) > 1:
        middle, most = statistics.median(spreads), max(spreads)
        print(f"The rounds of one rate differ by {middle:.0f} % (median), at most {most:.0f} %.")
    return missed


def number(value):
    """Return it in few digits."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
