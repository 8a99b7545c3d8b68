"""Redis: whether it keeps jobs, what it refuses, and whether somebody takes what waits there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from uwsgi_tasks.doctor.case import (
    NO_TASKS,
    Case,
    Finding,
    Group,
    Member,
    error,
    note,
    some,
    warning,
)
from uwsgi_tasks.model import TaskExecutor

_OLDEST = (6, 2)
_FULL = 0.90
"""The share of its memory at which somebody should look."""
_SKEW = 2.0
"""Seconds that two clocks may differ."""
_USUAL = "default"
"""The queue of a task that names none."""


def _reached(case: Case) -> Iterator[Finding]:
    if case.redis and case.redis.trouble:
        yield error(
            "redis-unreachable",
            f"Redis cannot be reached: {case.redis.trouble}",
            "start it, or correct UWSGI_TASKS_REDIS",
        )


def _members(case: Case) -> Iterator[Member]:
    yield from case.redis.members if case.redis else ()


def _version(case: Case) -> Iterator[Finding]:
    for member in _members(case):
        version = member.told.get("redis_version", "")
        if (found := re.match(r"(\d+)\.(\d+)", version)) and tuple(map(int, found.groups())) < (
            _OLDEST
        ):
            what = f"{member.place} is Redis {version}, and we need commands of 6.2"
            yield error("redis-old", what, "Redis 6.2 or later, or Valkey")


def _replica(case: Case) -> Iterator[Finding]:
    is_one = case.redis is not None and "read only" in case.redis.unwritable
    for member in _members(case):
        if member.told.get("role") == "slave" or is_one:
            yield error(
                "redis-replica",
                f"{member.place} is a replica, which takes nothing: its master may have changed",
                "UWSGI_TASKS_REDIS=redis+sentinel://HOST:26379/NAME, or the master's URL",
            )


def _evicts(case: Case) -> Iterator[Finding]:
    for member in _members(case):
        policy = member.told.get("maxmemory_policy", "noeviction")
        if policy == "noeviction":
            continue
        if policy.startswith("volatile"):
            lost, make = "results, counts and locks may be gone", warning
        elif member.number("maxmemory"):
            lost, make = "jobs that wait may be gone", error
        else:
            lost, make = "jobs would be gone as soon as it has a maxmemory", warning
        yield make(
            "redis-evicts",
            f"{member.place} makes room by throwing away ({policy}): {lost}, in silence",
            "redis-cli CONFIG SET maxmemory-policy noeviction; and in redis.conf",
        )


def _full(case: Case) -> Iterator[Finding]:
    if case.redis and "used memory" in case.redis.unwritable:
        what = f"Redis is full, and takes no job: {case.redis.unwritable}"
        yield error("redis-full", what, "redis-cli CONFIG SET maxmemory BYTES, or make room")
        return
    for member in _members(case):
        used, room = member.number("used_memory"), member.number("maxmemory")
        if used and room and used > room * _FULL:
            yield warning(
                "redis-full",
                f"{member.place} uses {used / room:.0%} of its maxmemory; full, it takes no job",
                "redis-cli CONFIG SET maxmemory BYTES, or make room",
            )


def _keeps(case: Case) -> Iterator[Finding]:
    for member in _members(case):
        log, snapshots = member.told.get("aof_enabled"), member.told.get("save")
        if log == "1":
            yield from _synced(member)
        elif log == "0" and snapshots == "":
            yield warning(
                "redis-forgets",
                f"{member.place} keeps nothing on disk: a restart loses all that waits",
                "redis-cli CONFIG SET appendonly yes; and in redis.conf",
            )
        elif log == "0" and snapshots:
            yield note(
                "redis-snapshots",
                f"{member.place} keeps snapshots alone: a crash loses what came after the last one",
                "redis-cli CONFIG SET appendonly yes; and in redis.conf",
            )


def _synced(member: Member) -> Iterator[Finding]:
    chosen = member.told.get("appendfsync")
    lost = {"everysec": "a second", "no": "as much as the system had not written"}.get(chosen or "")
    if lost:
        yield note(
            "redis-fsync",
            f"appendfsync of {member.place} is {chosen}: if its machine crashes, {lost} is lost",
            "appendfsync always loses nothing, and is slower",
        )


def _writes(case: Case) -> Iterator[Finding]:
    why = case.redis.unwritable if case.redis else ""
    if why and "read only" not in why and "used memory" not in why:
        yield error("redis-unwritable", f"Redis takes no job: {why}", "look into the log of Redis")


def _rights(case: Case) -> Iterator[Finding]:
    if case.redis is None:
        return
    names = case.redis.refused
    if names:
        yield error(
            "redis-refuses",
            f"Redis refuses this user what we need: {', '.join(names)}",
            f"ACL SETUSER NAME {' '.join(f'+{name.lower()}' for name in names)}",
        )
    if case.redis.closed:
        yield error(
            "redis-refuses",
            f"Redis refuses this user our keys, as {some(case.redis.closed)}",
            "ACL SETUSER NAME ~uwsgi_tasks* ~{uwsgi_tasks*",
        )


def _hidden(case: Case) -> Iterator[Finding]:
    if case.redis and case.redis.hidden:
        yield note(
            "redis-hides",
            f"Redis does not let us ask {', '.join(case.redis.hidden)}, so not all was checked",
            "nothing: jobs do not need it; maxmemory-policy should be noeviction, and AOF be on",
        )


def _clock(case: Case) -> Iterator[Finding]:
    if case.redis_is_store and case.memory and abs(case.memory.skew) > _SKEW:
        # It was said of the store.
        return
    for member in _members(case):
        if abs(member.skew) > _SKEW:
            yield warning(
                "redis-clock",
                f"the clock of {member.place} is {abs(member.skew):.0f} s "
                f"{'ahead of' if member.skew > 0 else 'behind'} this machine's, and delays go by "
                "both",
                "keep both with NTP: timedatectl set-ntp true",
            )


def _unsigned(case: Case) -> Iterator[Finding]:
    if case.redis and case.settings.signer is None:
        yield note(
            "redis-json",
            "no secret is known here: results and dead letters are JSON there, and no pickle is "
            "read or written",
            "for values that JSON does not know: UWSGI_TASKS_SECRET=...",
        )


# ---- who takes the jobs -------------------------------------------------------------------


def _waiting(case: Case) -> dict[str, int]:
    """Return how many jobs wait in each queue, also for their time; not those that run."""
    sizes = case.redis.sizes if case.redis else {}
    waiting = {name: size.waiting + size.delayed for name, size in sizes.items()}
    return {name: number for name, number in waiting.items() if number}


def _served(case: Case) -> set[str]:
    workers = case.redis.workers if case.redis else None
    return {queue for worker in workers or () for queue in worker.queues}


def _nobody(case: Case) -> Iterator[Finding]:
    if case.redis is None or case.redis.workers is None or case.redis.workers:
        return
    waiting = _waiting(case)
    if waiting:
        what = f"no worker is there, and {sum(waiting.values())} jobs wait"
        yield error("no-worker", what, _serve(case, waiting))
    else:
        what = "no worker is there: what is submitted will wait"
        yield warning("no-worker", what, _serve(case, _queues(case).values() or [_USUAL]))


def _unserved(case: Case) -> Iterator[Finding]:
    if case.redis is None or not case.redis.workers:
        return
    served, waiting = _served(case), _waiting(case)
    left = {name: number for name, number in waiting.items() if name not in served}
    if left:
        listed = ", ".join(f"{name} ({number})" for name, number in sorted(left.items()))
        what = f"jobs wait in queues that no worker serves: {listed}"
        yield error("queue-unserved", what, _serve(case, left))
    tasks = {
        name: queue for name, queue in _queues(case).items() if queue not in served | set(left)
    }
    if tasks:
        what = f"no worker serves {some(set(tasks.values()))}, where the jobs of {some(tasks)} go"
        yield warning("queue-unserved", what, _serve(case, tasks.values()))


def _serve(case: Case, queues: Iterable[str]) -> str:
    return f"uwsgi-tasks worker -m {_module(case)} -q {','.join(sorted(set(queues)))}"


def _unknown(case: Case) -> Iterator[Finding]:
    if not case.tasks:
        yield NO_TASKS
    workers = case.redis.workers if case.redis else None
    served = _served(case)
    lost = [
        name
        for name, queue in _queues(case).items()
        if queue in served
        and not any(queue in one.queues and name in one.tasks for one in workers or ())
    ]
    if lost:
        yield warning(
            "task-unknown",
            f"no worker that serves its queue knows {', '.join(sorted(lost))}: after "
            f"{case.settings.unknown_task_grace:g} s a job of it is a dead letter",
            f"start the workers anew, with -m {_module(case)}",
        )


def _queues(case: Case) -> dict[str, str]:
    """Return the queue of each task that goes to Redis, by the task's name."""
    tasks = case.tasks_on(TaskExecutor.REDIS)
    return {task.name: task.options.queue or _USUAL for task in tasks}


def _module(case: Case) -> str:
    """Return the module that a worker should import, as far as it can be guessed."""
    tasks = case.tasks_on(TaskExecutor.REDIS)
    return next((task.func.__module__ for task in tasks if task.is_importable), "mysite.tasks")


SERVER = Group(
    code="redis",
    says="Redis can be reached, takes what is written, and keeps it",
    checks=(
        _reached,
        _version,
        _replica,
        _evicts,
        _full,
        _keeps,
        _writes,
        _rights,
        _hidden,
        _clock,
        _unsigned,
    ),
)
WORKERS = Group(
    code="workers",
    says="workers serve the queues, and know the tasks that are declared here",
    checks=(_nobody, _unserved, _unknown),
)
