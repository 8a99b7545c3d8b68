"""SAQ: twenty jobs at once; results are not kept."""

import asyncio
import sys

import jobs
import saq

JOBS = 10_000

queue = saq.Queue.from_url(jobs.URL)


async def connect():
    await queue.connect()


async def count(_context, *, number):
    jobs.count(number)


async def sample(_context, *, number):
    jobs.sample(number)


async def call(number):
    await queue.enqueue("count", number=number, ttl=-1)


async def sample_call(number):
    await queue.enqueue("sample", number=number, ttl=-1)


async def bulk(numbers):
    numbers = list(numbers)
    for start in range(0, len(numbers), 100):
        await asyncio.gather(*map(call, numbers[start : start + 100]))


settings = {"queue": queue, "functions": [count, sample], "concurrency": 20}


def workers(processes):
    return [[sys.executable, "-m", "saq", "with_saq.settings", "--quiet"]] * processes
