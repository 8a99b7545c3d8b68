"""One system under measure: a uWSGI that runs one of `apps/`, and the counters that its jobs write.

The consumers are stopped (SIGSTOP) while jobs are submitted, and continued for the drain, so that
neither side disturbs the other.
"""

import contextlib
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "apps")]

from counters import SIZE, Counters  # noqa: E402  (found beside us)

from tests.uwsgi.serving import PRELUDE, ROOT, Server  # noqa: E402

PATIENCE = 120.0


def workspace() -> Path:
    """Make a folder on a tmpfs, where there is one: a disk would measure itself."""
    shared = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="bench-", dir=shared if shared.is_dir() else None))


class System:
    """A running system; `name` is its module in `apps/`."""

    def __init__(self, name: str, python: str = sys.executable, **options) -> None:
        self.name = name
        self._folder = workspace()
        counters = self._folder / "counters"
        counters.write_bytes(bytes(SIZE))
        self.counters = Counters(counters)
        # The spoolers look again each second, as ours do by themselves: uWSGI loses wake-ups.
        extra = ["--spooler-quiet", "--spooler-frequency", "1", "--mule-msg-size=4000000"]
        self.server = Server(
            self._folder,
            (HERE / "apps" / f"{name}.py").read_text()
            + (HERE / "apps" / "submitting.py").read_text().replace("import app\n", ""),
            prelude=PRELUDE + "import sys; app = sys.modules[__name__]\n",
            python=python,
            path=[HERE / "apps", *([] if name == "old" else [ROOT])],
            options=[*extra, *options.pop("options", [])],
            env={"BENCH_COUNTERS": str(counters), "BENCH_MULE": "1" if "mules" in options else ""},
            **options,
        )
        try:
            self.server.start()
            # The first job costs more: niceness is undone, modules are imported.
            self.run("call(0)", 1)
            if options.get("mules"):
                self.run("message(0)", 1)
        except BaseException:
            self.close()
            raise

    def run(self, call: str, count: int):
        """Make the worker do *call*, and return its value once *count* jobs have run."""
        self.counters.clear()
        value = self.server.call(call)
        self.wait(count)
        return value

    def wait(self, count: int) -> None:
        """Wait until *count* jobs have run."""
        deadline = time.monotonic() + PATIENCE
        while self.counters.total() < count:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{self.name}: {self.counters.total()} of {count} jobs ran\n"
                    + self.server.log[-3000:]
                )
            time.sleep(0.002)

    def consumers(self) -> list[int]:
        """Return the processes that run the jobs of the spooler."""
        return self.server.spooler_pids()

    def apart(self) -> None:
        """Give the worker one processor and the others another.

        Otherwise it is the scheduler's choice whether a job is woken beside its caller or across
        processors, which is the larger part of a latency, and differs from start to start.
        """
        processors = sorted(os.sched_getaffinity(0))
        for kind, processor in (("worker", 0), ("spooler", -1), ("mule", -1)):
            for pid in self.server.pids(kind):
                os.sched_setaffinity(pid, {processors[processor]})

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Hold the consumers still."""
        pids = self.consumers()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def submit_and_drain(self, call: str, count: int) -> tuple[float, float]:
        """Return the jobs a second of *call*, which returns its seconds, and of running them."""
        self.counters.clear()
        with self.stopped():
            seconds = self.server.call(call)
        self.wait(count)
        return count / seconds, count / (self.counters.last() - self.counters.first())

    def cpu(self) -> float:
        """Return the seconds of processor time that the consumers have used."""
        ticks = 0
        for pid in self.consumers():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End it, and take its files away."""
        self.server.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextlib.contextmanager
def systems(pythons: dict[str, str], **options) -> Iterator[list[System]]:
    """Start each system of *pythons* (name: interpreter), side by side: idle ones cost nothing."""
    started = []
    try:
        for name, python in pythons.items():
            started.append(System(name, python, **options))
        yield started
    finally:
        for system in started:
            system.close()


def in_turn(running: list[System], rounds: int, measure) -> dict[str, list]:
    """Measure one system after the other, *rounds* times; return the figures of each."""
    figures = {system.name: [] for system in running}
    for _ in range(rounds):
        for system in running:
            figures[system.name].append(measure(system))
    return figures


def medians(figures: dict[str, list]) -> dict[str, float]:
    """Return the median of each system's figures."""
    return {name: statistics.median(values) for name, values in figures.items()}


def percentile(values: list[float], percent: float) -> float:
    """Return what so many percent of *values* do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
