"""The command `doctor`: what is wrong with a server's configuration, and how to mend it."""

from __future__ import annotations

from dataclasses import asdict

import click
from rich.text import Text

from uwsgi_tasks.cli import Session, command, no, shown, tables
from uwsgi_tasks.doctor import examine

_STYLES = {"error": "bold red", "warning": "yellow", "ok": "green", "note": "cyan"}


@click.command("doctor")
@click.option(
    "--probe/--no-probe",
    default=True,
    show_default=True,
    help="Ask the running spooler; else look at files alone.",
)
@command
def doctor(session: Session, probe: bool) -> None:  # noqa: FBT001  click hands it in by name
    """Say what is wrong with a server's configuration, and how to mend it.

    It reads the file of --ini and the spooler's directory, and asks the spooler if one runs.
    Import your tasks with -m, and their options are compared with what the server has.
    """
    path = session.ini.path if session.ini else None
    findings = examine(path, session.place, session.app, probe=probe)
    wrong = [finding for finding in findings if finding.level == "error"]
    if not session.emit({"findings": [asdict(one) for one in findings], "errors": len(wrong)}):
        console = tables.output()
        for finding in findings:
            head = Text(f"{finding.level:<8} ", style=_STYLES.get(finding.level, ""))
            head.append(shown.clean(finding.what), style="default not bold")
            console.print(head, soft_wrap=True)
            if finding.remedy:
                console.print(Text(shown.clean(f"         {finding.remedy}")), soft_wrap=True)
    if wrong:
        no()
