"""What all tests share."""

import gc
import os
import signal
import sys
import threading
import time

import pytest

# In the background of a shell, and under nohup, they are ignored: then all that the tests start
# would ignore them, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

MANY = 300
"""Open files, beyond which it is time to look for those of nobody."""


@pytest.fixture(scope="module", autouse=True)
def few_files():
    """Close the files of what nobody uses any more: some systems allow a process 1,024 of them."""
    yield
    if len(os.listdir("/proc/self/fd")) > MANY:
        gc.collect()


@pytest.fixture
def untraced():
    """Nothing is measured here: lines that are take longer, and are places to be interrupted at."""
    traces = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)
    yield
    sys.settrace(traces[0])
    threading.settrace(traces[1])


@pytest.fixture
def sleeping_here(monkeypatch):
    """Return what has this thread, when it is to sleep, call a function instead.

    Not others: servers of other tests may be ending, in threads of their own.
    """
    sleep, ours = time.sleep, threading.get_ident()

    def call_instead(function):
        def chosen(seconds):
            return function(seconds) if threading.get_ident() == ours else sleep(seconds)

        monkeypatch.setattr(time, "sleep", chosen)

    return call_instead


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Make what a test printed fit to be sent to the process that shows it."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report
