"""The same jobs as tasks of uwsgi-tasks 0.7.3."""

import os
import time

import uwsgi
from counters import Counters  # beside us

from uwsgi_tasks import TaskExecutor, task

COUNTERS = Counters(os.environ["BENCH_COUNTERS"])
BUSY = ()
mule_msg = uwsgi.mule_msg


def send_all(message, *target):
    """0.7.3 does not look whether a mule took its message: here nothing shall be lost."""
    while not mule_msg(message, *target):
        pass


uwsgi.mule_msg = send_all


@task(executor=TaskExecutor.SPOOLER)
def call(number):  # noqa: ARG001 (it travels, and that is all)
    COUNTERS.tick()


@task(executor=TaskExecutor.SPOOLER)
def sample_call(number):
    COUNTERS.end(number)


@task(executor=TaskExecutor.MULE)
def message(number):  # noqa: ARG001 (as above)
    COUNTERS.tick()


@task(executor=TaskExecutor.MULE)
def sample_message(number):
    COUNTERS.end(number)


def delay(count):
    """Submit *count* jobs of tomorrow."""
    later = task(executor=TaskExecutor.SPOOLER, at=int(time.time() + 86400))(call.function)
    for number in range(count):
        later(number)
