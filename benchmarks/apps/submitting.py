"""What the worker of each system does alike; `app` is the module that says how."""

import time

import app

BUSY = app.BUSY


def submit(count):
    """Submit *count* jobs, and return the seconds that it took."""
    call = app.call
    start = time.perf_counter()
    for number in range(count):
        call(number)
    return time.perf_counter() - start


def submit_kept(count):
    """Submit *count* jobs whose results are kept, and return the seconds that it took."""
    start = time.perf_counter()
    for number in range(count):
        app.kept_call(number)
    return time.perf_counter() - start


def submit_map(count, size):
    """Submit *count* jobs by calls of `map` with *size* each."""
    start = time.perf_counter()
    for _ in range(count // size):
        app.call_map(range(size))
    return time.perf_counter() - start


def send(count):
    """Send *count* jobs to the mule, each as often as it takes; return when the first one left."""
    message = app.message
    start = time.monotonic()
    for number in range(count):
        while True:
            try:
                if message(number) is not False:
                    break
            except BUSY:
                continue
    return start


def sample(name, count, pause):
    """Submit one job after the other, each when the one before was seen to start; return delays."""
    call = getattr(app, name)
    ends = app.COUNTERS.ends
    delays = []
    for number in range(count):
        ends[number] = 0
        start = time.monotonic_ns()
        call(number)
        while not ends[number]:
            time.sleep(0.0002)
        delays.append(ends[number] - start)
        time.sleep(pause)
    return delays
