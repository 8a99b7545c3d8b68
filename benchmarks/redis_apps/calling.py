"""The process that submits, in the interpreter of its system; one command a line, one answer.

python calling.py with_rq
"""

import asyncio
import importlib
import inspect
import json
import random
import sys
import time

import jobs

PATIENCE = 20.0


def submit(system, run, count):
    """Submit *count* jobs one after the other, and return the seconds that it took."""
    call = system.call
    start = time.perf_counter()
    if inspect.iscoroutinefunction(call):
        run(_submit(call, count))
    else:
        for number in range(count):
            call(number)
    return time.perf_counter() - start


async def _submit(call, count):
    for number in range(count):
        await call(number)


def bulk(system, run, count, size):
    """Submit *count* jobs, *size* at a time; None where there is no call for that."""
    if not hasattr(system, "bulk"):
        return None
    start = time.perf_counter()
    for first in range(0, count, size):
        found = system.bulk(range(first, min(first + size, count)))
        if inspect.isawaitable(found):
            run(found)
    return time.perf_counter() - start


def delayed(system, _run, count):
    """Submit *count* jobs of tomorrow."""
    system.delay(range(count))


def samples(system, run, count):
    """Submit a job about every 0.1 s, and return the nanoseconds from each call to its job."""
    ends = jobs.COUNTERS.ends
    started = run(_samples(system.sample_call, count))
    deadline = time.monotonic() + PATIENCE
    while not all(ends[:count]) and time.monotonic() < deadline:
        time.sleep(0.01)
    return [end - start for start, end in zip(started, ends[:count], strict=True) if end]


async def _samples(call, count):
    started = []
    for number in range(count):
        await asyncio.sleep(random.uniform(0.05, 0.15))
        started.append(time.monotonic_ns())
        found = call(number)
        if inspect.iscoroutinefunction(call):
            await found
    return started


def workers(system, _run, processes):
    """Return the commands that start so many worker processes."""
    return system.workers(processes)


def jobs_of(system, _run):
    """Return how many jobs this system runs in a few seconds."""
    return system.JOBS


COMMANDS = {call.__name__: call for call in (submit, bulk, delayed, samples, workers, jobs_of)}


def loop():
    """Make the faster event loop, where it is installed."""
    try:
        import uvloop  # noqa: PLC0415  not every environment has it
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def main(name):
    system = importlib.import_module(name)
    with asyncio.Runner(loop_factory=loop) as runner:
        if hasattr(system, "connect"):
            runner.run(system.connect())
        for line in sys.stdin:
            command, *numbers = line.split()
            answer = COMMANDS[command](system, runner.run, *map(int, numbers))
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
