"""uWSGI, with its bytes, limits and codes made plain."""

from __future__ import annotations

import contextlib
import importlib
import logging
import mmap
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

from uwsgi_tasks.ending import ending_of_this_process
from uwsgi_tasks.errors import ConfigurationError, InvalidTask, SubmitError

try:
    import uwsgi
except ImportError:  # outside the server there is no such module
    uwsgi = None

log = logging.getLogger(__name__)

MULE_MESSAGE_LIMIT = 65536
"""Bytes of a mule message that arrive; uWSGI cuts the rest without a word (core/mule.c)."""

SpoolHook = Callable[[dict[Any, Any], Callable[..., Any] | None], int]
"""Takes uWSGI's description of a spool file, and the callback that was there before ours."""
MuleHook = Callable[[bytes, Callable[..., Any] | None], None]

_MULES = 256
_LISTENS, _WORKS = 1, 2
"""What is known of a mule: it waits for messages, or it runs a program that does not."""
_SIGNALS = 256
_START = 10.0
"""Seconds that a server may take until its mules are there."""
_GRACE = 10
"""Seconds that a task gets beyond its timeout, to hear of it, before its process is killed."""
_MERCY = 60
"""Seconds that uWSGI gives a worker or mule to end, unless its configuration says otherwise."""
_REFRESH = 1.0
"""Seconds for which the numbers of the spoolers are believed."""
_TARGET = re.compile(
    r"|(worker|workers|active-workers|mule|mules|spooler|subscribed)|"
    r"(?P<kind>worker|mule|farm)(?P<number>\d+)|farm_(?P<farm>.{1,58})"
)


