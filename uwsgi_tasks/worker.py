"""A worker: the process that takes jobs from Redis; a program, or a mule of uWSGI."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from uwsgi_tasks import default_app
from uwsgi_tasks.app import App
from uwsgi_tasks.errors import ConfigurationError
from uwsgi_tasks.executors import Consumer, Consuming
from uwsgi_tasks.health import answering
from uwsgi_tasks.model import TaskExecutor
from uwsgi_tasks.processes import ENDS, RELOAD, Processes, signals_held
from uwsgi_tasks.settings import parse_queues

_KILLED = 1
"""What a process ends with that was told twice."""
_SECOND_LOOK = 5.0
"""Seconds that a process has beyond its grace to say what it gives back."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a worker is run."""

    consuming: Consuming
    processes: int = 1
    reload: Sequence[Path] = ()
    """Folders; when Python files in them change, the worker starts anew."""
    health: tuple[str, int] | None = None
    """Where it answers whether it is well: host and port."""
    executor: str = TaskExecutor.REDIS


def main() -> NoReturn:
    """Run jobs from Redis in a mule: ``mule = uwsgi_tasks.worker:main``.

    The settings ``queues`` and ``threads`` say which, and how many at a time.
    """
    settings, mercy = default_app.settings, default_app.server.mercy
    consuming = Consuming(
        queues=parse_queues(settings.queues), threads=settings.threads, grace=min(mercy, 3600.0)
    )
    _work(default_app, Plan(consuming=consuming))
    sys.exit(0)


def run(app: App, plan: Plan) -> int:
    """Run a worker until it is told to end; return the code to exit with.

    Raises ConfigurationError.
    """
    if plan.processes == 1 and not plan.reload:
        with _probed(plan, None) as probed:
            if _work(app, plan, probed).is_recycled:
                _start_anew()
        return 0
    herd = Processes(
        plan.processes,
        lambda is_well: _work_as_child(app, plan, is_well),
        plan.consuming.grace + _SECOND_LOOK,
    )
    with signals_held(), _probed(plan, herd):
        if plan.reload:
            _watch(plan.reload)
        code = herd.run()
    if herd.is_to_reload and code == 0:
        _start_anew()
    return code


def _start_anew() -> NoReturn:
    """Become a new process, under the same number."""
    logging.shutdown()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  itself


class _Probed:
    """What a probe asks about: the consumer of this process, once there is one."""

    consumer: Consumer | None = None


@contextlib.contextmanager
def _probed(plan: Plan, herd: Processes | None) -> Iterator[_Probed]:
    found = _Probed()

    def is_well() -> bool:
        if herd is not None:
            return herd.are_well
        return found.consumer is not None and found.consumer.is_healthy

    def facts() -> dict[str, object]:
        return {"processes": plan.processes, "pid": os.getpid()}

    with answering(plan.health, is_well, facts):
        yield found


def _work_as_child(app: App, plan: Plan, is_well: Callable[[], None]) -> int:
    found = _Probed()

    def tell() -> None:
        while True:
            if found.consumer is not None and found.consumer.is_healthy:
                is_well()
            time.sleep(1)

    if plan.health:
        threading.Thread(target=tell, name="uwsgi_tasks health", daemon=True).start()
    _work(app, plan, found)
    return 0


def _work(app: App, plan: Plan, probed: _Probed | None = None) -> Consumer:
    """Run jobs in this process, until it is told to end."""
    consumer = app.consume(plan.consuming, plan.executor)
    told = 0

    def end(_number: int, _frame: FrameType | None) -> None:
        nonlocal told
        told += 1
        if told > 1:
            # Leases decide what becomes of what runs.
            os._exit(_KILLED)
        consumer.stop()

    for number in ENDS:
        signal.signal(number, end)
    # Where standard error is no file, nobody could read it.
    with contextlib.suppress(ValueError, OSError, AttributeError):
        faulthandler.register(signal.SIGUSR2, all_threads=True)
    if probed is not None:
        probed.consumer = consumer
    consumer.run()
    return consumer


def _watch(folders: Sequence[Path]) -> None:
    """Start anew when Python files in *folders* change. Raises ConfigurationError."""
    try:
        from watchfiles import PythonFilter, watch  # noqa: PLC0415  in development alone
    except ImportError as error:
        raise ConfigurationError(
            "--reload needs a package: pip install 'uwsgi_tasks[reload]'"
        ) from error
    changes = watch(*folders, watch_filter=PythonFilter(), raise_interrupt=False)

    def look() -> None:
        for _ in changes:
            os.kill(os.getpid(), RELOAD)
            return

    threading.Thread(target=look, name="uwsgi_tasks reload", daemon=True).start()
