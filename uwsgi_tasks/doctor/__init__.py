"""Says what is wrong with a server and its configuration, and how to mend it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from uwsgi_tasks import ini as ini_module
from uwsgi_tasks import probe as probe_module
from uwsgi_tasks.app import App
from uwsgi_tasks.doctor import (
    asking,
    directory,
    limits,
    loading,
    looking,
    memory,
    processes,
    redis,
    serving,
    spelling,
)
from uwsgi_tasks.doctor.case import Case, Finding, Group, Memory, error, note
from uwsgi_tasks.errors import ConfigurationError, SubmitError, TasksError, shown
from uwsgi_tasks.ini import Ini
from uwsgi_tasks.model import TaskExecutor
from uwsgi_tasks.task import Task

__all__ = ["PATIENCE", "Finding", "examine"]

PATIENCE = 5.0
"""Seconds that a spooler gets to answer."""

_CONFIGURATION = (spelling.GROUP, processes.GROUP, loading.GROUP, limits.GROUP)
_SEVERITY = ("error", "warning", "note", "ok")


def examine(
    ini: Path | None, spooler: Path | None, app: App, *, probe: bool = True
) -> list[Finding]:
    """Look at a configuration, at the directory of a spooler, and at the server that serves it.

    Where jobs travel through Redis, that and its workers are looked at, too.
    What is not given is found out, as far as it can be: the directory is that of the settings, or
    those in *ini*. With *probe* the server is asked, which takes some seconds at most. The worst
    findings come first; ``ok`` says what was checked, and is well.
    """
    found = sorted(_findings(ini, spooler, app, probe=probe), key=_severity)
    # Two directories of one server may suffer from the same.
    return list(dict.fromkeys(found))


def _severity(finding: Finding) -> int:
    return _SEVERITY.index(finding.level)


def _findings(
    path: Path | None, spooler: Path | None, app: App, *, probe: bool
) -> Iterator[Finding]:
    try:
        file = ini_module.read(path) if path is not None else None
        case = _case(file, app, probe=probe)
    except ConfigurationError as trouble:
        yield error("configuration", str(trouble), "correct it, and ask again")
        return
    places = _places(file, spooler, case)
    visits = [_visit(place, case, probe=probe) for place in places]
    facts = next((visit.facts for visit in visits if isinstance(visit, Case) and visit.facts), None)
    if file is not None or facts is not None:
        yield from _judged(_CONFIGURATION, _told(replace(case, answer=facts)))
    if not places and _needs_directory(case):
        yield note(
            "no-directory",
            "no spooler directory is known, so none could be looked at",
            "UWSGI_TASKS_SPOOLER_DIR=DIRECTORY, or: uwsgi-tasks --spooler DIRECTORY doctor",
        )
    for visit in visits:
        if isinstance(visit, Finding):
            yield visit
        else:
            yield from _at(_told(visit), probe=probe)
    yield from _of_redis(case)
    if case.memory is not None:
        yield from memory.GROUP.judge(case)


def _of_redis(case: Case) -> Iterator[Finding]:
    """Judge Redis, if it was asked, and those who take its jobs, if it told of them."""
    if case.redis is None:
        if case.uses_redis:
            yield note("not-asked", "Redis was not asked", "")
        return
    yield from redis.SERVER.judge(case)
    if case.redis.workers is not None:
        yield from redis.WORKERS.judge(case)


def _needs_directory(case: Case) -> bool:
    """Is there anything that a spooler must do, as far as is known?"""
    chosen = {case.settings.executor, *(task.options.executor for task in case.tasks)}
    return TaskExecutor.SPOOLER in chosen or not case.uses_redis


def _case(file: Ini | None, app: App, *, probe: bool) -> Case:
    """Return what is known without looking at a directory. Raises ConfigurationError."""
    case = Case(
        options=_options(file),
        has_options=file is not None,
        settings=app.settings,
        tasks=_tasks(app),
        is_pyuwsgi=find_spec("pyuwsgi") is not None and sys.prefix != sys.base_prefix,
        base=file.path.parent if file else Path.cwd(),
    )
    if probe and case.uses_redis:
        case = replace(case, redis=asking.ask(app))
        if case.redis_is_store and case.redis and case.redis.trouble:
            # It would not answer as the store, either, and might take as long again.
            return case
    return replace(case, memory=_remember(app))


def _told(case: Case) -> Case:
    """Return *case* with the options of the running server, where there is no file."""
    if case.has_options or case.facts is None:
        return case
    # Of a repeated option the server shows one value alone: enough for most.
    options = {name: [value] for name, value in case.facts.options.items()}
    return replace(case, options=options, has_options=True)


def _judged(groups: Sequence[Group], case: Case) -> Iterator[Finding]:
    for group in groups:
        yield from group.judge(case)


def _visit(place: Path, case: Case, *, probe: bool) -> Case | Finding:
    """Look at one directory, and ask one of those who serve it; say why if that cannot be."""
    bad = looking.refused(place)
    if bad is not None:
        return bad
    if not probe:
        return replace(case, directory=looking.look(place, time.time()))
    try:
        answer = _ask(place, case)
    except (SubmitError, OSError) as trouble:
        return error("directory-unwritable", shown(trouble), f"df -h {place}; ls -ld {place}")
    # Afterwards: who did not answer may be found at work.
    return replace(case, answer=answer, directory=looking.look(place, time.time()))


def _at(case: Case, *, probe: bool) -> Iterator[Finding]:
    """Judge one directory, and those who serve it."""
    yield from _judged((directory.PLACE, directory.JOBS), case)
    if not probe:
        yield note("not-asked", "the running server was not asked", "")
        yield from serving.SECRET.judge(case)
        return
    yield from serving.SERVER.judge(case)
    if case.facts is not None:
        yield from _judged((serving.SECRET, serving.STORES), case)


def _ask(place: Path, case: Case) -> probe_module.Facts | probe_module.Silence:
    names = [task.name for task in case.tasks_on(TaskExecutor.SPOOLER) if task.is_importable]
    return probe_module.ask(place, names, PATIENCE, case.settings)


def _options(file: Ini | None) -> Mapping[str, Sequence[str]]:
    found: dict[str, list[str]] = {}
    for option in file.options if file else ():
        # A line without a value switches its option on.
        found.setdefault(option.name, []).append(option.value or "true")
    return found


def _tasks(app: App) -> list[Task[Any, Any]]:
    """Return each declared task once: some have a second name."""
    return list({task.name: task for task in app.tasks.values()}.values())


def _places(file: Ini | None, spooler: Path | None, case: Case) -> list[Path]:
    if spooler is not None:
        return [spooler.resolve()]
    if file is not None and (found := [*file.paths("spooler"), *file.paths("spooler-external")]):
        return list(dict.fromkeys(path.resolve() for path in found))
    chosen = case.settings.spooler_dir
    return [Path(chosen).resolve()] if chosen is not None else []


def _remember(app: App) -> Memory:
    """Ask the store how it is."""
    try:
        store = app.store
        skew = store.now() - time.time()
        return Memory(is_shared=store.shared, skew=skew, dead=app.dead.count())
    except TasksError as trouble:
        return Memory(trouble=str(trouble))
