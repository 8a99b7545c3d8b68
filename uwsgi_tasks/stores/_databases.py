"""Databases: what each kind does in its own way, and how it is reached."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, cast

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.pool import NullPool

from uwsgi_tasks.errors import ConfigurationError, StoreError

Values = dict[str, Any]
Changes = Callable[[Any, Any], Values]
"""From a row as it is, and as it would be inserted, what becomes of it."""

_PATIENCE = 5
"""Seconds that we wait for somebody else's lock, or for a server to answer."""


class Database:
    """One kind of database."""

    driver: ClassVar[str]
    extra: ClassVar[str]
    """Which of our extras installs the driver."""
    now: ClassVar[sa.ColumnElement[Any]]
    """The time, one and the same within a statement."""
    begin: ClassVar[str] = "BEGIN"
    steady: ClassVar[AbstractContextManager[Any]] = nullcontext()
    """Held while connections are used, where a fork must wait for that."""
    insert: ClassVar[Any]
    """How its dialect begins an upsert."""

    def __init__(self, url: sa.URL) -> None:
        self.url = url

    def options(self) -> Values:
        """Return what the driver is told at each connection."""
        return {}

    def connected(self, connection: Any) -> None:
        """Set up a new connection of the driver."""

    def prepare(self) -> None:
        """Make what must be there before the first connection. Raises StoreError, OSError."""

    def place(self) -> object:
        """Return what differs when the connections that we have lead nowhere any more."""
        return None

    def gate(self) -> AbstractContextManager[Any]:
        """Return what a writer holds, where writers must stand in line. Raises OSError."""
        return nullcontext()

    def inherit(self, connection: sa.Connection) -> None:
        """Do with a connection of our parent what does not disturb it."""
        # To let go of it would be to close it, and tell the server that the parent goes.
        _of_parents.append(connection)

    def passes(self, error: Any) -> bool:
        """Would the same succeed if it were tried again?"""
        raise NotImplementedError

    def remedy(self, error: Any) -> str:
        """Return what the user can do about it."""
        raise NotImplementedError

    def transaction(self, connection: sa.Connection) -> AbstractContextManager[None]:
        """Make all or nothing of what is done inside; who leaves it by an error must close."""
        return _between(connection, self.begin, "COMMIT")

    @contextlib.contextmanager
    def alone(self, connection: sa.Connection, name: str) -> Iterator[None]:  # noqa: ARG002
        """Keep all others from changing the tables called *name*; close, as above."""
        with self.transaction(connection):
            yield

    def upsert(
        self,
        table: sa.Table,
        values: Values,
        changes: Changes,
        unless: sa.ColumnElement[bool] | None = None,
    ) -> Any:
        """Insert a row, or make *changes* to the one of the same key, *unless* that is so."""
        statement = self.insert(table).values(values)
        return statement.on_conflict_do_update(
            index_elements=list(table.primary_key),
            set_=changes(table.c, statement.excluded),
            where=None if unless is None else sa.not_(unless),
        )

    def delete_some(
        self, table: sa.Table, condition: sa.ColumnElement[bool], order: sa.Column[Any]
    ) -> sa.Delete:
        """Delete at most "limit" rows that fulfil *condition*, the first ones by *order*."""
        some = _some(table, condition, order).subquery()
        same = [column == some.c[column.name] for column in table.primary_key]
        # The condition twice: somebody may change a row while we wait for it.
        return sa.delete(table).where(*same, condition)


def _some(
    table: sa.Table, condition: sa.ColumnElement[bool], order: sa.Column[Any]
) -> sa.Select[Any]:
    limit = sa.bindparam("limit", type_=sa.Integer)
    return sa.select(*table.primary_key).where(condition).order_by(order).limit(limit)


_of_parents: list[sa.Connection] = []


@contextlib.contextmanager
def _between(connection: sa.Connection, first: str, last: str) -> Iterator[None]:
    connection.exec_driver_sql(first)
    yield
    connection.exec_driver_sql(last)


