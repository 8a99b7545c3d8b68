"""Huey: one consumer with four threads a process; results are not kept."""

import sys
from pathlib import Path

import huey
import jobs

JOBS = 10_000

app = huey.RedisHuey("bench", results=False, url=jobs.URL)
call = app.task(name="count")(jobs.count)
sample_call = app.task(name="sample")(jobs.sample)


def workers(processes):
    program = str(Path(sys.executable).with_name("huey_consumer"))
    return [[program, "with_huey.app", "-k", "thread", "-w", "4", "--quiet"]] * processes
