"""Celery: solo workers without chatter, which take 128 jobs at a time; results are not kept."""

import sys

import celery
import jobs

JOBS = 5_000

app = celery.Celery(broker=jobs.URL)
app.conf.update(
    task_ignore_result=True,
    worker_prefetch_multiplier=128,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)
_count = app.task(jobs.count, name="count")
_sample = app.task(jobs.sample, name="sample")
call = _count.delay
sample_call = _sample.delay


def bulk(numbers):
    celery.group(_count.s(number) for number in numbers).apply_async()


def workers(processes):
    start = [sys.executable, "-m", "celery", "-A", "with_celery", "worker", "-P", "solo"]
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "ERROR"]
    return [[*start, *quiet, "-n", f"w{number}@%h"] for number in range(processes)]
