"""A real uWSGI with an application of the test's own, from start to the last of its processes."""

from __future__ import annotations

import ast
import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from tests.uwsgi_coverage import environment
from uwsgi_tasks import App
from uwsgi_tasks.model import DeadLetter
from uwsgi_tasks.stores import Store, connect

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PRELUDE = (
    "from stage import application_for, gate, record; application = application_for(globals())\n"
)
DEADLINE = 30.0
EVENTS = "events.jsonl"
SPAWNED = {  # what uWSGI's log says of each kind
    "spooler": r"spawned the uWSGI spooler on dir .* with pid (\d+)",
    "mule": r"spawned uWSGI mule \d+ \(pid: (\d+)\)",
    "worker": r"pawned uWSGI worker \d+ \((?:new )?pid: (\d+)",
}


def event_in(line: bytes) -> dict[str, Any]:
    """Return the event in a line; who was killed as it wrote has left a part of one before it."""
    found: dict[str, Any] = json.loads(line[line.rindex(b'{"event": ') :])
    return found


class CallError(AssertionError):
    """A call in the worker raised; `.name` is the class of what it raised."""

    def __init__(self, name: str, trace: str) -> None:
        super().__init__(trace)
        self.name = name


class Server:
    """One running uWSGI; `serve` makes it and ends it."""

    def __init__(
        self,
        folder: Path,
        source: str = "",
        *,
        spoolers: int = 1,
        workers: int = 1,
        mules: int = 0,
        master: bool = True,
        entry: str = "module",
        lazy: bool = False,
        files: Mapping[str, str] | None = None,
        options: Iterable[str] = (),
        env: Mapping[str, str] | None = None,
        spool: Path | None = None,
        prelude: str = PRELUDE,
        python: str = sys.executable,
        path: Iterable[Path] = (ROOT,),
    ) -> None:
        self.folder = folder
        self.spool = spool or folder / "spool"
        # Where there is no spooler, dead letters would go into a folder that servers share.
        self._home = self.spool if spoolers else folder
        self.log_file = folder / "uwsgi.log"
        self._events_file = folder / EVENTS
        self._gates = folder / "gates"
        self._short = self._socket = folder
        self._counts = {"spooler": spoolers, "mule": mules, "worker": workers}
        self._master = master
        self._lazy = lazy
        self._entry = entry
        self._options = list(options)
        self._env = {} if spoolers else {"UWSGI_TASKS_DEAD_DIR": str(folder / "dead")}
        self._env |= env or {}
        self._python = python
        self._path = os.pathsep.join(map(str, [folder, *path]))
        self._process: subprocess.Popen[bytes] | None = None
        self._code: int | None = 0
        self._events: list[dict[str, Any]] = []
        self._events_read = 0
        self._write(prelude + textwrap.dedent(source), files or {})

    def _write(self, source: str, files: Mapping[str, str]) -> None:
        self._gates.mkdir()
        shutil.copy(HERE / "stage.py", self.folder)
        (self.folder / "app.py").write_text(source)
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))

    # -- from start to end

    def start(self) -> Self:
        """Start it, for the first time or again, and return when a worker answers."""
        # A socket's path has 108 bytes at most.
        self._short = Path(tempfile.mkdtemp(prefix="ut-"))
        self._socket = self._short / "http"
        env = environment(
            PYTHONPATH=self._path,
            STAGE_EVENTS=str(self._events_file),
            STAGE_GATES=str(self._gates),
            **self._env,
        )
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [*program(self._python), *self._arguments()],
                cwd=self.folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self.wait_for(self._answers)
            self._wait_for_the_others()
        except BaseException:
            self.stop()
            raise
        return self

    def _wait_for_the_others(self, seconds: float = 5.0) -> None:
        """Wait until the master has started all: what it is told before that, one may not hear."""
        end = time.monotonic() + seconds
        counts = {kind: self._counts[kind] for kind in ("spooler", "mule")}
        while time.monotonic() < end and any(
            len(re.findall(SPAWNED[kind], self.log)) < count for kind, count in counts.items()
        ):
            time.sleep(0.005)

    def _arguments(self) -> list[str]:
        arguments = ["--http-socket", str(self._socket), "--die-on-term", "--disable-logging"]
        arguments += ["--need-app", "--enable-threads"]
        # A worker or a mule that was told to reload before it could listen waits out its mercy.
        arguments += ["--worker-reload-mercy", "1", "--mule-reload-mercy", "1"]
        arguments += [f"--{self._entry}", "app" if self._entry == "module" else "app.py"]
        arguments += ["--processes", str(self._counts["worker"])]
        if self._master:
            arguments += ["--master"]
        if self._lazy:
            arguments += ["--lazy-apps"]
        if self._counts["spooler"]:
            arguments += ["--spooler", str(self.spool), "--spooler-quiet"]
            arguments += ["--spooler-processes", str(self._counts["spooler"])]
        if self._counts["mule"]:
            arguments += ["--mules", str(self._counts["mule"])]
        return arguments + self._options

    def _answers(self) -> bool:
        assert self._process is not None
        code = self._process.poll()
        assert code is None, f"uWSGI ended with {code}\n{self.log}"
        with suppress(OSError, http.client.HTTPException):
            self._ask("None")
            return True
        return False

    def reload(self) -> None:
        """Reload by SIGHUP, and return when a worker of the new generation answers."""
        assert self._process is not None
        before = self._ask("None")["generation"]
        self._process.send_signal(signal.SIGHUP)

        def reborn() -> bool:
            # A worker that ends may leave a part of its answer.
            with suppress(OSError, http.client.HTTPException, ValueError):
                return bool(self._ask("None")["generation"] != before)
            return False

        self.wait_for(reborn)

    def stop(self) -> int | None:
        """End it and all that it started; return its exit code, None if it had to be killed."""
        if self._process is None:
            return self._code
        process, self._process = self._process, None
        try:
            self._code = self._end(process)
        finally:
            end_session(process.pid)
            process.wait()
            shutil.rmtree(self._short, ignore_errors=True)
        return self._code

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> int | None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            return process.wait(15)
        # A worker that was forked at that moment has heard nothing, and the master waits for it.
        for pid in session(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            return process.wait(15)
        return None

    def crash(self) -> list[int]:
        """End it as a failing machine would, all at once; return the processes that it had."""
        assert self._process is not None
        process, self._process = self._process, None
        # The master first: it would replace those that end before it.
        process.kill()
        pids = session(process.pid)
        end_session(process.pid)
        process.wait()
        shutil.rmtree(self._short, ignore_errors=True)
        return pids

    def remove_option(self, option: str) -> None:
        """Leave *option* out when it is started next."""
        self._options.remove(option)

    # -- what it is made to do

    def call(self, source: str) -> Any:
        """Run *source* in the application's module, in a worker.

        Return its value, or the repr of what is no literal.
        """
        answer = self._ask(textwrap.dedent(source))
        if "error" in answer:
            raise CallError(answer["error"], answer["traceback"])
        try:
            return ast.literal_eval(answer["value"])
        except (ValueError, SyntaxError):
            return answer["value"]

    def _ask(self, source: str) -> dict[str, Any]:
        connection = UnixConnection(self._socket)
        try:
            connection.request("POST", "/", source.encode())
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return answer

    def open_gate(self, name: str) -> None:
        """Let those go on that wait at `gate(name)`."""
        (self._gates / name).touch()

    # -- what can be seen of it

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """Return what was recorded so far, in that order; of *name* only, if given."""
        if self._events_file.exists():
            with self._events_file.open("rb") as file:
                file.seek(self._events_read)
                whole = file.read().rpartition(b"\n")[0].splitlines(keepends=True)
            self._events += map(event_in, whole)
            self._events_read += sum(map(len, whole)) + bool(whole)
        return [event for event in self._events if name in (None, event["event"])]

    def wait_for(self, condition: Callable[[], Any], deadline: float = DEADLINE) -> Any:
        """Return the first true value of *condition*; fail, with the log, at the deadline."""
        end = time.monotonic() + deadline
        while not (value := condition()):
            if time.monotonic() > end:
                shown = "\n".join(map(str, self.events()[-20:]))
                raise AssertionError(f"waited {deadline} s in vain\n{shown}\n{self.log[-6000:]}")
            time.sleep(0.01)
        return value

    def wait_for_events(
        self, name: str, count: int = 1, deadline: float = DEADLINE
    ) -> list[dict[str, Any]]:
        """Return the events of *name* as soon as there are *count*."""
        self.wait_for(lambda: len(self.events(name)) >= count, deadline)
        return self.events(name)

    @property
    def log(self) -> str:
        """Everything that uWSGI and the application wrote."""
        return self.log_file.read_text(errors="replace")

    def waiting(self) -> list[Path]:
        """Return the spool files that uWSGI would run, ours for housekeeping left out."""
        return [
            path
            for path in (
                *self.spool.glob("uwsgi_spoolfile_on_*"),
                *self.spool.glob("[0-9]*/uwsgi_spoolfile_on_*"),
            )
            if path.name != "uwsgi_spoolfile_on_later"
        ]

    def delayed(self) -> list[Path]:
        """Return the files of jobs whose time has not come."""
        found: list[Path] = []
        # A folder that has become empty is removed meanwhile.
        with suppress(FileNotFoundError):
            for bucket in (self.spool / "later").iterdir():
                with suppress(FileNotFoundError, NotADirectoryError):
                    found += [path for path in bucket.iterdir() if not path.name.startswith(".")]
        return found

    @property
    def store(self) -> Store:
        """What the server keeps beside its spool files."""
        return connect(f"sqlite:///{self._home}/store.sqlite3")

    def dead(self, task: str | None = None) -> list[DeadLetter]:
        """Return the dead letters, of *task* only if given, the oldest first."""
        if not (self._home / "store.sqlite3").exists():
            return []
        return self.store.dead(1000, None, task)[::-1]

    def dead_files(self) -> list[Path]:
        """Return the dead letters that no store has taken."""
        return sorted((self._home / "dead").glob("[!.]*"))

    def app(self, **settings: Any) -> App:
        """Return an app in this process, which looks at the spooler from outside."""
        return App(spooler_dir=self.spool, **settings)

    def spooler_pids(self) -> list[int]:
        """Return the spoolers that live, oldest first; wait until all are there."""
        return self.pids("spooler")

    def mule_pids(self) -> list[int]:
        """Return the mules that live, oldest first; wait until all are there."""
        return self.pids("mule")

    def pids(self, kind: str) -> list[int]:
        """Return the processes of a kind that live, oldest first; wait until all are there."""

        def alive() -> list[int] | None:
            pids = [int(pid) for pid in re.findall(SPAWNED[kind], self.log)]
            pids = [pid for pid in dict.fromkeys(pids) if is_alive(pid)]
            return pids if len(pids) >= self._counts[kind] else None

        found: list[int] = self.wait_for(alive) if self._counts[kind] else []
        return found

    @property
    def pid(self) -> int:
        """The master, or without one the worker."""
        assert self._process is not None
        return self._process.pid


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=DEADLINE)
        self._path = path

    def connect(self) -> None:
        """Connect to the path."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(DEADLINE)
        self.sock.connect(str(self._path))


def program(python: str = sys.executable) -> list[str]:
    """Return the command that starts uWSGI with this interpreter; empty if there is none."""
    if importlib.util.find_spec("pyuwsgi"):
        # Without binary-path a reload would execute the interpreter outside the environment.
        return [python, "-c", "import pyuwsgi; pyuwsgi.run()", "--binary-path", python]
    if command := shutil.which("uwsgi"):
        return [command, "--home", sys.prefix]
    return []


def is_alive(pid: int) -> bool:
    """Tell whether the process runs; a zombie does not."""
    if stat := _stat(pid):
        return stat[0] != "Z"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _stat(pid: int | str) -> list[str]:
    """Return /proc's fields of a process from its state on, none where there is no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def session(leader: int) -> list[int]:
    """Return the processes of a session that live."""
    pids = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
    return [
        pid for pid in pids if (stat := _stat(pid)) and stat[3] == str(leader) and stat[0] != "Z"
    ]