class Server:
    """The uWSGI that this process belongs to, if any: what it has, and what it can be told.

    *module* is uWSGI's own module, which exists only inside the server.
    """

    def __init__(self, module: Any = uwsgi) -> None:
        self._uwsgi = module
        self.present = module is not None
        """Does this process belong to a uWSGI server?"""
        self._hooks: dict[str, Callable[..., Any]] = {}
        self._mules = mmap.mmap(-1, _MULES)
        """One byte a mule, shared with every fork; 0 where none has started with our hooks."""
        self._on_fork: Callable[[], None] = lambda: None
        self._pid = 0
        self._pids: list[tuple[bytes, int]] = []
        self._pids_at = float("-inf")

    # ---- what it is -------------------------------------------------------------------------

    @property
    def has_master(self) -> bool:
        """Does the server have the master process that spoolers, mules and signals need?"""
        return self.present and self._uwsgi.masterpid() != 0

    @property
    def incarnation(self) -> bytes:
        """What tells this run of the server from the one before a reload or restart."""
        if not self.present:
            return b""
        return f"{self._uwsgi.masterpid()}.{self._uwsgi.started_on}".encode()

    @property
    def role(self) -> str:
        """What this process is: "", "master", "worker", "mule" or "spooler"."""
        if not self.present:
            return ""
        if self._uwsgi.mule_id():
            return "mule"
        # The function exists only where a spooler is configured.
        if self.spoolers and self._uwsgi.i_am_the_spooler():
            return "spooler"
        return "worker" if self._uwsgi.worker_id() else "master"

    @property
    def _opt(self) -> Mapping[str, Any]:
        return self._uwsgi.opt if self.present else {}

    def at_exit(
        self,
        action: Callable[[], None],
        *,
        first: Callable[[], None] | None = None,
        hurry: Callable[[], None] | None = None,
    ) -> None:
        """Have *action* called when this process ends in good order.

        uWSGI's spoolers do not: they are killed. Outside of uWSGI that is when all threads that
        Python waits for have ended, and new ones can still be started; `atexit` would be too late
        for that. *first* is called there before, in the main thread, when that has nothing else to
        do: `concurrent.futures` still works then, and with it much of asyncio. *hurry* is called
        when Ctrl-C, or a handler of a signal that raises SystemExit, interrupts the end: *action*
        follows at once, or runs already, and is to take no more time than it must. Raises
        RuntimeError if the process has begun to end.
        """
        if not self.present:
            ending_of_this_process().add(action, first, hurry)
            return
        before = getattr(self._uwsgi, "atexit", None)

        def ending() -> None:
            try:
                # uWSGI calls this from a signal's handler, and may have stopped the main thread
                # in the middle of a transaction, or with a lock of ours.
                last = threading.Thread(target=action, name="uwsgi_tasks exit", daemon=True)
                last.start()
                # No longer: it may want a lock that the main thread, below us, holds.
                last.join(None if self.mercy == float("inf") else self.mercy)
            finally:
                if before is not None:
                    before()

        self._uwsgi.atexit = ending

    def end_this_process(self) -> NoReturn:
        """End this spooler or mule in good order; uWSGI starts another one, a second later.

        By SystemExit, at which uWSGI ends the process that is in one of our hooks.
        """
        # uWSGI itself does not call it on this way out.
        hook = getattr(self._uwsgi, "atexit", None)
        try:
            if hook is not None:
                hook()
        # Anybody's; the process ends all the same.
        except Exception:
            log.exception("uwsgi.atexit failed")
        raise SystemExit(1)

    @property
    def mercy(self) -> float:
        """Seconds that this worker or mule has when it was told to end, until it is killed.

        A little less, so that it can still do a last thing; without an end where nobody kills.
        """
        if self.role not in {"worker", "mule"} or not self.has_master:
            return float("inf")
        seconds = float(self._opt.get(f"{self.role}-reload-mercy", _MERCY))
        return seconds - min(1.0, seconds / 2)

    def require_master(self) -> None:
        """Raise ConfigurationError if there is a server without its master process."""
        if self.present and not self.has_master:
            raise ConfigurationError(
                "uWSGI runs without its master process, which spoolers, mules and timers need: "
                "add 'master = true' to its configuration"
            )

    # ---- spoolers ---------------------------------------------------------------------------

    @property
    def spoolers(self) -> tuple[str, ...]:
        """The spooler directories of this server, each once, as absolute paths."""
        if not self.present:
            return ()
        names = getattr(self._uwsgi, "spoolers", ())
        return tuple(dict.fromkeys(os.fsdecode(name) for name in names))

    @property
    def has_external_spoolers(self) -> bool:
        """Does it write into directories that another server's spoolers serve?"""
        return "spooler-external" in self._opt

    @property
    def spooler_ordered(self) -> bool:
        """Does the server look into the folders of priorities?"""
        return "spooler-ordered" in self._opt

    def own_spooler(self) -> str:
        """Return the directory that this spooler process serves."""
        directories = [os.fsdecode(name) for name in self._uwsgi.spoolers]
        # Each call leaks a few bytes (unbit/uwsgi#2703); it is made once a process.
        return directories[list(self._uwsgi.spooler_pids()).index(os.getpid())]

    def spooler_processes(self, directory: str) -> int:
        """Return how many processes serve *directory*."""
        return [os.fsdecode(name) for name in self._uwsgi.spoolers].count(directory)

    def wake_spoolers(self, directory: str) -> None:
        """Have the spoolers of *directory* read it once more."""
        # Each question leaks a few bytes (unbit/uwsgi#2703), so the answer serves for a while.
        if time.monotonic() > self._pids_at + _REFRESH:
            self._pids_at = time.monotonic()
            self._pids = list(zip(self._uwsgi.spoolers, self._uwsgi.spooler_pids(), strict=True))
        for path, pid in self._pids:
            if pid and os.fsdecode(path) == directory and pid != os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGUSR1)

    @property
    def spooler_frequency(self) -> int:
        """Seconds between two looks into the directory, as the configuration says."""
        return int(self._opt.get("spooler-frequency") or self._opt.get("spooler-freq") or 30)

    def set_spooler_frequency(self, seconds: int) -> None:
        """Let the spoolers look into their directory at least once in so many seconds."""
        if self.spoolers:
            self._uwsgi.set_spooler_frequency(seconds)

    def end_after(self, seconds: float | None) -> None:
        """Have uWSGI kill this spooler or mule if it is still busy so long after *seconds*.

        That is for a task in C code, which hears no alarm; None takes it back.
        """
        if self.role in {"spooler", "mule"}:
            self._uwsgi.set_user_harakiri(0 if seconds is None else int(seconds) + _GRACE)

    def wake_this_spooler(self) -> None:
        """Have this spooler process read its directory once more after the present pass."""
        signal.raise_signal(signal.SIGUSR1)

    # ---- mules ------------------------------------------------------------------------------

    @property
    def has_mules(self) -> bool:
        """Is any mule configured?"""
        return "mule" in self._opt or "mules" in self._opt

    @property
    def has_plain_mules(self) -> bool:
        """Is there a mule that waits for messages, and does not run a program of its own?

        Of a repeated option uWSGI shows the last value only, so this may miss one.
        """
        return "mules" in self._opt or self._opt.get("mule") is True

    def check_mule(self, number: int) -> None:
        """Raise InvalidTask if there certainly is no mule *number*."""
        # Of 'mule', which may be repeated, uWSGI shows the last one only.
        if self.has_mules and "mule" not in self._opt and number > int(self._opt["mules"]):
            raise InvalidTask(
                f"there is no mule {number}: this server has {int(self._opt['mules'])}; "
                f"add 'mules = {number}' to its configuration"
            )

    def mule_started(self, number: int = 0) -> bool:
        """Has mule *number* (0: any of them) started with our hook, and does it hear us?"""
        if number >= _MULES:
            return False
        return self._mules[number] == _LISTENS if number else _LISTENS in self._mules[:]

    def take_no_messages(self) -> None:
        """Note that this mule runs a program of its own, which reads none."""
        number = self._uwsgi.mule_id() if self.present else 0
        if 0 < number < _MULES:
            self._mules[number] = _WORKS

    def mule_message(self, message: bytes, target: int | str | None) -> None:
        """Send *message* to a mule, a farm (by name), or any mule. Raises SubmitError."""
        if len(message) > MULE_MESSAGE_LIMIT:
            raise SubmitError(
                f"{len(message)} bytes are more than the {MULE_MESSAGE_LIMIT} that reach a mule: "
                "use the spooler, which takes any size"
            )
        # uWSGI does not check the number: a wrong one ends the process.
        number = target if isinstance(target, int) else 0
        if not self._wait_for_mule(number):
            raise SubmitError(self._why_no_mule(number))
        where = target.encode() if isinstance(target, str) else target or 0
        try:
            sent = self._uwsgi.mule_msg(message, where)
        except ValueError as error:
            raise SubmitError(
                f"mule {target!r}: {error}; configure it with 'mules = 2' or 'farm = {target}:1,2'"
            ) from error
        if not sent:
            raise SubmitError(
                "the queue of the mules is full: add mules, enlarge it with "
                "'mule-msg-size = 1000000', or use the spooler"
            )

    def _why_no_mule(self, number: int) -> str:
        if _WORKS in (self._mules[number : number + 1] if number else self._mules[:]):
            return (
                f"{f'mule {number}' if number else 'every mule'} runs a program of its own, and "
                "takes no tasks: add 'mules = 1' to the configuration of uWSGI"
            )
        if number and (self.mule_started() or self.role == "master"):
            return (
                f"there is no mule {number}: add 'mules = {number}' to the configuration of uWSGI"
            )
        return (
            "no mule has loaded uwsgi_tasks: declare the task in a module that uWSGI loads before "
            "it forks; with lazy-apps, name that module in 'shared-import'"
        )

    def _wait_for_mule(self, number: int) -> bool:
        """Is mule *number* (0: any of them) there? Wait for it while the server is starting."""
        while not self.mule_started(number):
            if number < _MULES and self._mules[number] == _WORKS:
                return False
            if self.role == "master":
                # It forks them after it has loaded the application; what it shows of its options
                # are as many as there are at least.
                return number <= int(self._opt.get("mules", 0)) + ("mule" in self._opt)
            starting = time.time() < self._uwsgi.started_on + _START
            if not starting or number >= _MULES:
                return False
            time.sleep(0.01)
        return True

    # ---- signals ----------------------------------------------------------------------------

    def check_target(self, target: str) -> None:
        """Raise InvalidTask if a signal cannot have this *target*."""
        match = _TARGET.fullmatch(target)
        if match is None:
            raise InvalidTask(
                f"no signal target {target!r}: use '', worker, workers, active-workers, workerN, "
                "mule, mules, muleN, spooler, farmN, farm_NAME or subscribed"
            )
        if not self.present:
            return
        number = int(match["number"] or 0)
        # uWSGI reads beyond its table for a worker that does not exist.
        if match["kind"] == "worker" and number > self._uwsgi.numproc:
            raise InvalidTask(f"target {target!r}: this server has {self._uwsgi.numproc} workers")
        if target.startswith("mule") and not self.has_mules:
            raise InvalidTask(f"target {target!r}: this server has no mules; add 'mules = 1'")
        if match["kind"] == "mule":
            self.check_mule(number)
        if target == "spooler" and not self.spoolers:
            raise InvalidTask("target 'spooler': this server has none; add 'spooler = DIRECTORY'")
        if target.startswith("farm") and "farm" not in self._opt:
            raise InvalidTask(f"target {target!r}: this server has no farm; add 'farm = NAME:1,2'")

    def register_signal(
        self, target: str, handler: Callable[[int], None], number: int | None = None
    ) -> int:
        """Have *handler* called in *target* for a signal; return its number. Raises InvalidTask."""
        if number is None:
            number = self._free_signal()
        elif type(number) is not int or not 0 <= number < _SIGNALS:
            # uWSGI keeps it in a byte, unchecked.
            raise InvalidTask(f"signal {number!r}: uWSGI numbers its signals from 0 to 255")
        try:
            self._uwsgi.register_signal(number, target, handler)
        except ValueError as error:
            raise InvalidTask(f"uWSGI refused signal {number} for {target!r}: {error}") from error
        return number

    def _free_signal(self) -> int:
        for number in range(_SIGNALS):
            if not self._uwsgi.signal_registered(number):
                return number
        raise InvalidTask(
            "all 256 signals of uWSGI are taken: declare fewer timers and crons, "
            "or let one of them submit tasks"
        )

    def add_timer(self, number: int, seconds: int) -> None:
        """Raise signal *number* each so many seconds. Raises InvalidTask if there is no room."""
        with _no_room("64 timers"):
            self._uwsgi.add_timer(number, seconds)

    def add_cron(self, number: int, fields: tuple[int, int, int, int, int]) -> None:
        """Raise signal *number* when minute, hour, day, month and weekday agree."""
        with _no_room("64 crons"):
            self._uwsgi.add_cron(number, *fields)

    # ---- callbacks --------------------------------------------------------------------------

    def install(self, spool: SpoolHook, mule: MuleHook, fork: Callable[[], None]) -> None:
        """Put our callbacks in place, once; those that were there are handed what is not ours."""
        if not self.present:
            return
        if self._hooks:
            # Asked for again, because somebody has taken their place.
            self._place()
            return
        self._import_decorators()
        self._hooks = {"spooler": spool, "mule_msg_hook": mule, "post_fork_hook": self._started}
        self._on_fork = fork
        self._place()
        # What is imported after the fork (lazy-apps, spooler-import) has missed that hook.
        if self.role != "master":
            self._started(None)

    def _import_decorators(self) -> None:
        """Import uWSGI's own decorators now: later, they would put their callbacks over ours."""
        if "uwsgidecorators" in sys.modules:
            return
        names = ("spooler", "mule_msg_hook", "post_fork_hook")
        written_by_hand = {name: getattr(self._uwsgi, name, None) for name in names}
        with contextlib.suppress(Exception):  # it raises a bare one where there is no master
            importlib.import_module("uwsgidecorators")
        for name, callback in written_by_hand.items():
            if callback is not None:
                setattr(self._uwsgi, name, callback)

    def _place(self) -> None:
        for name, ours in self._hooks.items():
            theirs = getattr(self._uwsgi, name, None)
            if not getattr(theirs, "uwsgi_tasks", False):
                setattr(self._uwsgi, name, _chained(ours, theirs))

    def shares(self, other: Server) -> bool:
        """Do both stand for the same uWSGI?"""
        return self._uwsgi is other._uwsgi

    def _started(self, theirs: Callable[[], None] | None) -> None:
        """Note, after a fork, what this process is."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            # Whoever took our place between the import and the fork is asked after us.
            self._place()
            number = self._uwsgi.mule_id()
            # Started again, it runs the program that it ran before.
            if 0 < number < _MULES and not self._mules[number]:
                self._mules[number] = _LISTENS
            self._on_fork()
        # Last: a mule's own loop may hang here, and never return.
        if theirs:
            theirs()

    # ---- what it tells of itself ------------------------------------------------------------

    @property
    def version(self) -> str:
        """The version of uWSGI; empty outside."""
        return os.fsdecode(self._uwsgi.version) if self.present else ""

    @property
    def has_threads(self) -> bool:
        """Do Python's threads run while uWSGI waits?"""
        return self.present and bool(self._uwsgi.has_threads)

    @property
    def lacks_threads(self) -> bool:
        """Do threads of ours stand still here? Never in uWSGI 2.0.30, which always runs them."""
        return self.present and not self.has_threads

    def options(self, names: Iterable[str]) -> dict[str, str]:
        """Return those of *names* that are set; of a repeated option uWSGI shows the last value."""
        found = {name: self._opt[name] for name in names if name in self._opt}
        return {
            name: "true" if value is True else os.fsdecode(value) for name, value in found.items()
        }

    def callbacks(self) -> dict[str, list[str]]:
        """Return, for each of uWSGI's callbacks, who is called, and who was there before."""
        return {
            name: list(_names(getattr(self._uwsgi, name, None)))
            for name in ("spooler", "mule_msg_hook", "post_fork_hook")
        }


def _names(callback: Callable[..., Any] | None) -> Iterator[str]:
    while callback is not None:
        ours = getattr(callback, "uwsgi_tasks", False)
        name = getattr(callback, "__qualname__", type(callback).__qualname__)
        yield "uwsgi_tasks" if ours else f"{getattr(callback, '__module__', None)}.{name}"
        callback = getattr(callback, "behind", None) if ours else None


def _chained(ours: Callable[..., Any], theirs: Callable[..., Any] | None) -> Callable[..., Any]:
    """Return a callback that hands *ours* what came, and the callback that was there before."""

    def callback(*args: Any) -> Any:
        return ours(*args, theirs)

    callback.uwsgi_tasks = True  # type: ignore[attr-defined]
    callback.behind = theirs  # type: ignore[attr-defined]
    return callback


@contextlib.contextmanager
def _no_room(limit: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise InvalidTask(
            f"uWSGI has room for {limit}, until it restarts ({error}): declare fewer, "
            "or let one of them submit several tasks"
        ) from error
