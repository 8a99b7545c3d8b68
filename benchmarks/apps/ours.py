"""The same jobs as tasks of uwsgi_tasks, with the options that a newcomer would use."""

import os
from datetime import timedelta

from counters import Counters  # beside us

from uwsgi_tasks import SubmitError, TaskExecutor, task

COUNTERS = Counters(os.environ["BENCH_COUNTERS"])
BUSY = SubmitError


@task(executor=TaskExecutor.SPOOLER)
def call(number):  # noqa: ARG001 (it travels, and that is all)
    COUNTERS.tick()


@task(executor=TaskExecutor.SPOOLER, result_ttl=3600)
def kept_call(number):
    COUNTERS.tick()
    return number


@task(executor=TaskExecutor.SPOOLER)
def sample_call(number):
    COUNTERS.end(number)


def call_map(numbers):
    call.map(numbers)


def delay(count):
    """Submit *count* jobs of tomorrow."""
    later = call.using(at=timedelta(days=1))
    for number in range(count):
        later(number)


if os.environ.get("BENCH_MULE"):

    @task(executor=TaskExecutor.MULE)
    def message(number):  # noqa: ARG001 (as above)
        COUNTERS.tick()

    @task(executor=TaskExecutor.MULE)
    def sample_message(number):
        COUNTERS.end(number)