class _Forks:
    """Lets nobody be inside SQLite, and nothing of it be open, when Python forks.

    SQLite remembers for a whole process which locks it holds, and a child would believe that they
    are its own. Its mutexes would stay as they are, too, without the thread that unlocks them.
    """

    def __init__(self) -> None:
        self._inside: set[int] = set()
        self._forking = threading.Lock()
        self.open: weakref.WeakSet[Connections] = weakref.WeakSet()

    def __enter__(self) -> None:
        me = threading.get_ident()
        self._inside.add(me)
        while self._forking.locked():
            # Who forks waits for us, so it is we who go back.
            self._inside.discard(me)
            with self._forking:
                self._inside.add(me)

    def __exit__(self, *_: object) -> None:
        self._inside.discard(threading.get_ident())

    def before(self) -> None:
        self._forking.acquire()
        deadline = time.monotonic() + _PATIENCE
        while self._inside - {threading.get_ident()} and time.monotonic() < deadline:
            time.sleep(0.0005)
        for connections in list(self.open):
            connections.rest()

    def after_in_parent(self) -> None:
        self._forking.release()

    def after_in_child(self) -> None:
        self._forking = threading.Lock()
        self._inside.clear()


_forks = _Forks()
os.register_at_fork(
    before=_forks.before,
    after_in_parent=_forks.after_in_parent,
    after_in_child=_forks.after_in_child,
)


class SQLite(Database):
    """A file, for the processes of one machine."""

    driver = "sqlite+pysqlite"
    extra = "sql"
    # Its own clock knows milliseconds only, and ours is that of all who have the file.
    now = sa.bindparam("now", type_=sa.Double)
    begin = "BEGIN IMMEDIATE"
    steady = _forks
    insert = staticmethod(sqlite.insert)

    def __init__(self, url: sa.URL) -> None:
        name = url.database or ""
        if name in {"", ":memory:"} or name.startswith("file:"):
            raise ConfigurationError(
                "a SQLite store is a file, as in 'sqlite:////srv/site/tasks.sqlite3'; "
                "use 'memory://' for one that is not kept"
            )
        # Absolute, for a job may change the working directory.
        self._path = Path(name).absolute()
        super().__init__(url.set(database=str(self._path)))

    def options(self) -> Values:
        """Let threads hand on their connections."""
        return {"timeout": _PATIENCE, "check_same_thread": False}

    def connected(self, connection: Any) -> None:
        """Let readers and a writer work at once; a commit is safe when the machine goes on."""
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    def prepare(self) -> None:
        """Make the file."""
        if not self._path.parent.is_dir():
            raise StoreError(
                f"the folder {self._path.parent} of the store is not there: create it, owned by "
                "the user that uWSGI runs as, or correct 'store'"
            )
        _make_private(self._path)

    def place(self) -> object:
        """Return which file it is: what we have open may have been deleted."""
        try:
            found = os.stat(self._path)  # noqa: PTH116  at each call, and a Path doubles it
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def gate(self) -> AbstractContextManager[Any]:
        """Return a queue that waits in the kernel."""
        return _Gate(self._path.with_name(f"{self._path.name}.lock"))

    def inherit(self, connection: sa.Connection) -> None:
        """Close it: uWSGI forks without telling Python, and what it leaves open does harm.

        SQLite would go by the locks of the parent for as long as anything is open.
        """
        with contextlib.suppress(AttributeError):  # before Python 3.12
            # The file is still in use, whatever the locks seem to say.
            raw: Any = connection.connection.dbapi_connection
            raw.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE)  # type: ignore[attr-defined]
        close(connection)

    def passes(self, error: Any) -> bool:
        """Nothing does that SQLite, and the gate, have not waited for."""
        return getattr(error, "sqlite_errorname", "") in {"SQLITE_PROTOCOL", "SQLITE_SCHEMA"}

    def remedy(self, error: Any) -> str:
        """Speak of what its owner can do."""
        if "locked" in str(error):
            return f"another program has kept it to itself for {_PATIENCE} seconds: end that one"
        if "disk" in str(error):
            return f"make room, or look at the disk, under {self._path.parent}"
        if "not a database" in str(error) or "malformed" in str(error):
            return f"restore {self._path}, or move it away: a new one is made"
        return (
            f"run this, user {os.geteuid()}, as the user that uWSGI runs as, or hand over the "
            f"file and its folder with 'chown USER {self._path.parent} {self._path}*'"
        )

    def delete_some(
        self, table: sa.Table, condition: sa.ColumnElement[bool], order: sa.Column[Any]
    ) -> sa.Delete:
        """Delete without a join, which it does not have there; nobody else writes meanwhile."""
        key = sa.tuple_(*table.primary_key)
        return sa.delete(table).where(key.in_(_some(table, condition, order)))


