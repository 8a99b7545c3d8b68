"""Our Redis executor beside others that use Redis: how fast they are, and what they cost.

python benchmarks/redis_throughput.py            all of them; some twenty minutes
python benchmarks/redis_throughput.py --quick    ours alone; some seconds
python benchmarks/redis_throughput.py --smoke    ours alone, only to see that it works
python benchmarks/redis_throughput.py rq huey    these beside ours
"""

import argparse
import signal
import statistics
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, replace

import peers
import redis_backlogs
from redis_system import REST, Broker, Redis, cpu, resident
from redis_table import FIGURES, table
from system import percentile

OURS = "ours"
PEERS = (
    "rpqueue",
    "rq",
    "huey",
    "dramatiq",
    "dramatiq_1000",
    "arq",
    "saq",
    "taskiq",
    "celery",
)


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    rounds: int = 3
    turns: int = 9
    """Rounds of single calls."""
    calls: int = 2_000
    part: float = 1.0
    """Of the jobs that a system's module in `redis_apps/` names; they take it some seconds."""
    samples: int = 100
    idle: float = 5.0
    backlogs: tuple[int, ...] = (1_000, 100_000, 1_000_000)
    peers: tuple[str, ...] = PEERS


FULL = Scale()
QUICK = Scale(1, 3, 1_000, 0.1, 30, 1.0, (1_000, 10_000), ())
SMOKE = Scale(1, 1, 20, 0.01, 3, 0.1, (20, 200), ())


def scale_of(given):
    """Return what the options of a command line ask for."""
    scale = SMOKE if given.smoke else QUICK if given.quick else FULL
    return replace(scale, peers=()) if given.no_peer else scale


def report(scale):
    """Measure, print the table, and return how many wishes were missed."""
    if Redis.missing():
        print("no redis-server here: what uses Redis is left out")
        return 0
    with ExitStack() as stack:
        server = stack.enter_context(Redis())
        brokers = [stack.enter_context(broker) for broker in made((*scale.peers, OURS), server)]
        found = {broker.name: defaultdict(list) for broker in brokers}
        in_turn(submits, brokers, found, scale, scale.turns)
        in_turn(runs, brokers, found, scale, scale.rounds)
        missed = table({name: summary(lists) for name, lists in found.items()}, spread(found))
        return missed + redis_backlogs.report(brokers[-1], scale.backlogs, scale.rounds)


def made(names, server):
    """Yield the systems that can be had here."""
    for name in names:
        # Beside others, ours is to be without what we are developed with.
        python = peers.for_redis(name) if len(names) > 1 else sys.executable
        if python or name == OURS:
            yield Broker(name, python or sys.executable, server)


def in_turn(measure, brokers, found, scale, rounds):
    """Measure one after the other, and all of them again; another that fails has no figure."""
    for number in range(rounds):
        for broker in brokers:
            print(f"{measure.__name__} {number + 1}: {broker.name}", file=sys.stderr, flush=True)
            try:
                measure(broker, scale, found[broker.name])
            except TimeoutError as error:
                if broker.name == OURS:
                    raise
                print(error, file=sys.stderr)


def submits(broker, scale, found):
    """Measure single calls. Short, and often: a noisy neighbour is then everybody's."""
    for apart, column in ((False, "submit, beside"), (True, "submit")):
        broker.place(apart=apart)
        broker.clear()
        used = broker.server.cpu()
        found[column].append(scale.calls / broker.ask("submit", scale.calls))
    found["redis, submit"].append((broker.server.cpu() - used) / scale.calls * 1e6)


def runs(broker, scale, found):
    """Measure bulk calls, workers, and what waits for them."""
    jobs = int(broker.jobs * scale.part)
    for processes in (1, 2):
        broker.place(apart=True)
        broker.clear()
        fill(broker, jobs, found)
        # Three busy processes have no processor each.
        broker.place(apart=True if processes == 1 else None)
        with broker.working(processes) as workers:
            drain(broker, workers, jobs, found)
    broker.place(apart=True)
    broker.clear()
    with broker.working(1) as workers:
        rest(broker, workers, scale, found)


def fill(broker, jobs, found):
    """Submit a backlog, by the bulk call where there is one."""
    server = broker.server
    before, used = server.memory(), server.cpu()
    seconds = broker.ask("bulk", jobs, 1000)
    if seconds is None:
        broker.ask("submit", jobs)
    else:
        found["bulk"].append(jobs / seconds)
        found["redis, bulk"].append((server.cpu() - used) / jobs * 1e6)
    time.sleep(REST)
    found["bytes"].append((server.memory() - before) / jobs)


def drain(broker, workers, jobs, found):
    """Measure the workers from the first job to the last, so without their start."""
    server, counters = broker.server, broker.counters
    broker.wait(1)
    begun, used, spent = counters.total(), server.cpu(), cpu(workers)
    broker.wait(jobs)
    # Its last acknowledgements count.
    time.sleep(REST)
    left = max(1, jobs - begun)
    one = broker.is_apart
    found["drain" if one else "drain, two"].append(
        (jobs - 1) / (counters.last() - counters.first())
    )
    if one:
        found["redis, drain"].append((server.cpu() - used) / left * 1e6)
        found["worker"].append((cpu(workers) - spent) / left * 1e6)


def rest(broker, workers, scale, found):
    """Measure an idle worker: how soon it starts a job, and what it costs until then."""
    broker.ask("submit", 1)
    broker.wait(1)
    # What it prepares after its first job is done by then.
    time.sleep(min(1.0, scale.idle))
    found["delays"].append([delay / 1e6 for delay in broker.ask("samples", scale.samples)])
    found["resident"].append(resident(workers))
    used = cpu(workers)
    time.sleep(scale.idle)
    found["idle"].append((cpu(workers) - used) / scale.idle * 100)


def summary(lists):
    """Return one figure a column: the median of the rounds, or of all samples."""
    lists = dict(lists)
    delays = [delay for part in lists.pop("delays", ()) for delay in part]
    figures = {column: statistics.median(values) for column, values in lists.items()}
    if delays:
        figures |= {"p50": percentile(delays, 50), "p99": percentile(delays, 99)}
    return figures


def spread(found):
    """Return by how many percent the rounds of a system differ, for each of its rates."""
    rates = {figure.column for figure in FIGURES if figure.unit.endswith("/s")}
    return [
        (max(values) - min(values)) / statistics.median(values) * 100
        for lists in found.values()
        for column, values in lists.items()
        if column in rates
    ]


def main():
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description="Our Redis executor beside others.")
    parser.add_argument("peers", nargs="*", metavar="peer", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--quick", action="store_true", help="little, and no peer")
    parser.add_argument("--smoke", action="store_true", help="only see that it works")
    parser.add_argument("--no-peer", action="store_true", help="leave all of them out")
    given = parser.parse_args()
    if unknown := set(given.peers) - set(PEERS):
        parser.error(f"not known: {', '.join(sorted(unknown))}")
    scale = scale_of(given)
    if given.peers:
        scale = replace(scale, peers=tuple(given.peers))
    # Whoever ends us shall not have to end our servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    start = time.monotonic()
    missed = report(scale)
    print(f"\n{missed} missed; {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
