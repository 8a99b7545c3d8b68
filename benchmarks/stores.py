"""What each store does in a second, with little and with much in it.

python benchmarks/stores.py            0 and 100,000 rows, on each server that is installed
python benchmarks/stores.py --full     1,000,000 as well; some minutes
python benchmarks/stores.py --smoke    only to see that it works
python benchmarks/stores.py sqlite     that one alone

SQLite lies in the folder of temporary files (TMPDIR): on a tmpfs it does not wait for a disk.
"""

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import sqlalchemy as sa

from tests.servers import MariaDB, PostgreSQL, serve
from uwsgi_tasks.model import Count, DeadLetter, Record, State, Stop
from uwsgi_tasks.stores import connect

HEAD = f"{'store':12} {'rows':>10}" + "".join(
    f" {name:>10}"
    for name in ("save end", "save wait", "start", "get", "cancel", "acquire", "count", "dead page")
)
SERVERS = {"postgresql": PostgreSQL, "mariadb": MariaDB}
NAMES = ["memory", "sqlite", *SERVERS]
TTL = 86_400.0
WAITS = Record(
    id="", task="billing.send", executor="spooler", state=State.QUEUED, submitted_at=1.7e9
)
ENDED = replace(
    WAITS,
    state=State.SUCCEEDED,
    started_at=1.7e9,
    ended_at=1.7e9,
    worker="web1:spooler:1",
    outcome=b"x" * 60,
)
LETTER = DeadLetter(
    id="", task="billing.send", executor="spooler", attempt=1, failed_at=1.7e9, error="OSError"
)


def url_of(name, stack):
    """Return the URL of a store; None if it cannot be had here."""
    if name == "memory":
        return "memory://"
    if name == "sqlite":
        return f"sqlite:///{stack.enter_context(tempfile.TemporaryDirectory())}/tasks.sqlite3"
    kind = SERVERS[name]
    if missing := kind.missing():
        print(f"{name}: {missing} not installed")
        return None
    return stack.enter_context(serve(kind)).url


def fill(store, start, end):
    """Keep results and dead letters number *start* to *end*."""
    if not store.shared:
        for number in range(start, end):
            store.save(replace(ENDED, id=f"old-{number}"), TTL)
            store.bury(replace(LETTER, id=f"old-{number}", failed_at=float(number)))
        return
    store.now()
    # By its tables: one call after the other would take minutes.
    tables, url = store._tables, store._database.url  # noqa: SLF001
    with sa.create_engine(url, poolclass=sa.NullPool).connect() as connection:
        for first in range(start, end, 10_000):
            numbers = range(first, min(first + 10_000, end))
            result = {name: getattr(ENDED, name) for name in ENDED.__slots__}
            result |= {"state": "succeeded", "stop": 0, "expires_at": time.time() + TTL}
            letter = {name: getattr(LETTER, name) for name in LETTER.__slots__}
            connection.execute(
                tables.results.insert(), [{**result, "id": f"old-{n}"} for n in numbers]
            )
            connection.execute(
                tables.dead.insert(),
                [{**letter, "id": f"old-{n}", "failed_at": float(n)} for n in numbers],
            )
            connection.commit()


def measure(store, new, seconds):
    """Return how often a second each of the calls is made, in the order of HEAD.

    *new* begins the ids, which nobody has used before.
    """
    ended, waiting, started, asked, stopped, taken = (count() for _ in range(6))
    counted = Count(
        minute=0, task="billing.send", outcome="succeeded", runs=1, seconds=0.1, slowest=0.1
    )
    calls = (
        lambda: store.save(replace(ENDED, id=f"{new}-end-{next(ended)}"), TTL),
        lambda: store.save(replace(WAITS, id=f"{new}-wait-{next(waiting)}"), TTL),
        lambda: store.start(f"{new}-wait-{next(started)}", 1, "web1:spooler:1"),
        lambda: store.get(f"{new}-end-{next(asked)}"),
        lambda: store.cancel(f"{new}-wait-{next(stopped)}", Stop.ASKED),
        lambda: store.acquire(f"{new}-lease-{next(taken)}", "a", TTL),
        lambda: store.count([counted]),
        lambda: store.dead(50),
    )
    return [rate(call, seconds) for call in calls]


def rate(call, seconds):
    """Return how often a second *call* is made."""
    done, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        for _ in range(20):
            call()
        done += 20
    return done / passed


def main():
    """Measure, and print each row as soon as it is there."""
    parser = argparse.ArgumentParser(description="Stores, with little and with much in them.")
    parser.add_argument("stores", nargs="*", choices=NAMES, default=[], help="these only")
    parser.add_argument("--full", action="store_true", help="also with 1,000,000 rows")
    parser.add_argument("--smoke", action="store_true", help="only see that it works")
    given = parser.parse_args()
    sizes = [0, 1000] if given.smoke else [0, 100_000] + [1_000_000] * given.full
    print("calls a second")
    print(HEAD)
    for name in given.stores or NAMES:
        with ExitStack() as stack:
            url = url_of(name, stack)
            if url is None:
                continue
            store, there = connect(url), 0
            for size in sizes:
                fill(store, there, size)
                there = size
                rates = measure(store, str(size), 0.05 if given.smoke else 1.0)
                print(f"{name:12} {size:>10,}" + "".join(f" {one:>10,.0f}" for one in rates))
            store.close()


if __name__ == "__main__":
    main()
