"""What finally failed: uwsgi_tasks keeps such a job in a folder of the spooler's directory."""

import time
from pathlib import Path

from django.conf import settings

from uwsgi_tasks.spool import unpack

FOLDER = settings.SPOOLER / "dead"


def find(job_id: str) -> Path | None:
    """Return the file of a dead job."""
    for path in FOLDER.glob("uwsgi_spoolfile_on_*"):
        variables, _ = unpack(path.read_bytes())
        if variables["id"] == job_id:
            return path
    return None


def requeue(job_id: str, patience: float = 2.0) -> bool:
    """Give a dead job back to the spooler; False if its file is not there.

    A task is told of its failure a moment before the file is written, hence the *patience*.
    """
    deadline = time.monotonic() + patience
    while not (path := find(job_id)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    path.rename(settings.SPOOLER / path.name)
    return True
