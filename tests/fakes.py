"""A uWSGI without a server: its module, whose spoolers and mules run inside the test."""

import contextlib
import fcntl
import os
import pickle
import re
import signal
import struct
import sys
import time
from collections import deque
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from types import ModuleType

import pytest

import uwsgi_tasks.task  # noqa: F401  the module, which the function of that name hides

PREFIX = "uwsgi_spoolfile_on_"
MASTER = 4711


class Clock:
    """The time of day, which a test puts forward. It runs, as the dates of files do."""

    def __init__(self):
        self._real = time.time
        self._ahead = 0.0

    def __call__(self):
        return self._real() + self._ahead

    def advance(self, seconds):
        self._ahead += seconds


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(time, "time", found)
    monkeypatch.setattr(sys.modules["uwsgi_tasks.task"], "time", found)
    return found


@pytest.fixture
def wakes():
    """The wake-ups that this process got: its SIGUSR1s, which would otherwise end it."""
    got = []
    before = signal.signal(signal.SIGUSR1, lambda number, _frame: got.append(number))
    yield got
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The directory that the test's process is in."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


class FakeUwsgi:
    """The module `uwsgi`, as one process of a server sees it; `being` changes which one.

    What is spooled or sent is really carried, to the hook, as uWSGI's C code does it.
    """

    SPOOL_OK, SPOOL_RETRY, SPOOL_IGNORE = -2, -1, 0

    def __init__(
        self, *, spoolers=(), mules=0, farms=(), ordered=False, master=True, role="worker", **opt
    ):
        self.opt = {key.replace("_", "-"): value for key, value in opt.items()}
        self.numproc = 2
        self.started_on = int(time.time()) - 3600
        self.role = role
        self.number = 1
        self.serving = 0
        self.master = MASTER if master else 0
        self.mules, self.farms = mules, farms
        if mules:
            self.opt["mules"] = b"%d" % mules
        if farms:
            self.opt["farm"] = farms[0].encode() + b":1"
        if ordered:
            self.opt["spooler-ordered"] = True
        if spoolers:
            self.opt["spooler"] = os.fsencode(spoolers[-1])
            self.spoolers = tuple(os.fsencode(path) for path in spoolers)
        self.frequency = None
        self.messages = deque()
        self.room = 278
        self.full = False
        self.has_threads = 0
        self.signals, self.timers, self.crons = {}, [], []
        self._numbers = count(1)

    @contextlib.contextmanager
    def being(self, role, number=1):
        before = self.role, self.number
        self.role, self.number = role, number
        try:
            yield
        finally:
            self.role, self.number = before

    def fork(self, server, role, number=1):
        """Start a process of *server*; it ends as soon as it has called its hook."""
        with self.being(role, number):
            server._pid = 0
            hook = getattr(self, "post_fork_hook", None)
            if hook:
                hook()

    # what a process is

    def masterpid(self):
        return self.master

    def mule_id(self):
        return self.number if self.role == "mule" else 0

    def worker_id(self):
        return self.number if self.role == "worker" else 0

    def i_am_the_spooler(self):
        return True if self.role == "spooler" else None

    # spoolers

    def spooler_pids(self):
        return [
            os.getpid() if number == self.serving else 0 for number in range(len(self.spoolers))
        ]

    def set_user_harakiri(self, seconds):
        self.harakiri = seconds

    def set_spooler_frequency(self, seconds):
        self.frequency = seconds

    def spool(self, request):
        if self.full:
            raise ValueError("unable to spool job")
        body = request.pop(b"body", b"")
        folder = request.get(b"spooler", self.spoolers[0])
        if folder not in self.spoolers:
            raise ValueError("unable to spool job")
        variables = b""
        for key, value in request.items():
            assert type(key) is type(value) is bytes, "spool dictionary must contains only bytes"
            for text in (key, value):
                size = len(text) & 0xFFFF
                variables += struct.pack("<H", size) + text[:size]
        path = Path(os.fsdecode(folder))
        if b"priority" in request:
            path /= request[b"priority"].decode()
            path.mkdir(exist_ok=True)
        file = path / f"{PREFIX}fake_{os.getpid()}_{next(self._numbers)}_1_1_1"
        file.write_bytes(struct.pack("<BHB", 17, len(variables), 0) + variables + body)
        return os.fsencode(file)

    def spool_files(self):
        """The names of what waits, without the ticket of delayed jobs."""
        folders = [Path(os.fsdecode(path)) for path in self.spoolers]
        found = [file.name for folder in folders for file in folder.rglob(PREFIX + "*")]
        return [
            name
            for name in found
            if name != PREFIX + "later" and not list(folders[0].glob(f"dead/{name}"))
        ]

    def look(self):
        """Make one pass over the directory, as the present spooler; return how many ended."""
        top = Path(os.fsdecode(self.spoolers[self.serving]))
        folders = [top]
        if "spooler-ordered" in self.opt:
            levels = [path for path in top.iterdir() if path.name.isdigit()]
            folders = [*sorted(levels, key=lambda path: int(path.name)), top]
        with self.being("spooler"):
            return sum(self._manage(path) for folder in folders for path in _files(folder))

    def _manage(self, path):
        if int(path.stat().st_mtime) > int(time.time()):
            return False
        # uWSGI passes over what others have locked, and keeps its own lock until it has ended.
        with path.open("r+b") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return self._run(path, file.read())

    def _run(self, path, content):
        _, length, _ = struct.unpack_from("<BHB", content)
        texts, at = [], 4
        while at < 4 + length:
            (size,) = struct.unpack_from("<H", content, at)
            texts.append(content[at + 2 : at + 2 + size])
            at += 2 + size
        env = dict(zip(texts[::2], texts[1::2], strict=True))
        env["spooler_task_name"] = path.name
        if content[at:]:
            env["body"] = content[at:]
        before = Path.cwd()
        os.chdir(path.parent)
        try:
            answer = self.spooler(env)
        finally:
            os.chdir(before)
        if answer == self.SPOOL_OK:
            path.unlink()
        return answer == self.SPOOL_OK

    # mules

    def mule_msg(self, message, target=0):
        assert isinstance(message, bytes)
        if isinstance(target, int):
            assert 0 <= target <= self.mules, "uWSGI reads beyond its table, and the worker dies"
        elif target.decode() not in self.farms:
            raise ValueError("unknown farm")
        if len(self.messages) >= self.room:
            return False
        self.messages.append((message[:65536], target))
        return True

    def deliver(self):
        """Hand the mules all that was sent."""
        while self.messages:
            message, target = self.messages.popleft()
            with self.being("mule", target if isinstance(target, int) and target else 1):
                self.mule_msg_hook(message)

    # signals

    def signal_registered(self, number):
        return number in self.signals or None

    def register_signal(self, number, target, handler):
        if number in self.signals:
            raise ValueError("unable to register signal")
        self.signals[number] = (target, handler)

    def add_timer(self, number, seconds):
        if len(self.timers) >= 64:
            raise ValueError("unable to add timer")
        self.timers.append((number, seconds))

    def add_cron(self, number, *fields):
        if len(self.crons) >= 64:
            raise ValueError("unable to add cron")
        self.crons.append((number, *fields))


