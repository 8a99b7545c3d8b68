"""The command line `uwsgi-tasks`, put together."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import click

from uwsgi_tasks import default_app, django_setup, ini
from uwsgi_tasks.app import App
from uwsgi_tasks.cli import Code, Failure, Program, Session, load, served
from uwsgi_tasks.errors import ConfigurationError, shown

EPILOG = """\b
Exit codes:
  0  done
  1  the answer is no: unknown, failed, not cancelled, nothing to do
  2  wrong usage
  3  the time is over (wait, submit --wait)
  4  the spooler's directory, the store or Redis cannot be reached
"""
_COMMANDS: Mapping[str, str] = {
    "cancel": "jobs:cancel",
    "dead": "dead:dead",
    "doctor": "examination:doctor",
    "empty": "queues:empty",
    "ls": "jobs:list_jobs",
    "purge": "upkeep:purge",
    "queues": "queues:queues",
    "show": "show:show_job",
    "stats": "upkeep:stats",
    "submit": "calls:submit",
    "tasks": "calls:list_tasks",
    "wait": "jobs:wait",
    "watch": "watch:watch",
    "worker": "work:worker",
    "workers": "queues:workers",
}
"""Where each of them is: a file of this folder, and its name there."""


class _Whole(Program):
    """All commands, each imported when it is called: a worker has no use for the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's
        """Return the names of all commands."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  click's
        """Return the command of this name."""
        return self.load(cmd_name) if cmd_name in _COMMANDS else None

    @staticmethod
    def load(name: str) -> click.Command:
        """Import the command of this name."""
        file, _, attribute = _COMMANDS[name].partition(":")
        found: click.Command = getattr(import_module(f"uwsgi_tasks.cli.{file}"), attribute)
        return found


@click.group(
    "uwsgi-tasks",
    cls=_Whole,
    no_args_is_help=False,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "-m",
    "--module",
    "modules",
    multiple=True,
    metavar="MODULE",
    help="Import this module first, so that its tasks are declared. May be repeated.",
)
@click.option(
    "--spooler",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The spooler's directory. Else that of --ini, or the setting spooler_dir.",
)
@click.option("--store", metavar="URL", help="The store. Else the setting, or the default.")
@click.option(
    "--ini",
    "ini_file",
    metavar="FILE",
    help="A uwsgi.ini: take the spooler's directory, pythonpath and env from it.",
)
@click.option(
    "--redis", metavar="URL", help="The Redis. Else the setting, or the one of this machine."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.version_option(package_name="uwsgi_tasks", message="%(prog)s %(version)s")
@click.pass_context
def program(
    ctx: click.Context,
    modules: tuple[str, ...],
    spooler: Path | None,
    store: str | None,
    ini_file: str | None,
    redis: str | None,
    as_json: bool,  # noqa: FBT001  click hands it in by name
) -> None:
    """Look at background tasks, and say what shall become of them.

    It works on the spooler's directory, on the store and on Redis, whether uWSGI runs or not.
    Settings are read as everywhere: from Django, if DJANGO_SETTINGS_MODULE is set, and from
    UWSGI_TASKS_... in the environment.
    """
    app: App = ctx.obj or default_app
    _prefer(Path.cwd())
    try:
        found = ini.read(ini_file) if ini_file else None
        if found:
            _adopt(found)
        if "DJANGO_SETTINGS_MODULE" in os.environ:
            _set_up_django()
        app.configure(**_settings(spooler, found, store=store, redis=redis))
        # Read now, so that a setting that cannot be is wrong usage, and not a server away.
        app.settings  # noqa: B018
    except ConfigurationError as error:
        raise Failure(str(error), Code.WRONG) from error
    for module in modules:
        load(module)
    ctx.obj = Session(app, found, spooler, as_json)


def _settings(spooler: Path | None, found: ini.Ini | None, **urls: str | None) -> dict[str, str]:
    given = {name: url for name, url in urls.items() if url is not None}
    if spooler is None and found:
        spooler = next(iter(served(found)), None)
    if spooler is not None:
        given["spooler_dir"] = str(spooler.absolute())
    return given


def _adopt(found: ini.Ini) -> None:
    """Let this process find the modules and settings that the server finds."""
    for name in ("pythonpath", "python-path", "pp"):
        for path in found.paths(name):
            _prefer(path)
    for line in found.get("env"):
        name, equals, value = line.partition("=")
        if equals:
            # What was set for this command is meant for it.
            os.environ.setdefault(name, value)


def _prefer(folder: Path) -> None:
    path = str(folder.absolute())
    if path not in sys.path:
        sys.path.insert(0, path)


def _set_up_django() -> None:
    try:
        django_setup()
    # The user's settings and applications: anything may go wrong in them.
    except Exception as error:
        raise ConfigurationError(
            f"Django could not be set up with {os.environ['DJANGO_SETTINGS_MODULE']}: "
            f"{shown(error)}"
        ) from error
