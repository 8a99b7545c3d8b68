"""The command line `uwsgi-tasks`: what all its commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

import click

from uwsgi_tasks.app import App
from uwsgi_tasks.cli import described, shown
from uwsgi_tasks.errors import (
    ConfigurationError,
    InvalidTask,
    ResultNotKept,
    StoreError,
    SubmitError,
    TaskNotFound,
    TasksError,
)
from uwsgi_tasks.errors import shown as shown_error
from uwsgi_tasks.handle import JobHandle
from uwsgi_tasks.ini import Ini
from uwsgi_tasks.model import DeadLetter, State
from uwsgi_tasks.spool import SpoolDirectory

P = ParamSpec("P")
R = TypeVar("R")


class Code(IntEnum):
    """What the command line ends with."""

    DONE = 0
    NO = 1
    """The answer is no: the job is unknown, failed, was not cancelled."""
    WRONG = 2
    """It was used wrongly."""
    LATE = 3
    """The time is over."""
    AWAY = 4
    """The spooler's directory, the store or Redis cannot be reached."""
    INTERRUPTED = 130


class Failure(Exception):
    """The command cannot go on; its text names the remedy."""

    def __init__(self, message: str, code: Code) -> None:
        super().__init__(message)
        self.code = code


_CODES: Sequence[tuple[type[TasksError], Code]] = (
    (InvalidTask, Code.WRONG),
    (TaskNotFound, Code.WRONG),
    (ConfigurationError, Code.AWAY),
    (StoreError, Code.AWAY),
    (SubmitError, Code.AWAY),
    (TasksError, Code.NO),
)


class Program(click.Group):
    """A group of commands whose every error is one line, and one of our exit codes."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; raise what went wrong as `Failure`."""
        try:
            return super().invoke(ctx)
        except TasksError as error:
            code = next(code for kind, code in _CODES if isinstance(error, kind))
            raise Failure(str(error), code) from error
        except PermissionError as error:
            raise Failure(
                f"{error.filename or 'a file'}: {error.strerror}; run this as the user that uWSGI "
                "runs as",
                Code.AWAY,
            ) from error

    def main(  # type: ignore[override]  # it has no other mode
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run a command line, and exit with its code."""
        try:
            code = self.run(args, prog_name, **extra)
        except Failure as error:
            _complain(str(error))
            code = error.code
        sys.exit(int(code))

    def run(
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> int:
        """Run a command line, and return its code. Raises Failure."""
        try:
            # What a command returns is nothing; what it exits with is a code.
            return super().main(args, prog_name, **{**extra, "standalone_mode": False}) or Code.DONE
        except click.UsageError as error:
            hint = f" (see '{error.ctx.command_path} --help')" if error.ctx else ""
            message = error.format_message().removesuffix(".")
            raise Failure(f"{message}{hint}", Code.WRONG) from error
        except click.ClickException as error:
            raise Failure(error.format_message(), Code.WRONG) from error
        except click.Abort as error:
            raise Failure("interrupted", Code.INTERRUPTED) from error


def _complain(message: str) -> None:
    click.echo(f"uwsgi-tasks: {shown.clean(shown.one_line(message))}", err=True)


def served(ini: Ini) -> list[Path]:
    """Return the spooler directories that a server's file names."""
    return [*ini.paths("spooler"), *ini.paths("spooler-external")]


_NO_SPOOLER = "{} has no spooler: add 'spooler = DIRECTORY' to it, or name one with --spooler DIR"
_NOWHERE = (
    "no spooler directory is known: name it with --spooler DIR, or the server's file with "
    "--ini FILE, or set UWSGI_TASKS_SPOOLER_DIR; or name a Redis with --redis URL"
)


@dataclass
class Session:
    """What one command line works with."""

    app: App
    ini: Ini | None = None
    """The server's file, if it was named."""
    place: Path | None = None
    """The spooler's directory, if it was named."""
    as_json: bool = False

    def spooler(self) -> SpoolDirectory:
        """Return the spooler's directory. Raises Failure if there is none that can be used."""
        known = self.app.settings.spooler_dir
        if known is None:
            raise Failure(_NO_SPOOLER.format(self.ini.path) if self.ini else _NOWHERE, Code.AWAY)
        found = SpoolDirectory(Path(known))
        found.check()
        return found

    def look(self) -> None:
        """Raise Failure if there is nowhere to look for jobs: neither a spooler nor a Redis."""
        settings = self.app.settings
        if settings.spooler_dir is not None or not settings.has_redis:
            self.spooler()

    def state(self, handle: JobHandle) -> State | None:
        """Return where a job stands; None if nobody knows it, or knows it any more."""
        try:
            return handle.state
        except ResultNotKept:
            return State.FAILED if self.app.dead.get(handle.id) else None

    def tell(self, text: str) -> None:
        """Print a line for a person."""
        if not self.as_json:
            click.echo(shown.clean(text))

    def complain(self, text: str) -> None:
        """Print a line about something that did not work, where nobody parses it."""
        _complain(text)

    def say_how_many(self, listed: int, count: int) -> None:
        """Tell a person at a terminal that there are more than were listed."""
        if count > listed:
            click.echo(f"{listed:,} of {count:,}; -n 0 lists all", err=True)

    def called_with(self, letter: DeadLetter) -> tuple[dict[str, Any] | None, str]:
        """Return the arguments of a dead letter's job for JSON and for a person."""
        try:
            job = self.app.dead.job(letter)
        except TasksError as error:
            return None, f"(unreadable: {error})"
        return described.arguments(job), described.call(job)

    def emit(self, content: Any) -> bool:
        """Print *content* if JSON was asked for; say whether it was."""
        if self.as_json:
            click.echo(shown.document(content))
        return self.as_json


def load(module: str) -> None:
    """Import a module of the user's, so that its tasks are declared. Raises Failure."""
    try:
        import_module(module)
    # The user's module: anything may go wrong in it.
    except Exception as error:
        raise Failure(
            f"importing {module} failed: {shown_error(error)}; modules are looked for in the "
            "current directory and on PYTHONPATH",
            Code.WRONG,
        ) from error


def unknown(id: str) -> Failure:  # noqa: A002  it is the job's id
    """Return what to raise for a job that nobody knows."""
    return Failure(
        f"nothing is known of job {id}: it never was, or it has ended, and results are kept only "
        "of tasks with result_ttl=",
        Code.NO,
    )


def no() -> NoReturn:
    """End the command line: its answer is no."""
    raise click.exceptions.Exit(Code.NO)


def ask(question: str) -> None:
    """Go on if a person agrees. Raises click.UsageError if there is none."""
    try:
        agreed = click.confirm(question, err=True)
    # RuntimeError: there is no standard input at all, as under some cron jobs.
    except (click.Abort, RuntimeError) as error:
        raise click.UsageError("nobody answers here: say --yes") from error
    if not agreed:
        no()


def command(func: Callable[..., Any]) -> Callable[..., Any]:
    """Hand the session to a command, which takes --json as well, as its group does."""

    def chosen(ctx: click.Context, _: click.Parameter, value: bool) -> None:  # noqa: FBT001  click's
        session = ctx.find_object(Session)
        if value and session:
            session.as_json = True

    as_json = click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        callback=chosen,
        help="Print one JSON document.",
    )
    return as_json(click.pass_obj(func))