def _files(folder):
    files = [path for path in folder.iterdir() if path.name.startswith(PREFIX)]
    return sorted(files, key=lambda path: by_version(path.name))


def by_version(name):
    """Compare as versionsort does, by which uWSGI goes: 9 comes before 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def legacy(function, args=(), kwargs=None, *, buffer=None, **setup):
    """What uwsgi_tasks 0.7.3 hands to `uwsgi.spool`: SpoolerTask.get_message_content."""
    setup.setdefault("working_dir", str(Path.cwd()))
    # Its __init__ takes these out, and its setters put them back: no number becomes 0.
    count, wait = setup.pop("retry_count", None), setup.pop("retry_timeout", None)
    setup["retry_count"] = count or 0
    if wait:
        setup["retry_timeout"] = wait.seconds if isinstance(wait, timedelta) else wait
    message = {"function_name": function, "setup": _with_proxy(setup, buffer)}
    for key in ("spooler", "priority", "at"):
        if key in setup:
            message[key] = setup[key]
    if message.get("at"):
        at = message["at"]
        if isinstance(at, timedelta):
            at = datetime(2020, 1, 1) + at  # noqa: DTZ001  0.7 knew no other
        message["at"] = str(int(at.timestamp()) if isinstance(at, datetime) else at)
    whole = {
        **message,
        "args": pickle.dumps(args),
        "kwargs": pickle.dumps(kwargs or {}),
    }
    if len(repr(whole)) >= 64 * 1024:
        whole = {
            **message,
            "args": pickle.dumps(()),
            "kwargs": pickle.dumps({}),
            "body": pickle.dumps({"args": args, "kwargs": kwargs or {}}),
        }
    return {
        key.encode(): value.encode() if isinstance(value, str) else value
        for key, value in whole.items()
    }


def as_env(message, name=PREFIX + "old"):
    """What the spooler's callback gets of a message to `uwsgi.spool`."""
    env = {**message, "spooler_task_name": name}
    body = env.pop(b"body", None)
    return env if body is None else {**env, "body": body}


class ProxyDict(dict):
    """The buffer of uwsgi_tasks 0.7.3."""

    __module__ = "uwsgi_tasks.utils"
    __qualname__ = "ProxyDict"

    def __init__(self, dict_instance, key):
        super().__init__()
        self.key = key
        if self.key in dict_instance:
            self.update(dict_instance[self.key])
        dict_instance[self.key] = self


def _with_proxy(setup, buffer):
    if buffer is None:
        return pickle.dumps(setup)
    setup["buffer"] = buffer
    ProxyDict(setup, "buffer")
    # pickle looks the class up in the module that it names, which is no more.
    module = ModuleType("uwsgi_tasks.utils")
    module.ProxyDict = ProxyDict
    sys.modules[module.__name__] = module
    try:
        return pickle.dumps(setup)
    finally:
        del sys.modules[module.__name__]
