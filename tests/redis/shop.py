"""A folder with tasks in it, the command lines that are typed there, and what came of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from tests.uwsgi.serving import event_in
from tests.uwsgi_coverage import environment
from uwsgi_tasks.redis.client import Client
from uwsgi_tasks.redis.presence import workers
from uwsgi_tasks.redis.queues import Queues

ROOT = Path(__file__).parent.parent.parent
STAGE = ROOT / "tests" / "uwsgi" / "stage.py"
DEADLINE = 30.0
SOURCE = """
    import asyncio, os, time
    from stage import gate, record
    from uwsgi_tasks import get_current_task, task

    @task(executor="redis")
    def note(name):
        record(name, id=get_current_task().id, home=os.getcwd())

    @task(executor="redis")
    def nap(name, seconds):
        record(name)
        time.sleep(seconds)
        record(f"{name} is over")

    @task(executor="redis")
    def hold(name):
        record(f"{name} begins", id=get_current_task().id)
        gate(name)
        record(f"{name} ends", id=get_current_task().id)

    @task(executor="redis")
    async def swim(name):
        await asyncio.sleep(0.01)
        record(name)

    @task(executor="redis")
    def grow(megabytes):
        globals().setdefault("fat", []).append(bytearray(megabytes * 2**20))
        record("grown")
"""


class Program:
    """One command line that runs, and what it writes."""

    def __init__(self, words: list[str], log: Path, **options: Any) -> None:
        self._log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, **options
            )
        self.pid = self.process.pid

    @property
    def log(self) -> str:
        """Everything that it wrote."""
        return self._log.read_text(errors="replace")

    @property
    def children(self) -> list[int]:
        """Its processes that live, the oldest first."""
        with suppress(OSError):
            found = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
            return [pid for pid in map(int, found) if stat(pid)[:1] not in ([], ["Z"])]
        return []

    def tell(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self, seconds: float = DEADLINE) -> int:
        """Return what it ends with."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.log) from None


class Shop:
    """Starts command lines in *folder*, for the Redis at *url*."""

    def __init__(self, folder: Path, url: str | None, source: str = SOURCE) -> None:
        self.folder, self.url = folder, url
        self._events, self._gates = folder / "events.jsonl", folder / "gates"
        self._gates.mkdir()
        shutil.copy(STAGE, folder)
        self.write("shop.py", source)
        self._numbers = count(1)
        self.programs: list[Program] = []

    def write(self, name: str, source: str) -> None:
        """Write a module."""
        (self.folder / name).write_text(textwrap.dedent(source))

    def environment(self, **changes: str) -> dict[str, str]:
        """Return what a command line is started with."""
        given = {
            "PYTHONPATH": str(ROOT),
            "STAGE_EVENTS": str(self._events),
            "STAGE_GATES": str(self._gates),
            "UWSGI_TASKS_DEAD_DIR": str(self.folder / "dead"),
        }
        if self.url:
            given["UWSGI_TASKS_REDIS"] = self.url
        return environment(**{**given, **changes})

    # -- what is typed

    def start(self, *words: str, module: str = "uwsgi_tasks", **options: Any) -> Program:
        """Start a command line of ours."""
        log = self.folder / f"{len(self.programs)}.log"
        env = self.environment(**options.pop("env", {}))
        command = [sys.executable, "-m", module, *words]
        made = Program(command, log, cwd=self.folder, env=env, **options)
        self.programs.append(made)
        return made

    def work(self, *words: str, **options: Any) -> Program:
        """Start a worker."""
        return self.start("worker", "-m", "shop", *words, **options)

    def type(self, *words: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        """Return what a command line of ours says."""
        ended = subprocess.run(
            [sys.executable, "-m", "uwsgi_tasks", *words],
            cwd=self.folder,
            env=self.environment(**env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert ended.returncode == code, f"{words}: {ended.stdout}\n{ended.stderr}"
        assert "Traceback" not in ended.stderr
        return ended

    def ask(self, *words: str, code: int = 0, **env: str) -> Any:
        """Return what a command line of ours says in JSON."""
        return json.loads(self.type("--json", *words, code=code, **env).stdout)

    # -- what it has to do

    @property
    def queues(self) -> Queues:
        """The queues, as a program sees them that knows the wire alone."""
        assert self.url
        return Queues(Client(self.url), "")

    def submit(self, task: str, *args: object, queue: str = "default", **options: Any) -> str:
        """Submit a call of one of its tasks; return its id."""
        return self.submit_all(task, [args], queue=queue, **options)[0]

    def submit_all(
        self, task: str, calls: list[Any], queue: str = "default", **options: Any
    ) -> list[str]:
        """Submit many calls at once; return their ids."""
        ids, words = [], []
        for args in calls:
            ids.append(f"job-{next(self._numbers)}")
            payload = {"id": ids[-1], "task": f"shop.{task}", "args": list(args), "queue": queue}
            words += [ids[-1], json.dumps(payload)]
        self.queues.submit(queue, words, **options)
        return ids

    def open_gate(self, name: str) -> None:
        """Let those go on that wait at `gate(name)`."""
        (self._gates / name).touch()

    # -- what there is to see

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """Return what was noted, of *name* only, if given."""
        if not self._events.exists():
            return []
        lines = self._events.read_bytes().split(b"\n")[:-1]
        return [one for one in map(event_in, lines) if name in {None, one["event"]}]

    def names(self) -> list[str]:
        """Return the names of all events, in their order."""
        return [event["event"] for event in self.events()]

    def wait_for(self, condition: Callable[[], Any], seconds: float = DEADLINE) -> Any:
        """Return the first true value of *condition*; fail, with the logs, if there is none."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            logs = "\n---\n".join(one.log[-2000:] for one in self.programs[-4:])
            seen = [(one["event"], one["pid"]) for one in self.events()[-20:]]
            assert time.monotonic() < deadline, f"{seen}\n{logs}"
            time.sleep(0.01)
        return found

    def wait_for_events(self, name: str, number: int = 1) -> list[dict[str, Any]]:
        """Return the events of *name* as soon as there are so many."""
        self.wait_for(lambda: len(self.events(name)) >= number)
        return self.events(name)

    def wait_until_ready(self, processes: int = 1) -> None:
        """Wait until so many processes take jobs."""
        self.wait_for(lambda: len(workers(self.queues)) >= processes)

    def wait_until_empty(self) -> None:
        """Wait until no job waits or runs."""
        self.wait_for(lambda: not any(sum(self.queues.sizes(one)) for one in self.queues.names()))

    def end(self) -> None:
        """Kill what is left."""
        for program in self.programs:
            # Of one that has ended, the number may be another's by now.
            is_alive = program.process.poll() is None
            for pid in [program.pid, *program.children] if is_alive else ():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            program.process.wait()


def stat(pid: int) -> list[str]:
    """Return what the system knows of a process, its state first; nothing if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
