"""What the running server says of itself, and what its silence means."""

from __future__ import annotations

import platform
from collections.abc import Iterator

from uwsgi_tasks.doctor.case import NO_TASKS, Case, Finding, Group, error, note, some, warning
from uwsgi_tasks.probe import Facts, Silence

_NICE = 19
_SLOW = "the spoolers starve on a busy machine: uWSGI starts them at nice 19"
_OURS = "uwsgi_tasks"
_CALLBACKS = {
    "spooler": "jobs are not run",
    "mule_msg_hook": "messages to mules are not run",
    "post_fork_hook": "a spooler that is killed is not noticed before its first job",
}
_AGAIN = "call set_uwsgi_callbacks() after it"


def _silence(case: Case) -> Iterator[Finding]:
    where = case.directory.path if case.directory else "the directory"
    if case.answer is Silence.NOBODY:
        yield _nobody(case, str(where))
    elif case.answer is Silence.TAKEN:
        yield error(
            "callbacks",
            f"a spooler of {where} took our question and did not answer: somebody has replaced "
            "uwsgi.spooler after uwsgi_tasks had set it",
            f"find the module that assigns uwsgi.spooler, and {_AGAIN}",
        )
    elif case.answer is Silence.LEFT and case.directory and case.directory.held:
        yield note(
            "busy",
            f"the spoolers of {where} run {case.directory.held} jobs, and none could answer",
            "ask again, or: spooler-processes = a larger number",
        )
    elif case.answer is Silence.LEFT:
        yield error(
            "callbacks",
            f"the spoolers of {where} live, and leave our question where it is: somebody has "
            "replaced uwsgi.spooler after uwsgi_tasks had set it",
            f"find the module that assigns uwsgi.spooler, and {_AGAIN}",
        )
    elif case.answer is Silence.HELD:
        yield warning(
            "slow-answer",
            f"a spooler of {where} has had our question for seconds: importing the tasks takes "
            "long, or somebody else's callback has it",
            "look into uWSGI's log, and ask again",
        )


def _nobody(case: Case, where: str) -> Finding:
    if case.directory and case.directory.uwsgi:
        return error(
            "not-loaded",
            f"uWSGI serves {where} (process {case.directory.uwsgi[0]}), and has not loaded "
            "uwsgi_tasks there: tasks that only views import are not known to spoolers",
            "import the tasks where the application is made (wsgi.py), or: spooler-import = MODULE",
        )
    return error(
        "no-server",
        f"no spooler lives that serves {where}: what is submitted waits",
        f"start uWSGI with: spooler = {where}",
    )


def _callbacks(case: Case) -> Iterator[Finding]:
    facts = case.facts
    if facts is None:
        return
    for name, effect in _CALLBACKS.items():
        called = facts.callbacks.get(name, ())
        if list(called[:1]) != [_OURS]:
            first = called[0] if called else "nobody"
            what = f"uwsgi.{name} is {first}'s in the spooler, and not ours: {effect}"
            remedy = f"find the module that assigns uwsgi.{name}, and {_AGAIN}"
            yield error("callbacks", what, remedy)
    behind = [
        other
        for called in facts.callbacks.values()
        if list(called[:1]) == [_OURS]
        for other in called[1:]
    ]
    if behind:
        yield note(
            "callbacks-behind",
            f"{some(set(behind))} was there before us, and is handed what is not ours",
            "nothing: this works",
        )


def _imports(case: Case) -> Iterator[Finding]:
    facts = case.facts
    if facts is None:
        return
    for name, trouble in facts.imports.items():
        if trouble:
            yield error(
                "task-import",
                f"the spooler cannot find {name}: {trouble}",
                "make its module importable there (pythonpath), and reload the server",
            )
    if not case.tasks:
        yield NO_TASKS


