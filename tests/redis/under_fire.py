"""The application of test_kills.py and test_partition.py: tasks of each kind, processes that die.

Copied beside the workers as their `app.py`, never imported by the tests. Where FIRE_AT names a
step, the process dies that comes to it; where there is a file of that name in `armed/`, the first
one dies that does, and moves the file to `spent/`, where it is called by its number, too.
"""

import functools
import json
import os
import random
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

from stage import record

from uwsgi_tasks import Retry, SubmitError, default_app, get_current_task, task
from uwsgi_tasks.errors import LeaseLost
from uwsgi_tasks.redis import client, queues
from uwsgi_tasks.redis.handling import Handling
from uwsgi_tasks.stores.redis import RedisStore

HERE = Path(__file__).parent
ARMED, SPENT = HERE / "armed", HERE / "spent"
FATAL = os.environ.get("FIRE_AT")
# What is to run once at most has the usual lease until then: in some tests it is to be over soon.
queues.LEASE = float(os.environ.get("FIRE_LEASE", queues.LEASE))


def step(name):
    """Die here, if somebody wants that."""
    if name != FATAL:
        try:
            (ARMED / name).rename(SPENT / f"{name} {os.getpid()}")
        except FileNotFoundError:
            return
    record("killed", step=name)
    os.kill(os.getpid(), signal.SIGKILL)


def watch(owner, name, what, *, when=lambda *_args: True):
    """Make steps of a method's begin and end: "is about to" and "has", of what it does."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def watched(*args, **kwargs):
        is_meant = when(*args)
        if is_meant:
            step(f"is about to {what[0]}")
        value = original(*args, **kwargs)
        if is_meant:
            step(f"has {what[1]}")
        return value

    setattr(owner, name, watched)


def watch_sending():
    """Make a step of the moment at which a script is on its way, and its answer is not here."""
    scripts = {
        script.sha: name
        for name, script in vars(queues.Queues).items()
        if isinstance(script, client.Script)
    }
    original, asked = client.Line.send, client.Line.ask

    def is_sent(words):
        name = scripts.get(words[1]) if len(words) > 1 else None
        if name == "_STEP":
            # The words of the script follow its keys: how many are wanted comes first.
            roots, wanted = int(words[2]), words[3 + int(words[2])]
            ends = sum(int(word) for word in words[6 + roots : 8 + roots])
            name = "an end" if ends else "a claim" if wanted else None
        if name:
            step(f"has sent {name}")

    @functools.wraps(original)
    def send(self, commands):
        original(self, commands)
        for words in commands:
            is_sent(words)

    @functools.wraps(asked)
    def ask(self, words):
        send(self, [words])
        return self.read()

    client.Line.send, client.Line.ask = send, ask


def arm():
    """Make steps of what a worker does."""

    def ends(_queues, _places, ends, *_):
        return bool(ends)

    def claims(_queues, _places, _ends, most, _token):
        return bool(most)

    watch(queues.Queues, "step", ("tell an end", "told an end"), when=ends)
    watch(queues.Queues, "step", ("claim", "claimed"), when=claims)
    watch(queues.Queues, "release", ("give back", "given back"))
    watch(queues.Queues, "touch", ("extend a lease", "extended a lease"))
    watch(queues.Queues, "submit", ("submit", "submitted"))
    watch(Handling, "perform", ("run", "run"))
    watch(Handling, "_attempt", ("attempt", "attempted"))
    watch(RedisStore, "save", ("save the result", "saved the result"))
    watch(RedisStore, "bury", ("bury", "buried"))
    watch_sending()


# The submitter is to live.
if "worker" in sys.argv:
    arm()


# ---- tasks


def run(outcome="succeeded", seconds=0.01):
    """Be a task that takes its time."""
    job = get_current_task()
    record("begin", id=job.id, attempt=job.attempt)
    time.sleep(random.uniform(0, seconds))
    step("is in the function")
    record("end", id=job.id, attempt=job.attempt, outcome=outcome)


# Where a worker must live, a second in which it stands still is not to cost its jobs.
LEASE = float(os.environ.get("FIRE_TASKS_LEASE", "1"))
leased = functools.partial(task, executor="redis", lease=LEASE)


@leased()
def single(number):
    run()


@leased(lease=2, queue="low")
def mapped(number):
    run()


@leased(at=timedelta(seconds=0.5))
def delayed(number):
    run()


@leased(queue="high", priority=0)
def urgent(number):
    run()


@leased(queue="low", priority=5)
def minor(number):
    run()


@leased(result_ttl=600)
def kept(number):
    run()
    return number * 2


@leased(result_ttl=600, queue="high")
def kept_map(number):
    run()
    return number * 2


@leased(retry=Retry(attempts=5), result_ttl=600)
def shaky(number):
    """Succeed at the third attempt."""
    if get_current_task().attempt < 3:
        run("retrying")
        raise OSError("not yet")
    run()
    return number * 2


@leased(retry=Retry(attempts=4, delay=0.2), queue="low")
def patient(number):
    """Do so after a while."""
    if get_current_task().attempt < 3:
        run("retrying")
        raise OSError("not yet")
    run()


@leased(retry=Retry(attempts=2))
def doomed(number):
    """Fail for good."""
    attempt = get_current_task().attempt
    run("retrying" if attempt < 2 else "failed")
    raise ValueError(number)


@leased(result_ttl=600, unique=lambda number: str(number % 7))
def alone(number):
    run()


@leased()
def long(number):
    """Take longer than the lease, which is extended meanwhile."""
    run(seconds=2.5)


@leased(lease=None)
def once(number):
    run()


KINDS = (single, delayed, urgent, minor, kept, shaky, patient, once, alone)
RARE = (doomed, long)


@leased()
def poison(number):
    """Kill the process; when as many run beside it, if they do so soon."""
    record("begin", id=get_current_task().id, attempt=1)
    patience = time.monotonic() + 1
    while running() < number and time.monotonic() < patience:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def running():
    """Return how many others run in this process."""
    holdings = default_app.executor("redis")._holdings
    return sum(held is not None for held in holdings.running) - 1


@leased()
def slow(seconds):
    job = get_current_task()
    record("begin", id=job.id, attempt=job.attempt)
    time.sleep(seconds)
    record("end", id=job.id, attempt=job.attempt, outcome="succeeded")


@leased(result_ttl=600)
def gated(name):
    """Run until the test opens the gate, for all or for this process; return its number."""
    job = get_current_task()
    record("begin", id=job.id)
    wait_at(name)
    record("end", id=job.id)
    return os.getpid()


def wait_at(name):
    gates = [Path(os.environ["STAGE_GATES"], each) for each in (name, f"{name} {os.getpid()}")]
    while not any(gate.exists() for gate in gates):
        time.sleep(0.005)


@leased(result_ttl=600)
def frail(name):
    """Do so, and fail if the test has told this process to."""
    job = get_current_task()
    record("begin", id=job.id)
    wait_at(name)
    record("end", id=job.id)
    if Path(os.environ["STAGE_GATES"], f"fail {os.getpid()}").exists():
        raise OSError("cut off")
    return os.getpid()


@leased()
def beating(name):
    """Ask, behind the gate, whether the job is still this worker's."""
    job = get_current_task()
    record("begin", id=job.id)
    wait_at(name)
    try:
        job.heartbeat()
    except LeaseLost as error:
        record("lost", id=job.id, error=str(error))
        raise
    record("end", id=job.id)