def end_session(leader: int, deadline: float = 10.0) -> None:
    """End every process of a session that we started, and check that none is left."""
    end = time.monotonic() + deadline
    while left := session(leader):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert time.monotonic() < end, f"could not end {left}"
        time.sleep(0.005)


def write_spool_file(
    folder: Path, keys: Mapping[bytes, bytes], body: bytes = b"", name: str = "x"
) -> Path:
    """Write a job as `uwsgi.spool` of another program would have."""
    packed = b"".join(struct.pack("<H", len(part)) + part for pair in keys.items() for part in pair)
    return write_raw(folder, struct.pack("<BHB", 17, len(packed), 0) + packed + body, name)


def write_raw(folder: Path, content: bytes, name: str = "x") -> Path:
    """Put these bytes into a spool directory, all at once."""
    draft = folder / f".draft-{name}"
    draft.write_bytes(content)
    return draft.rename(folder / f"uwsgi_spoolfile_on_test_1_{name}_1_1_1")


def read_spool_file(path: Path) -> tuple[dict[str, bytes], bytes]:
    """Return the keys and the body of a spool file."""
    content = path.read_bytes()
    _modifier1, size, _modifier2 = struct.unpack_from("<BHB", content)
    return read_variables(content[4 : 4 + size]), content[4 + size :]


def read_variables(packed: bytes) -> dict[str, bytes]:
    """Return what uWSGI packs so into a spool file."""
    parts: list[bytes] = []
    at = 0
    while at < len(packed):
        (length,) = struct.unpack_from("<H", packed, at)
        parts.append(packed[at + 2 : at + 2 + length])
        at += 2 + length
    return {key.decode(): value for key, value in zip(parts[::2], parts[1::2], strict=True)}


def run_outside(
    folder: Path, source: str, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script without uWSGI that can import the application's modules."""
    variables = {
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "STAGE_EVENTS": str(folder / EVENTS),
        **(env or {}),
    }
    command: Sequence[str] = [sys.executable, "-c", textwrap.dedent(source)]
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
