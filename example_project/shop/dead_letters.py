"""What finally failed: uwsgi_tasks keeps such a job in its store."""

import time

from uwsgi_tasks import default_app
from uwsgi_tasks.errors import TasksError


def requeue(job_id: str, patience: float = 2.0) -> bool:
    """Give a dead job back to the spooler; False if there is no such dead letter.

    A task is told of its failure a moment before the letter is kept, hence the *patience*.
    """
    deadline = time.monotonic() + patience
    while default_app.dead.get(job_id) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    try:
        default_app.dead.requeue(job_id)
    except TasksError:
        # Somebody was faster.
        return False
    return True
