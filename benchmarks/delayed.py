"""What jobs of tomorrow cost those of today: latency, and processor time when nothing happens."""

import time

from system import System, percentile
from table import Row


def measure(pythons, backlogs, samples, idle_seconds):
    """Yield the rows for each number of delayed jobs; ours are compared with ours without any."""
    empty = None
    for backlog in backlogs:
        latency, busy = {}, {}
        for name, python in pythons.items():
            latency[name], busy[name] = _one(name, python, backlog, samples, idle_seconds)
        empty = empty or latency["ours"]
        yield Row(
            f"live latency p50, {backlog:,} delayed",
            "ms",
            latency,
            wanted_below=2 * empty if backlog else None,
        )
        yield Row(
            f"idle processor time, {backlog:,} delayed",
            "% of a core",
            busy,
            wanted_below=1.0 if backlog else None,
        )


def _rest(system, patience=10):
    """Wait until the spooler rests, or does not within *patience* seconds."""
    for _ in range(patience):
        before = system.cpu()
        time.sleep(1)
        if system.cpu() - before < 0.3:
            return


def _one(name, python, backlog, samples, idle_seconds):
    system = System(name, python, spoolers=1)
    try:
        system.apart()
        # Stopped, for uWSGI counts wake-ups: each of so many would be one more pass, for minutes.
        with system.stopped():
            for _ in range(0, backlog, 10_000):
                system.server.call(f"delay({min(backlog, 10_000)})")
        _rest(system)
        delays = system.server.call(f"sample('sample_call', {samples}, 0.004)")
        before, start = system.cpu(), time.monotonic()
        time.sleep(idle_seconds)
        share = (system.cpu() - before) / (time.monotonic() - start)
        return percentile(delays, 50) / 1e6, 100 * share
    finally:
        system.close()
