"""What it costs to keep: results from submit to store, and spool files that are on the disk."""

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from system import in_turn, systems
from table import Row


def measure_results(pythons, size, rounds):
    """Yield the row of jobs with a result, from the first submit to the last stored result."""
    own = {"ours": pythons["ours"]}
    with systems(own, spoolers=1) as running:
        pairs = in_turn(
            running, rounds, lambda system: system.submit_and_drain(f"submit_kept({size})", size)
        )["ours"]
    both = statistics.median(1 / (1 / submitted + 1 / drained) for submitted, drained in pairs)
    yield Row(f"result_ttl, {size:,} calls, submit + drain", "jobs/s", {"ours": both},
              wanted_value=5000, ratio=False)  # fmt: skip


def measure_durable(rounds, size=300):
    """Yield the row of durable files, against the same two fsyncs alone, on this disk."""
    # Late, as the other measures must not share a process with it.
    from uwsgi_tasks.spool import SpoolDirectory  # noqa: PLC0415

    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=Path.cwd()))
    body = b"x" * 180
    alone, durable = [], []
    try:
        directory = SpoolDirectory(folder)
        for _ in range(rounds):
            start = time.perf_counter()
            for number in range(size):
                _synced(folder, f"raw{number}", body)
            alone.append(size / (time.perf_counter() - start))
            start = time.perf_counter()
            for number in range(size):
                name = f"uwsgi_spoolfile_on_bench-{number}"
                directory.write(body, name=name, durable=True)
            durable.append(size / (time.perf_counter() - start))
            for file in folder.iterdir():
                file.unlink()
    finally:
        shutil.rmtree(folder)
    figures = {"raw": statistics.median(alone), "ours": statistics.median(durable)}
    yield Row("durable, against its fsyncs alone", "files/s", figures, at_least=1 / 1.3)


def _synced(folder, name, body):
    handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(handle, body)
    os.fsync(handle)
    os.close(handle)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(handle)
    os.close(handle)
