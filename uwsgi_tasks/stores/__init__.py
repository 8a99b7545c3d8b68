"""What must be remembered: the contract of every store, and the way to find one by its URL."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import ClassVar

from uwsgi_tasks.errors import ConfigurationError
from uwsgi_tasks.model import Count, DeadLetter, Lease, Record, State, Stop

_FILES = {
    **dict.fromkeys(("sqlite", "postgresql", "postgres", "mysql", "mariadb"), "sql"),
    **dict.fromkeys(("rediss", "unix", "valkey", "valkeys"), "redis"),
}
"""The files that are not called as their URLs begin."""
_EXTRAS = ("sql", "redis")
"""The files that need something else, and what to install is called as they are."""


class Store(ABC):
    """Remembers results, dead letters, leases and counts, for all processes that use it.

    Each method is one atomic step, whatever other processes do meanwhile, and is safe to call
    from several threads, and after a fork. Times are those of the store's own clock. All raise
    StoreError if the store cannot be reached; the next call tries again by itself.
    """

    shared: ClassVar[bool] = True
    """Do other processes see the same?"""

    def __init__(self, url: str, namespace: str) -> None:
        # It becomes part of the names of tables and keys, which have a limit.
        if not re.fullmatch("[a-z0-9_]{0,30}", namespace):
            raise ConfigurationError(
                f"the namespace {namespace!r} is not made of at most 30 of a-z, 0-9 and _"
            )
        self.url, self.namespace = url, namespace

    @abstractmethod
    def now(self) -> float:
        """Return the time by the store's clock, in seconds since 1970."""

    @abstractmethod
    def close(self) -> None:
        """Let go of all connections; the next call opens new ones.

        To be called before a fork that Python does not see, as those of uWSGI's master are: what
        is open then is open in the child, too, and stays so until that uses the store.
        """

    # ---- results ----------------------------------------------------------------------------

    @abstractmethod
    def save(self, record: Record, ttl: float) -> None:
        """Remember *record*, instead of what was known of the job, for *ttl* more seconds.

        What is known of a job that has ended is only replaced by a record of its end: a fast
        worker may be done before its caller has saved that the job waits. What a running job was
        asked for (``stop``) is never taken back by a record of a job that has not ended.
        """

    @abstractmethod
    def get(self, id: str) -> Record | None:  # noqa: A002
        """Return what is known of a job; None if nothing is, or no longer."""

    @abstractmethod
    def start(self, id: str, attempt: int, worker: str) -> bool:  # noqa: A002
        """Note that *worker* begins an attempt; False if the job was cancelled, and must not run.

        True if nothing is known of the job: it may have been forgotten. What is known of a job that
        has ended stays as it is: it may have run already, and only not been taken away.
        """

    @abstractmethod
    def advance(self, id: str, done: float, total: float | None) -> Stop:  # noqa: A002
        """Note how far a running job has come; return what it was asked for."""

    @abstractmethod
    def cancel(self, id: str, stop: Stop) -> State | None:  # noqa: A002
        """Cancel a job that waits, or note *stop* for one that runs; return its state after that.

        CANCELLED is certain: `start` will refuse it. None if nothing is known of the job. A job
        that was asked to KILL stays so, whatever it is asked for later.
        """

    @abstractmethod
    def forget(self, id: str) -> bool:  # noqa: A002
        """Forget what is known of a job; False if nothing was."""

    # ---- dead letters -----------------------------------------------------------------------

    @abstractmethod
    def bury(self, letter: DeadLetter) -> None:
        """Keep *letter*, instead of an older one of the same id."""

    @abstractmethod
    def dead(
        self, limit: int = 50, before: DeadLetter | None = None, task: str | None = None
    ) -> list[DeadLetter]:
        """Return the newest dead letters first, by ``failed_at`` and then ``id``.

        Those older than *before* only, if given: the last one of a page leads to the next. Of
        *task* only, if given. Its cost does not grow with what is kept.
        """

    @abstractmethod
    def find_dead(self, id: str) -> DeadLetter | None:  # noqa: A002
        """Return the dead letter of this id."""

    @abstractmethod
    def exhume(self, id: str, until: float = float("inf")) -> bool:  # noqa: A002
        """Take a dead letter away; False if it is not there, or has failed later than *until*."""

    @abstractmethod
    def count_dead(self, task: str | None = None) -> int:
        """Return how many dead letters are kept, of *task* only, if given."""

    # ---- leases -----------------------------------------------------------------------------

    @abstractmethod
    def acquire(self, name: str, owner: str, ttl: float) -> Lease:
        """Take the lease *name* for *owner*, for *ttl* seconds, if nobody has it.

        Nobody has one that is due. Returns the lease as it stands then: with another owner, if
        somebody has it; unchanged, if *owner* has it already.
        """

    @abstractmethod
    def extend(self, lease: Lease, ttl: float) -> bool:
        """Keep *lease* for *ttl* seconds from now; False if it was lost, or is due."""

    @abstractmethod
    def release(self, lease: Lease) -> bool:
        """Give *lease* back; False if it was lost, or is due."""

    @abstractmethod
    def release_all(self, owner: str) -> int:
        """Give back all leases of *owner*; return how many there were."""

    # ---- counts -----------------------------------------------------------------------------

    @abstractmethod
    def count(self, counts: Sequence[Count]) -> None:
        """Add *counts* to what was counted before: all of them, or none."""

    @abstractmethod
    def counts(
        self, since: float, until: float | None = None, task: str | None = None
    ) -> list[Count]:
        """Return what was counted in the minutes from *since* to before *until*, in their order.

        Within a minute by task and outcome. Of *task* only, if given.
        """

    # ---- housekeeping -----------------------------------------------------------------------

    @abstractmethod
    def purge(self, counts_before: float, limit: int = 1000) -> int:
        """Delete what has expired, and counts of minutes before *counts_before*.

        At most *limit* of each kind, so that nobody waits for long; returns how many it were.
        """


def connect(url: str, namespace: str = "") -> Store:
    """Return the store at *url*, such as ``"sqlite:////srv/site/tasks.sqlite3"``.

    Its scheme is the name of a file here, or a kind of database that SQLAlchemy knows; a third
    party's is ``"package.module:Class"``, with what its class takes as URL behind a second colon.
    It is not reached before it is used. *namespace* keeps applications apart. Raises
    ConfigurationError.
    """
    scheme, separator, _ = url.partition("://")
    if separator and ":" not in scheme:
        named = scheme.partition("+")[0]
        file = _FILES.get(named, named)
        path, attribute = f"uwsgi_tasks.stores.{file}", f"{file.capitalize()}Store"
    else:
        path, _, rest = url.partition(":")
        attribute, _, url = rest.partition(":")
        # Not all of it: what follows may hold a password.
        named = f"{path}:{attribute}"
    try:
        found = getattr(import_module(path), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        extra = path.removeprefix(f"{__name__}.")
        if extra in _EXTRAS:
            remedy = f"pip install 'uwsgi_tasks[{extra}]'"
        else:
            files = {file.stem for file in Path(__file__).parent.glob("[a-z]*.py")}
            known = ", ".join(sorted(files - {"sql"} | _FILES.keys()))
            remedy = f"use one of {known}, or 'package.module:Class'"
        raise ConfigurationError(f"no store at {named!r} ({error}): {remedy}") from error
    if not (isinstance(found, type) and issubclass(found, Store)):
        raise ConfigurationError(f"{path}:{attribute} is not a Store")
    return found(url, namespace)
