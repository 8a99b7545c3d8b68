"""How long `import uwsgi_tasks` takes, and whose modules it brings along."""

import statistics
import subprocess
import sys

from system import ROOT
from table import Row

SCRIPT = """
import sys, time
before = set(sys.modules)
start = time.perf_counter()
import uwsgi_tasks
print((time.perf_counter() - start) * 1000)
for name in sorted(set(sys.modules) - before):
    if "-packages" in (getattr(sys.modules[name], "__file__", None) or ""):
        print(name.partition(".")[0])
"""


def measure(rounds):
    """Yield the rows; the first, uncounted import writes the byte code."""
    took, foreign = [], set()
    for _ in range(rounds + 1):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True
        )
        milliseconds, *names = done.stdout.split()
        took.append(float(milliseconds))
        foreign.update(names)
    median = statistics.median(took[1:])
    yield Row("import uwsgi_tasks", "ms", {"ours": median}, wanted_below=60.0)
    yield Row(
        "third-party modules imported" + (f" ({', '.join(sorted(foreign))})" if foreign else ""),
        "",
        {"ours": float(len(foreign))},
        wanted_below=0.0,
    )