class PostgreSQL(Database):
    """A server, reached by psycopg 3."""

    driver = "postgresql+psycopg"
    extra = "postgresql"
    # Not clock_timestamp(): no index serves what changes within a statement.
    now = sa.cast(sa.extract("epoch", sa.func.statement_timestamp()), sa.Double)
    insert = staticmethod(postgresql.insert)

    def options(self) -> Values:
        """Notice a server that is gone within seconds, not hours."""
        known = {"connect_timeout": _PATIENCE, "tcp_user_timeout": 30_000}
        ours = {key: value for key, value in known.items() if key not in self.url.query}
        return {**ours, "client_encoding": "utf8"}

    def passes(self, error: Any) -> bool:
        """A failed serialization, a deadlock, or a lock that was not to be had."""
        return getattr(error, "sqlstate", "") in {"40001", "40P01", "55P03"}

    def remedy(self, error: Any) -> str:  # noqa: ARG002  its texts are clear enough
        """Speak of the two things that it may be."""
        return "start the server, or correct 'store'"

    @contextlib.contextmanager
    def alone(self, connection: sa.Connection, name: str) -> Iterator[None]:
        """Take a lock of the server, which ends with the transaction."""
        number = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), signed=True)
        with self.transaction(connection):
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(number)))
            yield


class MySQL(Database):
    """A server of MySQL or MariaDB, reached by PyMySQL."""

    driver = "mysql+pymysql"
    extra = "mysql"
    # Not UNIX_TIMESTAMP(NOW(6)): in autumn one hour comes twice.
    now = sa.func.timestampdiff(
        sa.literal_column("MICROSECOND"),
        sa.literal_column("'1970-01-01'"),
        sa.func.utc_timestamp(sa.literal_column("6")),
    ) / sa.literal_column("1e6", sa.Double)
    insert = staticmethod(mysql.insert)

    def options(self) -> Values:
        """Notice a server that is gone; lock rows, and not the gaps between them."""
        known = {"connect_timeout": _PATIENCE, "read_timeout": 30, "write_timeout": 30}
        ours = {key: value for key, value in known.items() if key not in self.url.query}
        isolation = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED"
        return {**ours, "charset": "utf8mb4", "init_command": isolation}

    def passes(self, error: Any) -> bool:
        """A deadlock, a lock that was not to be had, or a row that has changed meanwhile."""
        return error.args[:1] in {(1213,), (1205,), (1020,)}

    def remedy(self, error: Any) -> str:
        """Speak of the server, and of the limit that a large job meets."""
        # It says so where it can, and just hangs up where it cannot.
        if error.args[:1] in {(1153,), (2006,), (2013,)}:
            return "start the server; if it runs, something is larger than its max_allowed_packet"
        return "start the server, or correct 'store'"

    @contextlib.contextmanager
    def alone(self, connection: sa.Connection, name: str) -> Iterator[None]:
        """Take a lock of the server, which ends with the connection."""
        if connection.execute(sa.select(sa.func.get_lock(name, 60))).scalar() != 1:
            raise StoreError(f"somebody has been changing the tables {name}* for a minute")
        yield
        connection.execute(sa.select(sa.func.release_lock(name)))

    def upsert(
        self,
        table: sa.Table,
        values: Values,
        changes: Changes,
        unless: sa.ColumnElement[bool] | None = None,
    ) -> Any:
        """Say the same in its words; each change sees what those before it have done."""
        statement = mysql.insert(table).values(values)
        ordered = list(changes(table.c, statement.inserted).items())
        if unless is not None:
            ordered = [(key, sa.case((unless, table.c[key]), else_=new)) for key, new in ordered]
        return statement.on_duplicate_key_update(ordered)


