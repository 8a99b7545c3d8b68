"""Whether the configuration of uWSGI brings the tasks into the processes that run them."""

from __future__ import annotations

from collections.abc import Iterator

from uwsgi_tasks.doctor.case import SHARED, SPOOLERS, Case, Finding, Group, error, note, warning
from uwsgi_tasks.model import TaskExecutor

_APPLICATIONS = ("module", "wsgi", "wsgi-file", "file", "mount", "pump", "paste", "ini-paste")


def _module(case: Case) -> str:
    """Return the module that shall be imported, as far as it can be guessed."""
    for task in case.tasks:
        if task.is_importable:
            return task.func.__module__
    return "mysite.tasks"


def _lazy(case: Case) -> Iterator[Finding]:
    if not case.has("lazy-apps", "lazy") or case.values(*SHARED):
        return
    if case.values("spooler") and not case.values(*SPOOLERS):
        yield error(
            "lazy-apps",
            "with lazy-apps the workers alone load the application: the spoolers have no tasks, "
            "and jobs wait for ever",
            f"shared-import = {_module(case)}",
        )
    elif case.tasks_on(TaskExecutor.MULE):
        yield error(
            "lazy-mules",
            "with lazy-apps the workers alone load the application, and spooler-import serves "
            "spoolers alone: the mules have no tasks",
            f"shared-import = {_module(case)}",
        )


def _nothing(case: Case) -> Iterator[Finding]:
    if case.values(*_APPLICATIONS, *SHARED, *SPOOLERS) or not case.values("spooler"):
        return
    yield error(
        "nothing-loaded",
        "the configuration loads no application in the master, and no module in the spoolers",
        f"shared-import = {_module(case)}",
    )


def _need_app(case: Case) -> Iterator[Finding]:
    if case.values(*_APPLICATIONS) and not case.has("need-app") and not case.values(*SPOOLERS):
        yield note(
            "need-app",
            "if the application does not load, uWSGI starts all the same, and jobs wait",
            "need-app = true",
        )


def _interpreters(case: Case) -> Iterator[Finding]:
    if len(case.values(*_APPLICATIONS)) > 1 and not case.has("single-interpreter"):
        yield warning(
            "interpreters",
            "several applications are loaded, each but the first into an interpreter of its own, "
            "whose tasks spoolers and mules do not see",
            "single-interpreter = true",
        )


def _binary_path(case: Case) -> Iterator[Finding]:
    facts = case.facts
    if (facts.is_pyuwsgi if facts else case.is_pyuwsgi) and not case.values("binary-path"):
        yield warning(
            "binary-path",
            "pyuwsgi in a virtual environment starts the wrong Python at a reload, and the server "
            "is gone",
            "binary-path = .venv/bin/python",
        )


def _end(case: Case) -> Iterator[Finding]:
    if not case.has("die-on-term"):
        what = "SIGTERM does not stop this server: it reloads, which kills what its spoolers run"
        yield note("die-on-term", what, "die-on-term = true")


GROUP = Group(
    code="loading",
    says="the configuration loads the tasks where they run",
    checks=(_lazy, _nothing, _need_app, _interpreters, _binary_path, _end),
)
