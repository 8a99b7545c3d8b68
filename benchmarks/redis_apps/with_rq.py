"""RQ: SimpleWorker, which does not fork for each job."""

import sys
from pathlib import Path

import jobs
import redis
import rq

JOBS = 1_500

queue = rq.Queue(connection=redis.Redis.from_url(jobs.URL))


def call(number):
    queue.enqueue(jobs.count, number)


def bulk(numbers):
    queue.enqueue_many([rq.Queue.prepare_data(jobs.count, (number,)) for number in numbers])


def sample_call(number):
    queue.enqueue(jobs.sample, number)


def workers(processes):
    program = str(Path(sys.executable).with_name("rq"))
    start = [program, "worker", "--url", jobs.URL, "-w", "rq.worker.SimpleWorker", "--quiet"]
    return [[*start, "--disable-job-desc-logging"]] * processes
