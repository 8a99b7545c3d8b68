"""The store: whether it answers, who else sees it, what its clock says, and who is dead in it."""

from __future__ import annotations

from collections.abc import Iterator

from uwsgi_tasks.doctor.case import Case, Finding, Group, error, note, warning

_SKEW = 2.0
"""Seconds that two clocks may differ."""


def _reached(case: Case) -> Iterator[Finding]:
    if case.memory and case.memory.trouble:
        yield error(
            "store-unreachable",
            f"the store cannot be reached: {case.memory.trouble}",
            "start it, or correct UWSGI_TASKS_STORE",
        )


def _shared(case: Case) -> Iterator[Finding]:
    if case.memory and not case.memory.is_shared:
        yield warning(
            "store-not-shared",
            "the store is in the memory of each process: results and dead letters are seen by the "
            "process alone that wrote them",
            "UWSGI_TASKS_REDIS=redis://localhost:6379/0, which is the store then, too"
            if case.uses_redis
            else "UWSGI_TASKS_STORE=sqlite:////srv/mysite/tasks.sqlite3",
        )


def _clock(case: Case) -> Iterator[Finding]:
    if case.memory and abs(case.memory.skew) > _SKEW:
        yield warning(
            "clock-skew",
            f"the store's clock is {abs(case.memory.skew):.0f} s "
            f"{'ahead of' if case.memory.skew > 0 else 'behind'} this machine's",
            "keep both with NTP: timedatectl set-ntp true",
        )


def _dead(case: Case) -> Iterator[Finding]:
    if case.memory and case.memory.dead:
        what = f"{case.memory.dead} jobs have finally failed, and wait for you"
        yield note("dead-letters", what, "uwsgi-tasks dead ls")


GROUP = Group(
    code="store",
    says="the store answers, all processes see it, and its clock is right",
    checks=(_reached, _shared, _clock, _dead),
)
