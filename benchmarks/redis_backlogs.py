"""Does our rate depend on how much waits? The same worker, with backlogs of several sizes."""

import os
import signal
import statistics
from contextlib import contextmanager

from redis_table import WIDTH, number

FLAT = 0.9
"""Of the rate with the usual backlog."""
FEW = 10_000
"""Jobs that are run at least before a rate is believed."""


def report(broker, sizes, rounds):
    """Print a line a size; return how many are too slow. The second of *sizes* is the usual one."""
    usual = sizes[1]
    rates = {(size, 0): [] for size in sizes} | {(usual, usual): []}
    broker.place(apart=True)
    with broker.working(1) as workers:
        for _ in range(rounds):
            for (size, delayed), found in rates.items():
                parts = [run(broker, workers, size, delayed) for _ in range(0, FEW, size)]
                found.append(statistics.median(parts))
    middle = {key: statistics.median(values) for key, values in rates.items()}
    return sum(show(*key, rate, middle[usual, 0]) for key, rate in middle.items())


def run(broker, workers, size, delayed=0):
    """Return jobs a second of a backlog, which is submitted while the worker is held still."""
    with still(workers):
        broker.clear()
        if delayed:
            broker.ask("delayed", delayed)
        broker.ask("bulk", size, 1000)
    broker.wait(size)
    return (size - 1) / (broker.counters.last() - broker.counters.first())


@contextmanager
def still(workers):
    """Hold the workers still."""
    for worker in workers:
        os.killpg(worker.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for worker in workers:
            os.killpg(worker.pid, signal.SIGCONT)


def show(size, delayed, rate, usual):
    """Print the line; return whether it is too slow."""
    name = f"ours, of {size:,}" + (f", and {delayed:,} delayed" if delayed else "")
    ratio = rate / usual
    verdict = "ok" if ratio >= FLAT else "MISSED"
    line = f"{f'{name} [jobs/s]':{WIDTH}}{number(rate):>9}  {ratio:.2f} of the usual"
    print(f"{line}  >= {FLAT}  {verdict}", flush=True)
    return ratio < FLAT
