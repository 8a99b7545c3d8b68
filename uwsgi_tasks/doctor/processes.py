"""Which processes the configuration of uWSGI makes, and whether the tasks have those they need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from uwsgi_tasks.doctor.case import Case, Finding, Group, error, note, some, warning
from uwsgi_tasks.model import TaskExecutor

_CUT = 65536
"""Bytes of a mule message that arrive, whatever the options say."""


def _master(case: Case) -> Iterator[Finding]:
    # A spooler brings the master along, if nobody forbids it.
    implied = bool(case.values("spooler")) and "master" not in case.options
    if not (case.has("master") or implied):
        yield error(
            "no-master",
            "the server has no master process, which spoolers, mules, timers and crons need",
            "master = true",
        )


def _spooler(case: Case) -> Iterator[Finding]:
    if case.values("spooler"):
        return
    external = case.values("spooler-external")
    if external:
        yield note(
            "spooler-external",
            f"this server writes jobs into {some(external)}, and runs none of them",
            f"let a second uWSGI run with: spooler = {external[0]}",
        )
        return
    others = [task for task in case.tasks if case.executor(task) != TaskExecutor.REDIS]
    wanting = [task.name for task in case.tasks_on(TaskExecutor.SPOOLER)]
    wanting += [
        task.name
        for task in others
        if task.options.at is not None or task.options.priority is not None
    ]
    if wanting:
        what = f"there is no spooler, which {some(set(wanting))} needs"
        yield error("no-spooler", what, "spooler = %dspool")
    elif not case.mules and (others or not case.uses_redis):
        what = "there is no spooler: tasks run at once, in the process of the caller"
        yield error("no-spooler", what, "spooler = %dspool")


def _relative(case: Case) -> Iterator[Finding]:
    for value in case.values("spooler"):
        if value and not Path(value).is_absolute():
            yield note(
                "relative-directory",
                f"the spooler directory {value} depends on where the server is started",
                f"spooler = %d{value.removeprefix('./')}",
            )


def _elsewhere(case: Case) -> Iterator[Finding]:
    chosen = case.settings.spooler_dir
    known = [*case.spoolers, *(case.base / path for path in case.values("spooler-external"))]
    if chosen is None or not known:
        return
    if Path(chosen).resolve() not in {path.resolve() for path in known}:
        yield error(
            "spooler-elsewhere",
            f"outside uWSGI jobs go to {chosen}, which this server does not serve",
            f"set spooler_dir to {known[0]}, or add: spooler = {chosen}",
        )


def _priorities(case: Case) -> Iterator[Finding]:
    ranked = [
        task.name
        for task in case.tasks
        if task.options.priority is not None and case.executor(task) != TaskExecutor.REDIS
    ]
    if ranked and not case.has("spooler-ordered") and case.values("spooler"):
        yield error(
            "not-ordered",
            f"{some(ranked)} has a priority, and without spooler-ordered uWSGI never looks into "
            "the folders of priorities",
            "spooler-ordered = true",
        )


def _mules(case: Case) -> Iterator[Finding]:
    wanting = case.tasks_on(TaskExecutor.MULE)
    if wanting and not case.mules:
        what = f"there is no mule, which {some(task.name for task in wanting)} needs"
        yield error("no-mules", what, "mules = 1")
        return
    farms = {farm.partition(":")[0] for farm in case.values("farm")}
    for task in wanting:
        mule = task.options.mule
        if isinstance(mule, int) and mule > case.mules:
            what = f"{task.name} wants mule {mule}, and there are {case.mules}"
            yield error("no-such-mule", what, f"mules = {mule}")
        elif isinstance(mule, str) and mule not in farms:
            what = f"{task.name} wants the farm {mule}, which there is not"
            yield error("no-such-farm", what, f"farm = {mule}:1")


def _mule_programs(case: Case) -> Iterator[Finding]:
    wanting = case.tasks_on(TaskExecutor.MULE)
    programs = [value for value in case.values("mule") if value.lower() != "true"]
    if wanting and programs and len(programs) == case.mules:
        yield error(
            "mule-program",
            f"every mule runs a program of its own ({some(programs)}), and none waits for "
            f"{some(task.name for task in wanting)}",
            "mules = 1",
        )


def _mule_messages(case: Case) -> Iterator[Finding]:
    size = case.number("mule-msg-size")
    if size is not None and size < _CUT:
        yield warning(
            "mule-buffer",
            f"mule-msg-size = {size} is the room for all messages that wait, and holds few",
            "mule-msg-size = 1000000",
        )
    # What AUTO sends and a mule does not take goes on to the next executor.
    strict = [task.name for task in case.tasks if task.options.executor == TaskExecutor.MULE]
    if strict:
        yield note(
            "mule-size",
            f"a call of {some(strict)} with more than 64 KB of arguments is refused, whatever "
            "mule-msg-size is: uWSGI would cut it",
            "for large arguments: @task(executor='spooler')",
        )


def _mule_harakiri(case: Case) -> Iterator[Finding]:
    if case.number("mule-harakiri") and case.tasks_on(TaskExecutor.MULE):
        yield note(
            "mule-harakiri",
            "mule-harakiri ends a mule whose signal takes too long, and never one whose task does",
            "@task(executor='mule', timeout=...)",
        )


GROUP = Group(
    code="processes",
    says="the configuration has the master, spoolers and mules that the tasks need",
    checks=(
        _master,
        _spooler,
        _relative,
        _elsewhere,
        _priorities,
        _mules,
        _mule_programs,
        _mule_messages,
        _mule_harakiri,
    ),
)
