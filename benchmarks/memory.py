"""What importing us and running one task add to the memory of uWSGI's processes."""

import shutil
import sys
from pathlib import Path

from system import ROOT, Server, workspace
from table import Row

# No prelude: what the harness imports must not hide what we import.
WEB = """
def application(environ, start_response):
    start_response("200 OK", [])
    size = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    if size == b"go":
        call()
    return [b'{"generation": "", "value": "None"}']
"""
RAW = """
import uwsgi
def run(env):
    open(DONE, "w").close()
    return uwsgi.SPOOL_OK
uwsgi.spooler = run
def call():
    uwsgi.spool({b"body": b"x" * 180})
"""
OURS = """
from uwsgi_tasks import task
@task(executor="spooler")
def call():
    open(DONE, "w").close()
"""


def measure(rounds):
    """Yield the row: the larger growth of worker and spooler."""
    sizes = {"raw": [], "ours": []}
    for _ in range(rounds):
        for name, source in (("raw", RAW), ("ours", OURS)):
            sizes[name].append(_resident(source))
    # In each round the same process is compared, and the one that grew more counts.
    grown = sorted(
        max(ours[process] - raw[process] for process in raw)
        for raw, ours in zip(sizes["raw"], sizes["ours"], strict=True)
    )
    middle = len(sizes["raw"]) // 2
    figures = {
        name: sorted(max(each.values()) for each in taken)[middle] for name, taken in sizes.items()
    }
    yield Row("memory of a process", "MB", figures, ratio=False)
    yield Row(
        "memory added by import and one task", "MB", {"ours": grown[middle]}, wanted_below=6.0
    )


def _resident(source):
    folder = workspace()
    done = folder / "done"
    server = Server(
        folder,
        f"DONE = {str(done)!r}\n{source}{WEB}",
        prelude="",
        path=[ROOT],
        python=sys.executable,
    )
    try:
        server.start()
        server.call("go")
        server.wait_for(done.exists)
        worker = server.pids("worker")[0]
        return {"worker": _size(worker), "spooler": _size(server.spooler_pids()[0])}
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _size(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise LookupError(pid)
