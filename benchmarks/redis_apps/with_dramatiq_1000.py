"""Dramatiq again, told by its environment to take up to a thousand jobs at a time."""

from with_dramatiq import JOBS, bulk, call, sample_call
from with_dramatiq import workers as plain

__all__ = ["JOBS", "bulk", "call", "sample_call"]


def workers(processes):
    return [["env", "dramatiq_queue_prefetch=1000", *command] for command in plain(processes)]
