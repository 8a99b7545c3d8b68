"""arq: it looks for jobs every 10 ms and runs a hundred at once; results are not kept."""

import asyncio
import sys
from pathlib import Path

import arq
import jobs

JOBS = 5_000
REDIS = arq.connections.RedisSettings(port=jobs.PORT)

pool = None


async def connect():
    global pool  # noqa: PLW0603  it belongs to the loop, which is not there at import
    pool = await arq.create_pool(REDIS)


async def count(_context, number):
    jobs.count(number)


async def sample(_context, number):
    jobs.sample(number)


async def call(number):
    await pool.enqueue_job("count", number)


async def sample_call(number):
    await pool.enqueue_job("sample", number)


async def bulk(numbers):
    numbers = list(numbers)
    for start in range(0, len(numbers), 100):
        await asyncio.gather(*map(call, numbers[start : start + 100]))


class Settings:
    functions = (count, sample)
    redis_settings = REDIS
    max_jobs = 100
    poll_delay = 0.01
    keep_result = 0


def workers(processes):
    program = str(Path(sys.executable).with_name("arq"))
    return [[program, "with_arq.Settings"]] * processes
