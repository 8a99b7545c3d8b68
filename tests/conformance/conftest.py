"""Every executor, with a uWSGI that carries its bytes inside the test, and every store."""

import os
import signal
from pathlib import Path

import pytest

import uwsgi_tasks.executors
from tests import fakes
from tests.conformance.places import database, place, shared, store  # noqa: F401  fixtures
from tests.fakes import FakeUwsgi
from tests.servers import mariadb, postgresql  # noqa: F401  fixtures
from uwsgi_tasks import App
from uwsgi_tasks.codec import decode
from uwsgi_tasks.limits import alarm
from uwsgi_tasks.server import Server

FOLDER = Path(uwsgi_tasks.executors.__file__).parent
clock, home, wakes = fakes.clock, fakes.home, fakes.wakes
EXECUTORS = sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))


class Carrier:
    """An app, and whatever runs the jobs that its executor takes."""

    executor: str
    """What the tasks are declared with."""
    travels = True
    """Is a failure a dead letter, not an exception at the call?"""
    alone = False
    """Does the process run one job at a time?"""
    moves = True
    """Does a job run in its working directory?"""
    waits = True
    """Can a job wait between two attempts?"""
    counts = True
    """Are the runs counted?"""

    def __init__(self, folder, clock, wakes):
        self.folder, self.clock, self.wakes = folder, clock, wakes
        self.spool = folder / "spool"
        self.spool.mkdir(mode=0o750)
        self.uwsgi = self.server()
        self.app = App(Server(self.uwsgi), dead_dir=str(folder / "spool" / "dead"))
        self.inside = self.app
        """The app of the processes that run the jobs."""
        self.start(self.app)

    def server(self):
        """The uWSGI, if there is one."""
        return

    def start(self, app):
        """Let *app* be loaded by the master, and its processes be forked."""
        if self.uwsgi is not None:
            with self.uwsgi.being("master"):
                app.set_uwsgi_callbacks()
            for number in range(1, self.uwsgi.mules + 1):
                self.uwsgi.fork(app.server, "mule", number)

    def task(self, func=None, /, **options):
        """Declare a function of the test as a task; it has a name, as one of a module has."""

        def declare(func):
            name = f"conformance.{func.__name__}"
            return self.app.task(**{"executor": self.executor, "name": name, **options})(func)

        return declare if func is None else declare(func)

    def configure(self, **settings):
        """Change the settings of all processes."""
        self.app.configure(**settings)

    def work(self):
        """Run all that is due."""
        if self.uwsgi is None:
            return
        busy = True
        while busy:
            self.wakes.clear()
            ended = self.uwsgi.look() if hasattr(self.uwsgi, "spoolers") else 0
            busy = bool(ended or self.wakes or self.uwsgi.messages)
            self.uwsgi.deliver()

    def wait(self, seconds):
        """Let time pass, and run all that is due then."""
        self.clock.advance(seconds)
        self.work()

    def failures(self, call):
        """Make *call* and run it to its end; return the failures, each as "Type: text"."""
        try:
            call()
        except Exception as error:  # noqa: BLE001  how the attempt ended
            return [f"{type(error).__name__}: {error}"]
        self.wait(60)
        return [letter.error for letter, _ in self.dead()]

    def dead(self):
        """The dead letters, the newest first: what is known of each, and its job."""
        signer = self.app.settings.signer
        return [(letter, decode(letter.payload, signer)[0]) for letter in self.app.dead.list()]

    def left(self):
        """How many files still wait."""
        return len(self.uwsgi.spool_files()) if hasattr(self.uwsgi, "spoolers") else 0


class Runtime(Carrier):
    """In the process of the caller."""

    executor = "runtime"
    travels = False
    moves = False
    waits = False
    counts = False


class Spooler(Carrier):
    """Inside uWSGI, into its spooler."""

    executor = "spooler"
    alone = True

    def server(self):
        return FakeUwsgi(spoolers=(str(self.spool),), ordered=True)


class SpoolerFromOutside(Spooler):
    """From a process without uWSGI, into the spooler of one."""

    def start(self, app):
        super().start(app)
        self.app = App(Server(None), spooler_dir=str(self.spool))
        # The other process would import the module, and find the same tasks.
        self.app.tasks = app.tasks

    def configure(self, **settings):
        super().configure(**settings)
        self.inside.configure(**settings)


class Mule(Carrier):
    """To a mule, beside a spooler that takes what must wait."""

    executor = "mule"
    alone = True

    def server(self):
        return FakeUwsgi(mules=1, spoolers=(str(self.spool),))


class LonelyMule(Carrier):
    """To a mule, in a server without a spooler."""

    executor = "mule"
    alone = True
    waits = False
    counts = False

    def server(self):
        return FakeUwsgi(mules=1)


CARRIERS = {
    "mule": [Mule, LonelyMule],
    "runtime": [Runtime],
    "spooler": [Spooler, SpoolerFromOutside],
}
"""The contract is checked for each of these. A new executor needs an entry."""


def carried(*kinds):
    """A fixture: a carrier, of each of these kinds."""

    @pytest.fixture(params=kinds, ids=lambda kind: kind.__name__)
    def carrier(request, tmp_path, home, clock, wakes):
        made = request.param(tmp_path, clock, wakes)
        alarmed = signal.getsignal(signal.SIGALRM)
        yield made
        # Spoolers and mules listen to it for life.
        alarm.watch(lambda: False)
        signal.signal(signal.SIGALRM, alarmed)
        os.chdir("/")

    return carrier


ALL = [one for all_ in CARRIERS.values() for one in all_]
carrier = carried(*ALL)