@leased()
def quick(number):
    """Take no time, so that many are claimed at a time."""
    record("begin", id=get_current_task().id)


@leased(lease=None)
def quick_once(number):
    record("begin", id=get_current_task().id)


@leased(lease=30)
def hit(pid, number, seconds):
    """Send a process a signal, and take a while."""
    record("begin", id=get_current_task().id)
    os.kill(pid or os.getpid(), number)
    time.sleep(seconds)
    record("end", id=get_current_task().id)


@leased(result_ttl=600, unique=lambda name: "key", lease=60)
def unique_gated(name):
    record("begin", id=get_current_task().id)
    wait_at(name)
    return 1


@leased(lease=60)
def failing_gated(name):
    record("begin", id=get_current_task().id)
    wait_at(name)
    raise ValueError(name)


# ---- those who submit


def submit_for_ever(jobs, seconds):
    """Submit so many *jobs*, spread over so many *seconds*, and tell which were accepted.

    A call whose submission was refused is made again, under another number.
    """
    began, number, accepted = time.monotonic(), 0, 0
    while accepted < jobs:
        for each in KINDS if number % 20 else (*KINDS, *RARE):
            number += 1
            accepted += submitted(each.name, number, lambda each=each, n=number: [each(n)])
        for each, size in ((mapped, 40), (kept_map, 5)):
            numbers = [number + 1 + one for one in range(size)]
            number += size
            accepted += submitted(each.name, numbers, lambda each=each, n=numbers: each.map(n))
        due = began + seconds * accepted / jobs
        time.sleep(max(0.0, due - time.monotonic()))
    record("done", accepted=accepted)


def submitted(name, number, submit):
    """Tell what came of a submission; return how many jobs were accepted."""
    try:
        handles = submit()
    except SubmitError:
        record("refused", task=name, number=number)
        # It is away; calling faster does not bring it back.
        time.sleep(0.02)
        return 0
    record("submitted", task=name, ids=[handle.id for handle in handles], number=number)
    return len(handles)


def desk():
    """Do what the test says, line by line."""
    for line in sys.stdin:
        try:
            answer = {"value": eval(json.loads(line), globals())}
        except Exception as error:  # noqa: BLE001  whatever it is, the test reads it
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer, default=str) + "\n")
        sys.stdout.flush()


def outcomes(ids):
    """Return what became of each job, or the name of what looking for it raised."""
    found = {}
    for id_ in ids:
        try:
            found[id_] = default_app.job(id_).result(timeout=0)
        except Exception as error:  # noqa: BLE001  as above
            found[id_] = type(error).__name__
    return found


def letters():
    """Return the dead letters, as the ids, tasks and errors that they hold."""
    return [(one.id, one.task, one.error) for one in default_app.dead.list(limit=100_000)]


def present():
    """Return the processes that take jobs, by their numbers."""
    return [one.pid for one in default_app.executor("redis").workers()]
