"""The command line of uwsgi_tasks as ``manage.py uwsgi_tasks ...``."""

from __future__ import annotations

from argparse import REMAINDER, ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from uwsgi_tasks.__main__ import program
from uwsgi_tasks.cli import Failure


class Command(BaseCommand):  # type: ignore[misc]  # Django ships no types
    """Hands its words to the command line, which reads them in its own way."""

    help = program.help
    # The command line is what one looks with at a site that is broken.
    requires_system_checks = ()

    def run_from_argv(self, argv: Sequence[str]) -> None:
        """Run what was typed behind manage.py, and exit with its code."""
        # These two manage.py takes anywhere, and has obeyed by now.
        theirs = ArgumentParser(add_help=False, allow_abbrev=False)
        theirs.add_argument("--settings")
        theirs.add_argument("--pythonpath")
        _, words = theirs.parse_known_args(list(argv[2:]))
        program.main(words, prog_name=f"{Path(argv[0]).name} {argv[1]}")

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Let ``call_command`` pass all words on."""
        parser.add_argument("words", nargs=REMAINDER)

    def handle(self, *_: Any, words: Sequence[str], **__: Any) -> None:
        """Run what ``call_command`` was given. Raises CommandError."""
        try:
            code = program.run(words, "manage.py uwsgi_tasks")
        except Failure as error:
            raise CommandError(str(error), returncode=int(error.code)) from error
        if code:
            raise CommandError("the answer is no", returncode=int(code))
