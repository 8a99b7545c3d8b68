"""The application of test_kills.py: tasks of each kind, and processes that die where they are told.

Copied beside the server as its `app.py`, never imported by the tests. A process that comes to a
step for which there is a file in `armed/` moves that file to `spent/`, and dies there.
"""

import fcntl
import functools
import os
import random
import signal
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from stage import application_for, record, where

from uwsgi_tasks import (
    Retry,
    calling,
    codec,
    configure,
    crashes,
    default_app,
    get_current_task,
    ledger,
    meter,
    spool,
    spool_file,
    task,
)
from uwsgi_tasks.executors.spooler import SpoolerExecutor
from uwsgi_tasks.ledger import Ledger
from uwsgi_tasks.marks import Mark, Progress
from uwsgi_tasks.stores.sql import SqlStore

HERE = Path(__file__).parent
ARMED, SPENT = HERE / "armed", HERE / "spent"
application = application_for(globals())
configure(
    crash_limit=int(os.environ["CRASH_LIMIT"]),
    store=os.environ.get("STORE") or None,
    namespace=os.environ.get("NAMESPACE", ""),
)
# So that what was killed twice, or claimed by the dead, is there again soon.
crashes._BACK_OFF = 0.25
ledger._CLAIM = 3.0


def step(name):
    """Die here, if somebody wants that."""
    who = "spooler" if where() == "spooler" else "submitter"
    for armed in (f"{who} {name}", name):
        with suppress(FileNotFoundError):
            (ARMED / armed).rename(SPENT / armed)
            record("killed", step=armed)
            os.kill(os.getpid(), signal.SIGKILL)


