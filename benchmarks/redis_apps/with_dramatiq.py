"""Dramatiq: eight threads a process, each of which has two jobs waiting (its default)."""

import sys

import dramatiq
import jobs
from dramatiq.brokers.redis import RedisBroker

JOBS = 10_000

broker = RedisBroker(url=jobs.URL)
dramatiq.set_broker(broker)
_count = dramatiq.actor(jobs.count)
sample_call = dramatiq.actor(jobs.sample).send
call = _count.send


def bulk(numbers):
    dramatiq.group(_count.message(number) for number in numbers).run()


def workers(processes):
    start = [sys.executable, "-m", "dramatiq"]
    return [[*start, "with_dramatiq", "-p", str(processes), "-t", "8"]]
