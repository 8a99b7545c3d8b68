"""Print the core's figures beside those of raw uWSGI, and Redis' beside others', of one run.

python benchmarks/run.py            everything, with uwsgi-tasks 0.7.3 and others beside us; long
python benchmarks/run.py --quick    under a minute
python benchmarks/run.py --smoke    only to see that it works; the figures mean nothing
"""

import argparse
import signal
import sys
import time
from dataclasses import dataclass

import delayed
import imports
import kept
import latency
import memory
import mule_throughput
import peers
import redis_throughput
import spooler_throughput
import table
import threads


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    rounds: int = 5
    sizes: tuple[int, ...] = (10_000, 100_000)
    mapped: int = 100_000
    sent: int = 50_000
    samples: int = 1000
    backlogs: tuple[int, ...] = (0, 10_000, 100_000)
    live: int = 100
    idle: float = 5.0
    starts: int = 5
    heaps: tuple[int, ...] = (1000, 1_000_000)


FULL = Scale()
QUICK = Scale(3, (10_000,), 20_000, 20_000, 250, (0, 10_000), 50, 2.0, 1, (1000, 100_000))
SMOKE = Scale(1, (200,), 200, 200, 20, (0, 200), 5, 0.1, 1, (20, 200))


def rows(scale, pythons):
    """Yield every row of the table, as soon as it is measured."""
    yield from spooler_throughput.measure(pythons, scale.sizes, scale.rounds)
    yield from spooler_throughput.measure_map(pythons, scale.mapped, scale.rounds)
    yield from kept.measure_results(pythons, scale.sizes[0], scale.rounds)
    yield from kept.measure_durable(scale.rounds)
    yield from mule_throughput.measure(pythons, scale.sent, scale.rounds)
    yield from threads.measure(scale.sent, scale.heaps, scale.idle, scale.rounds)
    yield from latency.measure(pythons, scale.samples, scale.rounds)
    own = {name: python for name, python in pythons.items() if name != "old"}
    yield from delayed.measure(own, scale.backlogs, scale.live, scale.idle)
    yield from memory.measure(scale.starts)
    yield from imports.measure(scale.rounds)


def main():
    """Measure, and print each row as soon as it is there."""
    parser = argparse.ArgumentParser(description="The core beside raw uWSGI.")
    parser.add_argument("--quick", action="store_true", help="less of everything, and no others")
    parser.add_argument("--smoke", action="store_true", help="only see that each of them works")
    parser.add_argument("--no-peer", action="store_true", help="leave all others out")
    given = parser.parse_args()
    scale = SMOKE if given.smoke else QUICK if given.quick else FULL
    beside = redis_throughput.scale_of(given)
    pythons = {"raw": sys.executable, "ours": sys.executable}
    if not (given.smoke or given.quick or given.no_peer) and (peer := peers.interpreter()):
        pythons["old"] = peer
    # Whoever ends us shall not have to end our servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    start, missed = time.monotonic(), 0
    print(table.HEAD)
    for row in rows(scale, pythons):
        print(row, flush=True)
        wish = row.wish()
        missed += bool(wish and not wish[1])
    print()
    missed += redis_throughput.report(beside)
    print(f"\n{missed} missed; {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
