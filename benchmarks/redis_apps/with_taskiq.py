"""TaskIQ: a Redis stream and async tasks; results are not kept."""

import asyncio
import sys

import jobs
import taskiq_redis

JOBS = 10_000

broker = taskiq_redis.RedisStreamBroker(jobs.URL, consumer_id="0")


@broker.task
async def count(number):
    jobs.count(number)


@broker.task
async def sample(number):
    jobs.sample(number)


async def connect():
    await broker.startup()


call = count.kiq
sample_call = sample.kiq


async def bulk(numbers):
    numbers = list(numbers)
    for start in range(0, len(numbers), 100):
        await asyncio.gather(*map(call, numbers[start : start + 100]))


def workers(processes):
    start = [sys.executable, "-m", "taskiq", "worker", "with_taskiq:broker"]
    return [[*start, "-w", str(processes), "--log-level", "ERROR", "--no-parse"]]
