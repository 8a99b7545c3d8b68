"""The application of test_wire.py: what other programs may call.

Copied beside the workers as their `app.py`, never imported by the tests.
"""

import functools

from stage import gate, record

from uwsgi_tasks import get_current_task, task

named = functools.partial(task, executor="redis")


@named(name="myapp.tasks.send")
def send(to, subject=None):
    job = get_current_task()
    record("sent", id=job.id, attempt=job.attempt, to=to, subject=subject)
    return f"sent to {to}"


@named(name="myapp.tasks.hold")
def hold(name):
    """Run until the test opens the gate."""
    record("begun", id=get_current_task().id)
    gate(name)


@named(name="myapp.tasks.fail", result_ttl=600)
def fail():
    raise ValueError("on purpose")
