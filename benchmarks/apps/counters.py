"""What a benchmark's job writes: counts and times in memory that all processes share.

One file of 64-bit numbers: three for each process (count, first and last time), found by its
process id, then one end time for each sample of a latency.
"""

import mmap
import os
import time
from pathlib import Path

PROCESSES = 1024
SAMPLES = 10_000
SIZE = 8 * (3 * PROCESSES + SAMPLES)


class Counters:
    """The numbers, as every process sees them."""

    def __init__(self, path):
        with Path(path).open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), SIZE)
        numbers = memoryview(self._memory).cast("Q")
        self._ticks = numbers[: 3 * PROCESSES]
        self.ends = numbers[3 * PROCESSES :]

    def tick(self):
        """Count one job run by this process."""
        # Made here, after the fork: from now on a tick costs this process a quarter microsecond.
        self.tick = _ticker(self._ticks, 3 * (os.getpid() % PROCESSES))
        self.tick()

    def end(self, sample):
        """Note when this sample reached its job."""
        self.ends[sample] = time.monotonic_ns()

    def clear(self):
        """Begin again."""
        self._memory[:] = bytes(SIZE)

    def total(self):
        """How many jobs ran."""
        return sum(self._ticks[::3])

    def first(self):
        """When the first job ran, in seconds."""
        return min(filter(None, self._ticks[1::3])) / 1e9

    def last(self):
        """When the last job ran, in seconds."""
        return max(self._ticks[2::3]) / 1e9


def _ticker(ticks, at, now=time.monotonic_ns):
    def tick():
        moment = now()
        if not ticks[at]:
            ticks[at + 1] = moment
        ticks[at] += 1
        ticks[at + 2] = moment

    return tick
