"""Workers of one application, started as users start them, and what their jobs have noted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.uwsgi.serving import event_in
from tests.uwsgi_coverage import environment
from uwsgi_tasks.model import Sizes
from uwsgi_tasks.redis.client import Client
from uwsgi_tasks.redis.queues import Queues

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
STAGE = ROOT / "tests" / "uwsgi" / "stage.py"
DEADLINE = 30.0
QUEUES = "high,default,low"


class Worker:
    """One program `uwsgi-tasks worker`, and what it writes."""

    def __init__(self, command: list[str], folder: Path, env: dict[str, str], log: Path) -> None:
        self.log_file = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        self.pid = self._process.pid
        has_several = "--processes" in command
        self.processes = int(command[command.index("--processes") + 1]) if has_several else 1
        """How many take jobs."""

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pids(self) -> list[int]:
        """Its processes: itself, and its children."""
        found = [self.pid]
        with suppress(OSError):
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
            found += map(int, children.split())
        return found

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def was_killed(self) -> bool:
        """Has it been killed? That it has ended in another way fails the test."""
        code = self._process.poll()
        assert code in {None, -signal.SIGKILL}, self.log
        return code is not None

    def wait(self, seconds: float = DEADLINE) -> int:
        """Wait for its end; return its exit code, as `Popen` has it."""
        return self._process.wait(seconds)

    def stop(self) -> int:
        """Tell it to end; return its exit code."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        return self.wait()


class Crew:
    """Starts workers in a folder of the test's own, for the Redis at *url*."""

    def __init__(self, folder: Path, url: str, source: Path, **env: str) -> None:
        self.folder, self.url = folder, url
        shutil.copy(STAGE, folder)
        shutil.copy(source, folder / "app.py")
        self._events_file, self._gates = folder / "events.jsonl", folder / "gates"
        for name in ("armed", "spent", "gates"):
            (folder / name).mkdir()
        self._env = env
        self._namespace = env.get("UWSGI_TASKS_NAMESPACE", "")
        self.workers: list[Worker] = []
        self._desk: subprocess.Popen[str] | None = None

    def _environment(self, **env: str) -> dict[str, str]:
        given = {
            "PYTHONPATH": os.pathsep.join(map(str, [self.folder, ROOT])),
            "STAGE_EVENTS": str(self._events_file),
            "STAGE_GATES": str(self._gates),
            "UWSGI_TASKS_REDIS": self.url,
            "UWSGI_TASKS_DEAD_DIR": str(self.folder / "dead"),
        }
        return environment(**{**given, **self._env, **env})

    def start(self, *options: str, queues: str = QUEUES, **env: str) -> Worker:
        """Start a worker; *env* is its own, as UWSGI_TASKS_REDIS for another way to Redis."""
        command = [sys.executable, "-m", "uwsgi_tasks", "worker", "-m", "app", "-q", queues]
        log = self.folder / f"worker{len(self.workers)}.log"
        worker = Worker([*command, *options], self.folder, self._environment(**env), log)
        self.workers.append(worker)
        return worker

    def program(self, source: str, **streams: Any) -> subprocess.Popen[str]:
        """Start Python with *source*; the application is its module `app`."""
        return subprocess.Popen(
            [sys.executable, "-c", f"import app; {source}"],
            cwd=self.folder,
            env=self._environment(),
            text=True,
            **streams,
        )

    def call(self, source: str) -> Any:
        """Return what an expression is, in the application of a process that submits."""
        if self._desk is None:
            pipe = subprocess.PIPE
            self._desk = self.program("app.desk()", stdin=pipe, stdout=pipe)
        assert self._desk.stdin
        assert self._desk.stdout
        self._desk.stdin.write(json.dumps(source) + "\n")
        self._desk.stdin.flush()
        answer = json.loads(self._desk.stdout.readline())
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def wait_until_ready(self, worker: Worker) -> None:
        """Wait until each process of *worker* takes jobs, and can be told to end."""
        processes = worker.processes
        self.wait_for(lambda: len(set(worker.pids) & set(self.call("present()"))) >= processes)

    def open_gate(self, name: str) -> None:
        (self._gates / name).touch()

    # -- what there is to see

    def events(self, *names: str) -> list[dict[str, Any]]:
        """Return what was noted; of the last line, which may be half written, nothing."""
        if not self._events_file.exists():
            return []
        lines = self._events_file.read_bytes().split(b"\n")[:-1]
        found = map(event_in, lines)
        return [event for event in found if event["event"] in names or not names]

    @property
    def queues(self) -> Queues:
        return Queues(Client(self.url), self._namespace)

    def sizes(self) -> Sizes:
        """Return how many jobs there are in all queues."""
        queues = self.queues
        sizes = (queues.sizes(name) for name in {*queues.names(), *QUEUES.split(",")})
        return Sizes(*map(sum, zip(*sizes, strict=True)))

    def wait_for(self, condition: Callable[[], Any], seconds: float = DEADLINE) -> Any:
        """Return the first true value of *condition*; fail, with the logs, if there is none."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, self._seen()
            time.sleep(0.02)
        return found

    def _seen(self) -> str:
        """Return what there is, for whoever waits in vain."""
        queues = self.queues
        sizes = {name: tuple(queues.sizes(name)) for name in queues.names()}
        found = [f"{ {name: size for name, size in sizes.items() if any(size)} }"]
        found += [f"--- {one.log_file.name}\n{one.log[-1500:]}" for one in self.workers[-4:]]
        return "\n".join(found)

    def wait_for_events(self, name: str, number: int = 1, seconds: float = DEADLINE) -> None:
        self.wait_for(lambda: len(self.events(name)) >= number, seconds)

    def wait_until_empty(self, seconds: float = DEADLINE) -> None:
        """Wait until no queue has a job any more."""
        self.wait_for(lambda: not any(self.sizes()), seconds)

    def end(self) -> None:
        """Kill what is left."""
        for worker in self.workers:
            for pid in worker.pids if worker.is_alive else ():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            worker.wait()
        if self._desk is not None:
            self._desk.kill()
            self._desk.communicate()
