"""Data queues beside rpqueue 0.33.7, in turn, on one Redis: items a second, and the ratio.

The last lines compare ours with itself: items that Redis does in a second of its processor, with
nothing waiting and with much.

python benchmarks/data_queues.py            a minute or two
python benchmarks/data_queues.py --quick    a third of it
python benchmarks/data_queues.py --smoke    only to see that it works
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import peers

ROOT = Path(__file__).parent.parent
WANTED = {1: 1.3, 100: 2.0, 1000: 2.5}
"""By the size of a batch: how many times rpqueue's figure ours is to be."""
LEASE = 60
FLAT = 0.9
"""How much of its speed ours is to keep when much waits."""
SYSTEMS = ("rpqueue", "ours")
WORKS = ("put", "get", "get, leased", "get + done")
HEAD = f"{'':38} {'rpqueue':>10} {'ours':>10} {'ratio':>7}  wanted"


# --- what is measured, each in a process of its own


def items(size):
    return [{"id": number, "user": f"user {number}", "amount": 12.5} for number in range(size)]


class Ours:
    """This package."""

    def __init__(self, path):
        sys.path.insert(0, str(ROOT))
        from uwsgi_tasks.data_queue import DataQueue  # noqa: PLC0415  the peer's process has none
        from uwsgi_tasks.redis.client import Client  # noqa: PLC0415

        self.client = client = Client(f"unix://{path}?db=0")
        self.queue = DataQueue("bench", client=lambda: client, namespace=str, attempts=5)
        self.put, self.done, self.clear = self.queue.put, self.queue.done, self.queue.clear

    def get(self, size, lease):
        return self.queue.get(size, lease=lease)

    def processor(self):
        """Return the seconds of a processor that Redis has used for what it was asked."""
        lines = self.client.call("INFO", "cpu").decode().split()
        found = dict(line.split(":") for line in lines if ":" in line)
        return sum(float(found[f"used_cpu_{kind}_main_thread"]) for kind in ("user", "sys"))


class Theirs:
    """rpqueue."""

    def __init__(self, path):
        import rpqueue  # noqa: PLC0415  ours has none

        rpqueue.set_redis_connection_settings(unix_socket_path=path)
        self.queue = rpqueue.Data(b"bench", attempts=5, vis_timeout=LEASE)
        self.done, self.clear = self.queue.done_data, self.queue.delete_all

    def put(self, batch):
        return self.queue.put_data(batch, chunksize=1000)

    def get(self, size, lease):
        return self.queue.get_data(size, vis_timeout=lease)

    def processor(self):
        return 0.0


def measure(queue, work, batch, size, backlog):
    """Return items a second, and a second of Redis' processor, while *backlog* others wait."""
    some = items(batch)
    queue.clear()
    for _ in range(backlog // 1000):
        queue.put(items(1000))
    if work != "put":
        for _ in range(size // batch):
            queue.put(some)
    lease = 0 if work == "get" else LEASE
    seen, before, start = 0, queue.processor(), time.perf_counter()
    for _ in range(size // batch):
        found = queue.put(some) if work == "put" else queue.get(batch, lease)
        seen += len(found)
        if work == "get + done":
            queue.done(found)
    took = time.perf_counter() - start
    used = queue.processor() - before
    queue.clear()
    if seen != size // batch * batch:
        raise SystemExit(f"{work}: {seen} items of {size}")
    return seen / took, seen / used if used else 0.0


def serve(name, path):
    """Do what the lines of standard input say; answer each with one line."""
    queue = {"ours": Ours, "rpqueue": Theirs}[name](path)
    for line in sys.stdin:
        work, *numbers = line.rstrip("\n").split("\t")
        print(*measure(queue, work, *map(int, numbers)), flush=True)


def place(pid, number):
    """Keep a process on one processor: else the scheduler's choice decides over single calls."""
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(pid, {processors[number % len(processors)]})


class Process:
    """The process of one of the two."""

    def __init__(self, python, name, path):
        self.process = subprocess.Popen(
            [python, __file__, "--serve", name, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        place(self.process.pid, 1)

    def measure(self, *words):
        self.process.stdin.write("\t".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return tuple(map(float, self.process.stdout.readline().split()))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()


def compare(running, sizes, rounds):
    """Yield one line for each work and batch: medians, measured in turn."""
    for batch, size in sizes.items():
        for work in WORKS:
            figures = {name: [] for name in running}
            for _ in range(rounds):
                for name, process in running.items():
                    figures[name].append(process.measure(work, batch, size, 0)[0])
            theirs, ours = (statistics.median(figures.get(name, [0])) for name in SYSTEMS)
            yield line(f"{work}, batches of {batch:,}", theirs, ours, WANTED[batch])


def grow(process, size, backlogs, rounds):
    """Yield lines of ours with much waiting, each beside ours with nothing, measured in turn.

    By the processor time of Redis: what the clock says, another program may have taken.
    """
    for work in ("put", "get + done"):
        for backlog in backlogs:
            figures = {0: [], backlog: []}
            for _ in range(rounds):
                for waiting, found in figures.items():
                    found.append(process.measure(work, 100, size, waiting)[1])
            none, many = (statistics.median(found) for found in figures.values())
            yield line(f"{work}, {backlog:,} waiting", none, many, FLAT)


def line(name, other, ours, wanted):
    if not other:
        return f"{name:38} {'-':>10} {ours:>10,.0f}"
    verdict = "ok" if ours >= wanted * other else "MISSED"
    return f"{name:38} {other:>10,.0f} {ours:>10,.0f} {ours / other:>7.2f}  >= {wanted:g} {verdict}"


def main():
    """Measure, and print each line as soon as it is there."""
    parser = argparse.ArgumentParser(description="Data queues beside rpqueue.")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--smoke", action="store_true", help="only see that it works")
    parser.add_argument("--no-peer", action="store_true", help="leave rpqueue out")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(*given.serve)
        return
    sys.path.insert(0, str(ROOT))
    from tests import servers  # noqa: PLC0415  not in the peer's process

    rounds, sizes, backlogs = 5, {1: 3000, 100: 50_000, 1000: 100_000}, (100_000, 1_000_000)
    if given.quick:
        rounds, sizes, backlogs = 3, {1: 1000, 100: 20_000, 1000: 50_000}, (100_000,)
    if given.smoke:
        rounds, sizes, backlogs = 1, {1: 10, 100: 200, 1000: 1000}, (1000,)
    pythons = {"ours": sys.executable}
    if not (given.smoke or given.no_peer) and (peer := peers.for_redis("rpqueue")):
        pythons["rpqueue"] = peer
    with ExitStack() as stack:
        server = stack.enter_context(servers.serve(servers.Redis))
        path = str(server.folder / "socket")
        place(int(server.info("server")["process_id"]), 0)
        running = {
            name: stack.enter_context(Process(python, name, path))
            for name, python in pythons.items()
        }
        print(HEAD)
        for each in compare(running, sizes, rounds):
            print(each, flush=True)
        print(f"{'':38} {'none':>10} {'many':>10} {'ratio':>7}  wanted")
        for each in grow(running["ours"], sizes[100], backlogs, rounds):
            print(each, flush=True)


if __name__ == "__main__":
    main()
