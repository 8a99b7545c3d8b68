"""Ours, as it comes: leases on, each job acknowledged; results are not kept."""

import sys
from datetime import timedelta

import jobs

from uwsgi_tasks import configure, task

JOBS = 100_000

configure(redis=jobs.URL)
call = task(executor="redis", name="count")(jobs.count)
sample_call = task(executor="redis", name="sample")(jobs.sample)
bulk = call.map


def delay(numbers):
    """Submit jobs of tomorrow."""
    call.using(at=timedelta(days=1)).map(numbers)


def workers(processes):
    start = [sys.executable, "-m", "uwsgi_tasks", "worker", "-m", "with_ours"]
    return [[*start, "-p", str(processes)]]
