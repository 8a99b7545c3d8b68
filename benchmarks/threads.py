"""Jobs on threads beside a plain pool of as many, and what a million delayed jobs cost."""

import logging
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from table import Row

from uwsgi_tasks import App
from uwsgi_tasks.executors._delays import Delays
from uwsgi_tasks.server import Server

THREADS = 4
WANTED = 100_000
"""Jobs a second that are enough, should the pool be faster still."""
RATIO = 0.8
TOMORROW = timedelta(days=1)
SAMPLE = 1000


def measure(size, heaps, idle, rounds):
    """Yield the rows: *size* no-op jobs, and heaps of these sizes, watched for *idle* seconds."""
    app = App(Server(None), store="memory://", threads=THREADS, stats=False, thread_grace=0)
    figures = {"raw": [], "ours": []}
    for _ in range(rounds):
        figures["raw"].append(_plain(size))
        figures["ours"].append(_ours(app, size))
    found = {name: statistics.median(values) for name, values in figures.items()}
    enough = min(WANTED, RATIO * found["raw"])
    yield Row(f"threads, {size:,} jobs, raw: the pool", "jobs/s", found, wanted_value=enough)
    yield from _heaps(heaps)
    yield _idleness(app, max(heaps), idle)


def nothing(_number):
    """Do what is measured without."""


def _plain(size):
    with ThreadPoolExecutor(THREADS) as pool:
        end = threading.Event()
        began = time.perf_counter()
        for number in range(size):
            pool.submit(nothing, number)
        pool.submit(end.set)
        end.wait()
        return size / (time.perf_counter() - began)


def _ours(app, size):
    task = app.task(executor="thread", name="nothing")(nothing)
    end = threading.Event()
    last = app.task(executor="thread")(lambda: end.set())  # noqa: PLW0108  a task is a function
    began = time.perf_counter()
    for number in range(size):
        task(number)
    last()
    end.wait()
    return size / (time.perf_counter() - began)


def _heaps(sizes):
    """What one more costs, and taking the first, in the smallest and the largest heap."""
    added, taken = {}, {}
    for size in sizes:
        out = []
        delays = Delays(lambda _thing, out=out: out.append(time.perf_counter()), "of a benchmark")
        far = time.time() + TOMORROW.total_seconds()
        for number in range(size):
            delays.add(far + number % 997, number)
        began = time.perf_counter()
        for number in range(SAMPLE):
            delays.add(far + number % 997, number)
        added[size] = (time.perf_counter() - began) / SAMPLE * 1e6
        soon = time.time() + 0.2
        for number in range(SAMPLE):
            delays.add(soon, number)
        while len(out) < SAMPLE:
            time.sleep(0.01)
        taken[size] = (out[-1] - out[0]) / (SAMPLE - 1) * 1e6
        delays.take_all()
        delays.end()
    small, large = min(sizes), max(sizes)
    for word, found in (("one more", added), ("the first out", taken)):
        # log(1,000,000) is twice log(1,000); the caches of the processor take their part.
        shown = {"raw": found[small], "ours": found[large]}
        yield Row(f"heap of {large:,}, {word}, raw: {small:,}", "us", shown, at_most=4)


def _idleness(app, size, idle):
    """What a pool costs that waits for tomorrow."""
    task = app.task(executor="thread", name="later", at=TOMORROW)(nothing)
    task.map(range(size))
    began = time.process_time()
    time.sleep(idle)
    used = (time.process_time() - began) / idle * 100
    row = Row(f"idle, {size:,} delayed jobs", "% CPU", {"ours": used}, wanted_below=0.1)
    # They are no one's: else each became a dead letter when this process ends.
    for standing in app.jobs():
        app.job(standing.id).cancel()
    return row


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    for row in measure(50_000, (1000, 1_000_000), 3.0, 5):
        print(row)
