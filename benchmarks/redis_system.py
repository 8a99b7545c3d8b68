"""One broker under measure: its caller, its workers, and the Redis that all share in turn."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from system import HERE, workspace

from counters import SIZE, Counters  # isort: skip  (system makes them known)
from tests import servers  # isort: skip

PATIENCE = 15.0
"""Seconds in which at least one job must run."""
REST = 0.2
"""Seconds after which all that a system still had to say to Redis is said."""
ENDING = 10.0


class Redis(servers.Redis):
    """A redis-server of our own on the loopback, which keeps nothing on disk."""

    def __init__(self):
        super().__init__(port=True)

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.remove()

    @property
    def pid(self):
        """Return its process."""
        return int(self.info("server")["process_id"])

    def cpu(self):
        """Return the seconds of processor time that it has used."""
        found = self.info("cpu")
        return float(found["used_cpu_sys"]) + float(found["used_cpu_user"])

    def memory(self):
        """Return the bytes that it holds, without the buffers of its clients."""
        found = self.info("memory")
        return int(found["used_memory"]) - int(found["mem_clients_normal"])


class Broker:
    """One system: its caller, which lives as long as we do, and its workers, when there are any."""

    def __init__(self, name, python, server):
        self.name = name
        self.server = server
        self._processors = os.sched_getaffinity(0)
        self._folder = workspace()
        file = self._folder / "counters"
        file.write_bytes(bytes(SIZE))
        self.counters = Counters(file)
        path = [HERE / "redis_apps", HERE / "apps", *([HERE.parent] if name == "ours" else [])]
        self._environment = {
            **os.environ,
            "BENCH_PORT": str(server.port),
            "BENCH_COUNTERS": str(file),
            "PYTHONPATH": os.pathsep.join(map(str, path)),
            "PYTHONDONTWRITEBYTECODE": "",
        }
        self._log = (self._folder / "log").open("w+")
        self.is_apart = False
        self._caller = subprocess.Popen(
            [python, str(HERE / "redis_apps" / "calling.py"), f"with_{name}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=self._environment,
            text=True,
        )
        try:
            self.jobs = self.ask("jobs_of")
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def ask(self, *words):
        """Make the caller do it, and return its answer."""
        print(*words, file=self._caller.stdin, flush=True)
        answer = self._caller.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.name}: the caller ended\n{self._tail()}")
        return json.loads(answer)

    def clear(self):
        """Begin again, with an empty Redis."""
        self.server.flush()
        self.counters.clear()

    def wait(self, count):
        """Wait until *count* jobs have run."""
        before, deadline = -1, 0.0
        while (ran := self.counters.total()) < count:
            if ran != before:
                before, deadline = ran, time.monotonic() + PATIENCE
            elif time.monotonic() > deadline:
                raise TimeoutError(f"{self.name}: {ran} of {count} jobs ran\n{self._tail()}")
            time.sleep(0.01)

    @contextlib.contextmanager
    def working(self, processes):
        """Run the workers; yield the first process of each of their groups."""
        started = []
        try:
            started.extend(map(self._start, self.ask("workers", processes)))
            yield started
        finally:
            end(started)

    def place(self, *, apart):
        """Give Redis one processor and the others another, or one to all; None lets them roam.

        Left alone, the scheduler decides whether a call wakes Redis across processors, which costs
        more than the call itself, and decides anew with each run.
        """
        processors = sorted(os.sched_getaffinity(0))
        self.is_apart = apart is True
        self._processors = {None: processors, True: processors[-1:], False: processors[:1]}[apart]
        place(self.server.pid, processors if apart is None else processors[:1])
        place(self._caller.pid, self._processors)

    def close(self):
        """End it, and take its files away."""
        self._caller.stdin.close()
        try:
            self._caller.wait(ENDING)
        except subprocess.TimeoutExpired:
            self._caller.kill()
            self._caller.wait()
        self._caller.stdout.close()
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, command):
        before = os.sched_getaffinity(0)
        # A child begins where its parent is.
        os.sched_setaffinity(0, self._processors)
        try:
            return subprocess.Popen(
                command,
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,
            )
        finally:
            os.sched_setaffinity(0, before)

    def _tail(self):
        self._log.flush()
        return Path(self._log.name).read_text()[-3000:]


def place(pid, processors):
    """Let all threads of this process run on these processors alone."""
    for folder in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(folder.name), processors)


def end(started):
    """End these groups of processes: they are asked once."""
    for process in started:
        process.terminate()
    deadline = time.monotonic() + ENDING
    for process in started:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        # Also what its end left behind.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def family(started):
    """Return the processes of these groups."""
    groups = {process.pid for process in started}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(_stat(folder.name)[2]) in groups:
                found.append(int(folder.name))
    return found


def cpu(started):
    """Return the seconds of processor time that these groups have used, ended children included."""
    ticks = 0
    for pid in family(started):
        with contextlib.suppress(OSError):
            ticks += sum(map(int, _stat(pid)[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def resident(started):
    """Return the megabytes in memory of all processes of these groups."""
    pages = 0
    for pid in family(started):
        pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _stat(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