KINDS: dict[str, type[Database]] = {
    "sqlite": SQLite,
    "postgresql": PostgreSQL,
    "postgres": PostgreSQL,
    "mysql": MySQL,
    "mariadb": MySQL,
}


def _make_private(path: Path) -> None:
    """Make an empty file for its owner only, if there is none. Raises OSError."""
    if path.exists():
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        owner = path.parent.stat()
        if os.geteuid() == 0:
            # What root has made must not lock out whom the folder belongs to.
            os.fchown(handle, owner.st_uid, owner.st_gid)
    finally:
        os.close(handle)
    try:
        # Not opened in its place: closing a file ends all locks that this process has on it,
        # and another thread may have begun to use it.
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()


class _Gate:
    """Held by one writer of a SQLite file at a time.

    SQLite lets a writer who meets another one sleep for whole milliseconds, and look again. This
    is a courtesy only: what keeps the file whole is SQLite's own lock.
    """

    def __init__(self, path: Path) -> None:
        self._threads = threading.Lock()
        _make_private(path)
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            # Not 0 to 2, where a process without standard streams would write its messages.
            self._handle = fcntl.fcntl(handle, fcntl.F_DUPFD_CLOEXEC, 3)
        finally:
            os.close(handle)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            os.close(self._handle)

    def __enter__(self) -> None:
        self._threads.acquire()
        try:
            # Not flock: a child that is forked meanwhile shares that one, and keeps it when we
            # are killed.
            fcntl.lockf(self._handle, fcntl.LOCK_EX)
        except BaseException:
            self._threads.release()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_UN)
        finally:
            self._threads.release()


class Connections:
    """Those of one process: a forked child must not use its parent's."""

    def __init__(self, database: Database, engine: sa.Engine) -> None:
        database.prepare()
        self.gate = database.gate()
        self.ready = False
        """Have the tables been seen?"""
        self._closed = False
        self._pid, self._place = os.getpid(), database.place()
        self._database, self._engine = database, engine
        # Those that nobody uses now. An engine's own pool would cost half as much as a save.
        self._free: list[sa.Connection] = []
        if database.steady is _forks:
            _forks.open.add(self)

    def serves(self) -> bool:
        """Do they belong to this process, and lead to where they should?"""
        return self._pid == os.getpid() and self._place == self._database.place()

    def take(self) -> sa.Connection | None:
        """Return one that nobody uses, if there is one."""
        try:
            return self._free.pop()
        except IndexError:
            return None

    def open(self) -> sa.Connection:
        """Return a new one."""
        connection = self._engine.connect()
        # Else its engine would tell the log when it is let go of.
        connection.detach()
        return connection

    def give(self, connection: sa.Connection) -> None:
        """Take one back, to be used again."""
        self._free.append(connection)
        if self._closed:
            self.rest()

    def close(self) -> None:
        """Close them all, each as soon as nobody uses it."""
        self._closed = True
        self.rest()

    def rest(self) -> None:
        """Close those that nobody uses."""
        ours = self._pid == os.getpid()
        while (connection := self.take()) is not None:
            if ours:
                close(connection)
            else:
                self._database.inherit(connection)


def engine(database: Database) -> sa.Engine:
    """Return what opens connections to *database*. Raises ImportError without its driver."""
    made = sa.create_engine(
        database.url,
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
        connect_args=database.options(),
        # They are the users', and secret.
        hide_parameters=True,
    )
    sa.event.listen(made, "connect", lambda raw, _: database.connected(raw))
    return made


def close(connection: sa.Connection) -> None:
    """Close *connection*, whatever state it is in."""
    # Below SQLAlchemy, which tells the log at length that what is broken cannot be closed well.
    with contextlib.suppress(Exception):
        if not connection.invalidated:
            cast("Any", connection.connection.dbapi_connection).close()
