"""How many jobs ran in each of the last minutes, as bars."""

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from uwsgi_tasks import default_app
from uwsgi_tasks.errors import TasksError

MINUTES = 30
STEP, HEIGHT = 8, 56
OUTCOMES = ("succeeded", "retrying", "failed", "cancelled")


@dataclass(frozen=True, kw_only=True)
class Bar:
    """The runs of one minute that ended in one way."""

    outcome: str
    x: int
    y: int
    height: int


def read() -> dict[str, Any]:
    """Return the bars, and how many runs ended in which way."""
    first = (int(time.time()) // 60 - MINUTES + 1) * 60
    runs: Counter[tuple[int, str]] = Counter()
    try:
        for count in default_app.stats(since=first):
            runs[count.minute, count.outcome] += count.runs
    except TasksError:
        # The page goes on without them, as the jobs do.
        runs.clear()
    totals = [
        (outcome, sum(number for (_, ended), number in runs.items() if ended == outcome))
        for outcome in OUTCOMES
    ]
    return {
        "minutes": MINUTES,
        "width": MINUTES * STEP,
        "height": HEIGHT,
        "bars": bars(runs, first),
        "totals": [(outcome, total) for outcome, total in totals if total],
    }


def bars(runs: Counter[tuple[int, str]], first: int) -> list[Bar]:
    """Return a bar for each minute and outcome, those of one minute upon each other."""
    sums: Counter[int] = Counter()
    for (minute, _), number in runs.items():
        sums[minute] += number
    most = max(sums.values(), default=1)
    found, tops = [], Counter[int]()
    for outcome in OUTCOMES:
        for minute in sums:
            number = runs[minute, outcome]
            height = number and max(2, round(number / most * HEIGHT))
            tops[minute] += height
            if height:
                x, y = (minute - first) // 60 * STEP, max(0, HEIGHT - tops[minute])
                found.append(Bar(outcome=outcome, x=x, y=y, height=height))
    return found
