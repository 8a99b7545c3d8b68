"""What each system is given to do, and where its Redis is."""

import os
import threading

from counters import Counters  # of the folder apps

PORT = int(os.environ["BENCH_PORT"])
URL = f"redis://127.0.0.1:{PORT}/0"
COUNTERS = Counters(os.environ["BENCH_COUNTERS"])
_LOCK = threading.Lock()


def count(_number):
    """Count one job; some systems run several at once in threads."""
    with _LOCK:
        COUNTERS.tick()


def sample(number):
    """Note when this sample reached its job."""
    COUNTERS.end(number)