def watch(owner, name, *, before=None, after=None):
    """Make steps of a function's begin and end."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def watched(*args, **kwargs):
        if before:
            step(before)
        value = original(*args, **kwargs)
        if after:
            step(after)
        return value

    setattr(owner, name, watched)


class Fcntl:
    """fcntl, with a step where a new spool file is there, and nothing in it."""

    def __getattr__(self, name):
        return getattr(fcntl, name)

    @staticmethod
    def lockf(file, how):
        fcntl.lockf(file, how)
        if how == fcntl.LOCK_EX:
            step("has opened the file")


class Counted(meter.Meter):
    """Tells what it hands over, and when that is done: killed in between, it is counted twice."""

    def __init__(self, folder, save, *rest):
        def told(counts):
            record("saving", counts=[(one.task, one.outcome, one.runs) for one in counts])
            save(counts)

        super().__init__(folder, told, *rest)

    def add(self, *run):
        # Stands still as long as the test has something to do.
        while (HERE / "held").exists() and where() == "spooler":
            time.sleep(0.005)
        super().add(*run)

    def flush(self):
        super().flush()
        record("saved")

    def _open(self):
        super()._open()
        record("saved")


spool_file.fcntl = Fcntl()
ledger.Meter = Counted
watch(Ledger, "claim", after="has claimed the key")
watch(Ledger, "confirm", before="is about to confirm the key")
watch(Ledger, "release", before="is about to release the key", after="has released the key")
watch(spool.SpoolDirectory, "write", before="is about to write", after="has written")
watch(spool.SpoolDirectory, "write_later", before="is about to delay", after="has delayed")
watch(spool.SpoolDirectory, "expect", before="has delayed, and set no clock")
watch(spool.SpoolDirectory, "_empty", before="is about to move in", after="has moved in")
watch(crashes.Crashes, "settle", before="is about to settle", after="has settled")
watch(codec, "decode", before="is about to decode", after="has decoded")
watch(calling, "call", before="is about to call", after="has called")
watch(SqlStore, "save", before="is about to save the result", after="has saved the result")
watch(SqlStore, "bury", before="is about to bury", after="has buried")
watch(meter.Meter, "add", before="is about to count", after="has counted")
watch(Progress, "note", before="is about to note a call", after="has noted a call")
watch(Progress, "forget", before="is about to forget the calls", after="has forgotten the calls")
watch(Mark, "end", before="is about to end", after="has ended")
watch(SpoolerExecutor, "_follow_up", before="is about to follow up", after="has followed up")


def run(outcome="succeeded"):
    """Be a task that takes its time."""
    job = get_current_task()
    record("begin", id=job.id, task=job.name, attempt=job.attempt)
    time.sleep(random.uniform(0, 0.02))
    step("is in the function")
    record("end", id=job.id, task=job.name, attempt=job.attempt, outcome=outcome)


spooled = functools.partial(task, executor="spooler")


@spooled()
def single(number):
    run()


@spooled()
def mapped(number):
    run()


@spooled(at=timedelta(seconds=0.5))
def delayed(number):
    run()


@spooled(result_ttl=600)
def kept(number):
    run()
    return number * 2


@spooled(result_ttl=600)
def kept_map(number):
    run()
    return number * 2


@spooled(retry=Retry(attempts=5), result_ttl=600)
def shaky(number):
    """Succeed at the third attempt."""
    if get_current_task().attempt < 3:
        run("retrying")
        raise OSError("not yet")
    run()
    return number * 2


@spooled(retry=Retry(attempts=4, delay=0.2))
def patient(number):
    """Do so after a while."""
    if get_current_task().attempt < 3:
        run("retrying")
        raise OSError("not yet")
    run()


@spooled(retry=Retry(attempts=2))
def doomed(number):
    """Fail for good."""
    attempt = get_current_task().attempt
    run("retrying" if attempt < 2 else "failed")
    raise ValueError(number)


@spooled(result_ttl=600)
def doomed_at_once(number):
    run("failed")
    raise ValueError(number)


@spooled(unique=lambda number: str(number % 5))
def alone(number):
    run()


@spooled()
def chain(number):
    """Submit itself until there is nothing left."""
    run()
    if number:
        submitted([get_current_task()(number - 1)], "chain", number - 1)


@spooled(result_ttl=600, unique=lambda number: "poison")
def poison(number):
    record("begin", id=get_current_task().id)
    os._exit(1)


@spooled()
def slow_to_bury(number):
    record("begin", id=get_current_task().id, attempt=get_current_task().attempt)
    if not (HERE / "mended").exists():
        raise ValueError(number)


def submitted(handles, kind, number):
    record("submitted", ids=[handle.id for handle in handles], kind=kind, number=number)


def submit_each(number):
    """Submit one of each kind, and tell so as soon as each call has returned."""
    for each in (single, delayed, kept, shaky, patient, doomed, doomed_at_once, alone):
        if each is alone and (HERE / "loose").exists():
            # A unique key needs the store.
            continue
        submitted([each(number)], each.name.partition(".")[2], number)
    submitted(mapped.map(range(5)), "mapped", number)
    submitted(kept_map.map([number] * 3), "kept_map", number)
    submitted([chain(2)], "chain", 2)


def submit_for_ever(first):
    """Do so until this process is killed, but not faster than it is run."""
    record("outside")
    while not (HERE / "enough").exists():
        if default_app.waiting() < 60:
            submit_each(first)
            first += 1
        time.sleep(0.05)


# ---- what the tests ask afterwards


def outcomes(ids):
    """Return what became of each job, or the name of what looking for it raised."""
    found = {}
    for id_ in ids:
        try:
            found[id_] = default_app.job(id_).result(timeout=0)
        except Exception as error:  # noqa: BLE001  whatever it is, the test reads it
            found[id_] = type(error).__name__
    return found


def letters():
    """Return the dead letters, as the ids, tasks and errors that they hold."""
    return [(one.id, one.task, one.error) for one in default_app.dead.list(limit=100_000)]


def counted():
    """Return how many runs were counted, by task and outcome."""
    found = {}
    for one in default_app.stats(0):
        key = one.task, str(one.outcome)
        found[key] = found.get(key, 0) + one.runs
    return found


def taken_keys(task_name, keys):
    """Return those of the keys that somebody holds."""
    store = default_app.store
    held = []
    for key in keys:
        lease = store.acquire(f"unique {task_name} {key}", "the test", 60)
        if lease.owner == "the test":
            store.release(lease)
        else:
            held.append((key, lease.owner, lease.due - store.now(), lease.extended))
    return held
