"""Start the example: prepares what it needs, runs uWSGI, and stops it with Ctrl-C."""

import contextlib
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
VAR = HERE / "var"
LOG = VAR / "uwsgi.log"

# `python -m pyuwsgi` does not exist, for it is a compiled module.
START_UWSGI = [sys.executable, "-c", "import pyuwsgi; pyuwsgi.run()"]
MERCY = 10
"""Seconds that uWSGI has to stop before it is killed."""

OURS = re.compile(r"\d\d:\d\d:\d\d (DEBUG|INFO|WARNING|ERROR|CRITICAL) ")
CHATTER = re.compile(r"spawned |\[uwsgi-(signal|cron|static)\]|\[uWSGI\]")


def main() -> int:
    """Run the server until it is told to stop; return the exit code."""
    try:
        prepare()
    except ModuleNotFoundError as error:
        say(f"{error}. Install what the example needs: pip install -e '.[uwsgi,django,sql]'")
        return 1
    except BlockingIOError:
        say(f"The example is running already, from this folder; see {LOG}.")
        return 1
    except KeyboardInterrupt:
        return 0
    return Console(free_port(int(os.environ.get("PORT") or 8080))).run()


def prepare() -> None:
    """Make the folders and the database, and mend what the last stop interrupted."""
    for folder in (VAR, VAR / "spooler", VAR / "mail"):
        folder.mkdir(mode=0o700, exist_ok=True)
    # One server at a time: the records could not say whose jobs the other one's are. Left open, so
    # that it is held until we are gone.
    fcntl.flock(os.open(VAR / "lock", os.O_CREAT | os.O_RDWR, 0o600), fcntl.LOCK_EX | fcntl.LOCK_NB)
    sys.path.insert(0, str(HERE))
    os.environ["DJANGO_SETTINGS_MODULE"] = "bookshop.settings"
    __import__("pyuwsgi")
    __import__("sqlalchemy")
    import django  # noqa: PLC0415  after the check above, and with the path set
    from django.core.management import call_command  # noqa: PLC0415

    django.setup()
    call_command("migrate", verbosity=0)
    from shop.records import recover  # noqa: PLC0415

    recover()


def free_port(wanted: int) -> int:
    """Return *wanted*, or a port of the system's choice if somebody has it."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            # As uWSGI does it: a port that was closed a moment ago is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise SystemExit("There is no free port.")


def start_uwsgi(port: int) -> subprocess.Popen[str]:
    """Start the server, and have all that it says come to us."""
    return subprocess.Popen(
        [*START_UWSGI, "--binary-path", sys.executable, str(ROOT / "uwsgi.ini")],
        cwd=ROOT,
        env=os.environ | {"PORT": str(port)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # Ctrl-C then reaches us alone, and we stop uWSGI in one orderly way. A terminal would
        # interrupt all of its processes at once, each in the middle of its work.
        process_group=0,
    )


class Console:
    """Runs uWSGI and shows, of what it says, the shop's own lines and what matters."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.server: subprocess.Popen[str] | None = None
        self.starting = True
        self.told_to_stop = False
        self.held: list[str] = []

    def run(self) -> int:
        """Show what comes until all of uWSGI is gone; return the exit code."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: self.stop())
        self.server = server = start_uwsgi(self.port)
        if self.told_to_stop:
            kill_group(server)
        try:
            with LOG.open("w", encoding="utf-8") as log:
                # Ends when the last process that could write a line is gone.
                for line in server.stdout or ():
                    log.write(line)
                    log.flush()
                    self.show(line)
        finally:
            kill_group(server)
            code = server.wait()
        if self.told_to_stop:
            say("Stopped.")
            return 0
        say("".join(self.held), f"uWSGI ended by itself (code {code}); {LOG} says more.")
        return code or 1

    def stop(self) -> None:
        """Have uWSGI stop, and see to it that it does."""
        if self.told_to_stop:
            return
        self.told_to_stop = True
        # Not print: the signal may have come in the middle of one.
        os.write(sys.stdout.fileno(), b"\nStopping...\n")
        if self.server:
            threading.Thread(target=end, args=[self.server], daemon=True).start()

    def show(self, line: str) -> None:
        """Print *line* if it helps."""
        if line.startswith("*** Starting uWSGI"):
            # A reload comes by here again.
            self.starting, self.held = True, []
        if self.starting:
            self.held.append(line)
        if OURS.match(line) or not (self.starting or self.told_to_stop or CHATTER.search(line)):
            say(line.rstrip())
        if self.starting and line.startswith("spawned uWSGI worker 1"):
            self.starting, self.held = False, []
            if not self.told_to_stop:
                self.welcome()

    def welcome(self) -> None:
        """Say where to look."""
        say(
            f"\n  Open http://127.0.0.1:{self.port}/ and press a few buttons."
            f"\n  Ctrl-C stops it. What uWSGI says goes to {LOG.relative_to(ROOT)}.\n"
        )


def say(*lines: str) -> None:
    """Print at once, even into a pipe."""
    print(*lines, sep="\n", flush=True)


def end(server: subprocess.Popen[str]) -> None:
    """Tell uWSGI to stop until it does; it overlooks a signal that comes while it starts."""
    for _ in range(MERCY):
        server.terminate()
        time.sleep(1)
    kill_group(server)


def kill_group(server: subprocess.Popen[str]) -> None:
    """End whatever is left of uWSGI."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