def _niceness(case: Case) -> Iterator[Finding]:
    facts = case.facts
    if facts is None or facts.nice < _NICE:
        return
    if facts.renice:
        what = f"{_SLOW}, which this user may not undo"
        yield warning("nice", what, "systemd: LimitNICE=20, or AmbientCapabilities=CAP_SYS_NICE")
    else:
        yield note("nice", f"{_SLOW}, and the setting renice is off", "UWSGI_TASKS_RENICE=true")


def _threads(case: Case) -> Iterator[Finding]:
    if case.facts and not case.facts.has_threads:
        yield error(
            "threads",
            "Python's threads stand still while this uWSGI waits: coroutine tasks may hang, and "
            "what a thread of ours writes comes late",
            "enable-threads = true",
        )


def _python(case: Case) -> Iterator[Finding]:
    facts, here = case.facts, platform.python_version_tuple()[:2]
    if facts and tuple(facts.python.split(".")[:2]) != here:
        yield warning(
            "python",
            f"the server runs Python {facts.python}, and this is {platform.python_version()}: what "
            "one pickles, the other may not read",
            "run this with the server's Python",
        )


_SWITCHES = ("lazy-apps", "spooler-ordered", "single-interpreter")
_NUMBERS = ("spooler-harakiri", "spooler-max-tasks", "spooler-processes", "mules")


def _restart(case: Case) -> Iterator[Finding]:
    facts = case.facts
    if facts is None or not case.options:
        return
    running = Case(
        options={name: [value] for name, value in facts.options.items()}, settings=case.settings
    )
    changed = [name for name in _SWITCHES if case.has(name) != running.has(name)]
    changed += [name for name in _NUMBERS if case.number(name) != running.number(name)]
    if changed:
        yield warning(
            "restart",
            f"the file and the running server differ in {some(changed)}",
            "restart uWSGI; a reload by SIGHUP reads the file as well",
        )


def _secret(case: Case) -> Iterator[Finding]:
    facts, here = case.facts, case.settings.signer is not None
    if facts is None:
        if not here:
            yield _unsigned("no secret is known here")
    elif not facts.accepts:
        yield error(
            "secret-differs",
            "the spooler refuses what this process signs: its secret is another one"
            if here
            else "the spooler asks for signatures, and this process knows no secret",
            "give both the same UWSGI_TASKS_SECRET, or the same Django SECRET_KEY",
        )
    elif not facts.has_secret:
        yield _unsigned("the spooler knows no secret" if here else "no secret is known")


def _unsigned(why: str) -> Finding:
    return warning(
        "no-secret",
        f"{why}: whoever can write into the directory or the store can run code",
        "UWSGI_TASKS_SECRET=$(python -c 'import secrets; print(secrets.token_hex(32))')",
    )


def _store(case: Case) -> Iterator[Finding]:
    if case.facts and not case.facts.same_store:
        yield error(
            "store-differs",
            "the spooler has another store, or namespace, than this process: results and dead "
            "letters are not where you look",
            "give both the same UWSGI_TASKS_STORE and UWSGI_TASKS_NAMESPACE",
        )


def described(facts: Facts) -> Finding:
    """Return who has answered."""
    return note(
        "answered",
        f"spooler {facts.pid}: uWSGI {facts.uwsgi}, Python {facts.python}, loaded in the "
        f"{facts.loaded_in}, {facts.declared} tasks, looks every {facts.frequency} s",
        "",
    )


def _answered(case: Case) -> Iterator[Finding]:
    if case.facts:
        yield described(case.facts)


SERVER = Group(
    code="server",
    says="a spooler has answered, with our callbacks in place, and can import the tasks",
    checks=(_silence, _answered, _callbacks, _imports, _niceness, _threads, _python, _restart),
)
SECRET = Group(
    code="secret",
    says="a secret signs what travels, and nobody was found who has another one",
    checks=(_secret,),
)
STORES = Group(
    code="same-store",
    says="the spooler has the same store as this process",
    checks=(_store,),
)
