"""uWSGI alone: its own functions, with as many bytes as a job of ours has."""

import os
import time

import uwsgi
from counters import Counters  # beside us

COUNTERS = Counters(os.environ["BENCH_COUNTERS"])
BUSY = ()  # mule_msg says False
FILLER = b"x" * 130


def on_spool(env):
    if env[b"kind"] == b"sample":
        COUNTERS.end(int(env[b"number"]))
    else:
        COUNTERS.tick()
    return uwsgi.SPOOL_OK


def on_message(message):
    if message.startswith(b"sample"):
        COUNTERS.end(int(message[6:14]))
    else:
        COUNTERS.tick()


uwsgi.spooler = on_spool
uwsgi.mule_msg_hook = on_message


def call(number):
    uwsgi.spool({b"kind": b"tick", b"number": b"%d" % number, b"filler": FILLER})


def sample_call(number):
    uwsgi.spool({b"kind": b"sample", b"number": b"%d" % number, b"filler": FILLER})


def message(number):
    return uwsgi.mule_msg(b"tick--%08d" % number + FILLER)


def sample_message(number):
    uwsgi.mule_msg(b"sample%08d" % number + FILLER)


def delay(count):
    """Submit *count* jobs of tomorrow."""
    at = b"%d" % (time.time() + 86400)
    for number in range(count):
        uwsgi.spool({b"kind": b"tick", b"number": b"%d" % number, b"filler": FILLER, b"at": at})
