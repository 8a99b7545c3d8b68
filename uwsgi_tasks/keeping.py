"""Where an app keeps what outlives its processes: the store, and what stands in for it."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from zlib import crc32

from uwsgi_tasks.errors import ConfigurationError
from uwsgi_tasks.executors.spooler import SpoolerExecutor
from uwsgi_tasks.ledger import COUNTS_KEPT
from uwsgi_tasks.meter import added_up, take_over, unsaved
from uwsgi_tasks.model import Count
from uwsgi_tasks.server import Server
from uwsgi_tasks.settings import Settings
from uwsgi_tasks.spool import SpoolDirectory
from uwsgi_tasks.stores import Store, connect

_STORE = "store.sqlite3"


class Keeping:
    """The store that the settings name, or one beside the spool files of *spooler*."""

    def __init__(
        self, server: Server, settings: Callable[[], Settings], spooler: SpoolerExecutor
    ) -> None:
        self._server, self._settings, self._spooler = server, settings, spooler
        self.stores: dict[tuple[str, str], Store] = {}
        """Those that are in use here, by URL and namespace."""
        self.is_alone = False
        """Is what others have left nothing to us, as in a test?"""
        self._found: tuple[Settings, Store] | None = None
        # Of each process its own: one that another thread holds in a fork is never free again.
        self._connecting: dict[int, threading.Lock] = {}

    @property
    def is_near(self) -> bool:
        """Is the store in use here, or was it asked for?

        Else counting would load SQLAlchemy into each process, for nothing but that.
        """
        return bool(self.stores) or self._settings().store_url is not None

    @property
    def store(self) -> Store:
        """What remembers results, dead letters and counts. Raises ConfigurationError."""
        settings = self._settings()
        # Asked for at each job that is kept, and finding its URL asks the file system.
        if self._found is None or self._found[0] is not settings:
            self._found = settings, self._connected(settings)
        return self._found[1]

    def _connected(self, settings: Settings) -> Store:
        key = settings.store_url or self._default_store(), settings.namespace
        with self._connecting.setdefault(os.getpid(), threading.Lock()):
            if key not in self.stores:
                self.stores[key] = connect(*key)
            return self.stores[key]

    def _default_store(self) -> str:
        """Return the URL of a file beside the spool files; in memory where nothing is shared."""
        directories = self._spooler.directories()
        if directories:
            return f"sqlite:///{directories[0]}/{_STORE}"
        return (
            f"sqlite:///{self.dead_folder().parent}/{_STORE}"
            if self._server.present
            else "memory://"
        )

    def dead_folder(self) -> Path:
        """Return where dead letters go while the store is away. Raises ConfigurationError."""
        folder = self._spooler.dead_letters()
        if folder is not None:
            return folder
        chosen = self._settings().dead_dir
        if chosen is not None:
            folder = Path(chosen)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return folder
        return _private_folder() / "dead"

    def dead_folders(self) -> list[Path]:
        """Return all folders where dead letters may have gone while the store was away."""
        if self.is_alone:
            return []
        folders = [SpoolDirectory(path).dead for path in self._spooler.directories()]
        if not folders:
            with contextlib.suppress(ConfigurationError, OSError):
                folders.append(self.dead_folder())
        return folders

    def counts_folder(self) -> Path | None:
        """Return where this process counts what it runs; None where nobody would look."""
        directories, settings = self._spooler.directories(), self._settings()
        if settings.redis is not None and not directories:
            # Of each store its own: what was counted goes there.
            store = f"{settings.store_url} {settings.namespace}"
            folder = _private_folder() / f"running-{crc32(store.encode()):08x}"
            folder.mkdir(mode=0o700, exist_ok=True)
            return folder
        if not directories or (settings.store_url is None and find_spec("sqlalchemy") is None):
            return None
        return Path(directories[0]) / "running"

    def adopt_counts(self) -> None:
        """Take into the store what processes have counted that have ended. Raises StoreError."""
        folder = self.counts_folder()
        if folder is not None:
            take_over(folder, self.store.count)

    def stats(
        self, since: float, until: float | None = None, task: str | None = None
    ) -> list[Count]:
        """Return the store's counts, and those that processes have not handed over."""
        self.adopt_counts()
        folder = self.counts_folder()
        fresh = [] if folder is None else unsaved(folder)
        first = since // 60 * 60
        counts = self.store.counts(first, until, task) + [
            count
            for count in fresh
            if first <= count.minute < (until or float("inf")) and task in {None, count.task}
        ]
        return added_up(counts)

    def purge(self) -> int:
        """Delete what has expired in the store; counts after thirty days."""
        before = time.time() - COUNTS_KEPT
        total = 0
        while deleted := self.store.purge(before):
            total += deleted
        return total


def _private_folder() -> Path:
    import tempfile  # noqa: PLC0415  it imports every kind of compression

    path = Path(tempfile.gettempdir()) / f"uwsgi_tasks-{os.geteuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ConfigurationError(f"{path} is not private: set 'dead_dir' to a folder that is")
    return path
