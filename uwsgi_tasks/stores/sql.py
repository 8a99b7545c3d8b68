"""What a database remembers: SQLite, PostgreSQL, MySQL and MariaDB."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from uwsgi_tasks.errors import ConfigurationError, StoreError
from uwsgi_tasks.model import Count, DeadLetter, Lease, Record, State, Stop
from uwsgi_tasks.stores import Store
from uwsgi_tasks.stores._databases import KINDS, Connections, Database, Values, close, engine
from uwsgi_tasks.stores._statements import Statement, Statements
from uwsgi_tasks.stores._tables import Tables, from_text, migrate, to_key, to_number, to_text

_T = TypeVar("_T")

_TURNS = 6
"""How often a statement is sent that other processes stand in the way of."""
_NO_GATE = nullcontext()
_END = 2**62


class SqlStore(Store):
    """Keeps everything in the tables of a database, which it makes itself.

    A thread has a connection for as long as a call takes; so there are as many as ever called at
    once. SQLite serves the processes of one machine, whose files must not lie on a network.
    """

    def __init__(self, url: str, namespace: str) -> None:
        super().__init__(url, namespace)
        self._database = _database(url)
        self._tables = Tables(namespace)
        try:
            self._engine = engine(self._database)
        except ImportError as error:
            raise ConfigurationError(
                f"the driver of {self._database.driver} is missing ({error}): "
                f"pip install 'uwsgi_tasks[{self._database.extra}]'"
            ) from error
        self._say = Statements(self._database, self._tables, self._engine.dialect)
        self._connections: Connections | None = None

    def now(self) -> float:
        """Return the time by the clock of the server; of a file, by that of this machine."""
        return float(self._rows(self._say.now, {})[0][0])

    def close(self) -> None:
        """Let go of all connections."""
        connections, self._connections = self._connections, None
        if connections is not None:
            with self._database.steady:
                connections.close()

    # ---- connections and errors -------------------------------------------------------------

    def _run(
        self, work: Callable[[sa.Connection], _T], *, writes: bool = True, again: bool = True
    ) -> _T:
        """Do *work* with a connection; *again* if it may have been done already."""
        turn = 0
        while True:
            turn += 1
            try:
                return self._once(work, writes=writes, again=again)
            except DBAPIError as error:
                if turn < _TURNS and self._database.passes(error.orig):
                    time.sleep(random.uniform(0, 0.002 * 2**turn))  # noqa: S311  not a secret
                    continue
                # The others are likely to be broken, too.
                self.close()
                if not (error.connection_invalidated and again and turn == 1):
                    raise self._failed(error) from error
            except TimeoutError:
                # It is the time limit of the task that called us.
                raise
            # PyMySQL raises a RuntimeError where it lacks what MySQL 8 asks for.
            except (SQLAlchemyError, OSError, RuntimeError) as error:
                raise self._failed(error) from error

    def _once(self, work: Callable[[sa.Connection], _T], *, writes: bool, again: bool) -> _T:
        with self._database.steady:
            connections = self._reached()
            connection = connections.take()
            if connection is not None and not again and not self._answers(connection):
                connection = None
            if connection is None:
                connection = self._opened(connections)
            try:
                with connections.gate if writes else _NO_GATE:
                    result = work(connection)
            except BaseException:
                # Nobody knows what state it is in.
                close(connection)
                raise
            connections.give(connection)
            return result

    def _reached(self) -> Connections:
        connections = self._connections
        if connections is None or not connections.serves():
            if connections is not None:
                connections.close()
            connections = self._connections = Connections(self._database, self._engine)
        return connections

    def _opened(self, connections: Connections) -> sa.Connection:
        # SQLite refuses to set up a file that others set up at the same moment.
        with connections.gate:
            connection = connections.open()
            try:
                if not connections.ready:
                    migrate(connection, self._tables, self._database.alone)
                    connections.ready = True
            except BaseException:
                close(connection)
                raise
        return connection

    def _answers(self, connection: sa.Connection) -> bool:
        try:
            return self._engine.dialect.do_ping(cast("Any", connection.connection))
        except self._engine.dialect.loaded_dbapi.Error:
            close(connection)
            return False

    def _failed(self, error: Exception) -> StoreError:
        url = self._database.url
        cause = getattr(error, "orig", None) or error
        text = " ".join(str(cause).split())
        secrets = [value for key, value in url.query.items() if "pass" in key]
        for secret in filter(None, [url.password, *secrets]):
            text = text.replace(str(secret), "***")
        return StoreError(
            f"the store {url.set(query={}).render_as_string()} cannot be reached, or does not do "
            f"what it should ({text}): {self._database.remedy(cause)}"
        )

    def _rows(self, statement: Statement, given: Values) -> Sequence[sa.Row[Any]]:
        return self._run(lambda connection: statement.run(connection, given).all(), writes=False)

    def _row(self, statement: Statement, given: Values) -> sa.Row[Any] | None:
        rows = self._rows(statement, given)
        return rows[0] if rows else None

    def _changed(self, statement: Statement, given: Values, *, again: bool = True) -> int:
        """Return how many rows were changed."""
        return self._run(lambda connection: statement.run(connection, given).rowcount, again=again)

    def _changed_row(self, change: Statement, read: Statement, given: Values) -> sa.Row[Any] | None:
        """Return the row that was changed, as it is then."""

        def work(connection: sa.Connection) -> Sequence[sa.Row[Any]]:
            if self._say.returns:
                # All of them, or SQLite would not end its transaction.
                return change.run(connection, given).all()
            with self._database.transaction(connection):
                # If nothing was there to be changed, what is there a moment later does not count.
                changed = change.run(connection, given).rowcount
                return read.run(connection, given).all() if changed else []

        rows = self._run(work)
        return rows[0] if rows else None

    # ---- results ----------------------------------------------------------------------------

    def save(self, record: Record, ttl: float) -> None:
        """Remember *record* for *ttl* seconds; see `Store.save`."""
        worker, error, traceback = record.worker, record.error, record.traceback
        values = {
            "id": to_key(record.id),
            "task": to_text(record.task),
            "executor": to_text(record.executor),
            "state": record.state.value,
            "attempt": record.attempt,
            "submitted_at": record.submitted_at,
            "started_at": record.started_at,
            "ended_at": record.ended_at,
            "worker": worker and to_text(worker),
            "outcome": record.outcome,
            "error": error and to_text(error),
            "traceback": traceback and to_text(traceback),
            "done": to_number(record.done),
            "total": to_number(record.total),
            "stop": int(record.stop),
            "ttl": ttl,
        }
        self._changed(self._say.save_end if record.state.is_final else self._say.save, values)

    def get(self, id: str) -> Record | None:  # noqa: A002
        """Return what is known of a job."""
        row = self._row(self._say.get, {"key": to_key(id)})
        if row is None:
            return None
        worker, error, traceback = row.worker, row.error, row.traceback
        return Record(
            id=id,
            task=from_text(row.task),
            executor=from_text(row.executor),
            state=State(row.state),
            attempt=row.attempt,
            submitted_at=row.submitted_at,
            started_at=row.started_at,
            ended_at=row.ended_at,
            worker=worker and from_text(worker),
            outcome=row.outcome,
            error=error and from_text(error),
            traceback=traceback and from_text(traceback),
            done=row.done,
            total=row.total,
            stop=Stop(row.stop),
        )

    def start(self, id: str, attempt: int, worker: str) -> bool:  # noqa: A002
        """Note the begin of an attempt; see `Store.start`."""
        given = {"key": to_key(id), "this_attempt": attempt, "by": to_text(worker)}
        row = self._changed_row(self._say.start, self._say.state, given)
        return row is None or row.state != State.CANCELLED

    def advance(self, id: str, done: float, total: float | None) -> Stop:  # noqa: A002
        """Note how far a job has come; return what it was asked for."""
        given = {"key": to_key(id), "come": to_number(done), "of": to_number(total)}
        row = self._changed_row(self._say.advance, self._say.stop, given)
        return Stop.NOT if row is None else Stop(row.stop)

    def cancel(self, id: str, stop: Stop) -> State | None:  # noqa: A002
        """Cancel a job that waits, or ask one that runs to stop; return its state."""
        given = {"key": to_key(id), "asked": int(stop)}
        row = self._changed_row(self._say.cancel, self._say.state, given)
        return None if row is None else State(row.state)

    def forget(self, id: str) -> bool:  # noqa: A002
        """Forget a job."""
        return self._changed(self._say.forget, {"key": to_key(id)}, again=False) > 0

    # ---- dead letters -----------------------------------------------------------------------

    def bury(self, letter: DeadLetter) -> None:
        """Keep *letter*."""
        values = {
            "id": to_key(letter.id),
            "task": to_key(letter.task),
            "executor": to_text(letter.executor),
            "attempt": letter.attempt,
            "failed_at": letter.failed_at,
            "error": to_text(letter.error),
            "traceback": to_text(letter.traceback),
            "worker": to_text(letter.worker),
            "payload": letter.payload,
            "variables": letter.variables,
        }
        self._changed(self._say.bury, values)

    def dead(
        self, limit: int = 50, before: DeadLetter | None = None, task: str | None = None
    ) -> list[DeadLetter]:
        """Return the newest dead letters first."""
        given: Values = {"limit": limit}
        if before is not None:
            given |= {"key": to_key(before.id), "before": before.failed_at}
        if task is not None:
            given["task"] = to_key(task)
        page = self._say.dead(after=before is not None, task=task is not None)
        return [_letter(row) for row in self._rows(page, given)]

    def find_dead(self, id: str) -> DeadLetter | None:  # noqa: A002
        """Return the dead letter of this id."""
        row = self._row(self._say.find_dead, {"key": to_key(id)})
        return row and _letter(row)

    def exhume(self, id: str, until: float = float("inf")) -> bool:  # noqa: A002
        """Take a dead letter away."""
        given = {"key": to_key(id), "until": min(until, _END)}
        return self._changed(self._say.exhume, given, again=False) > 0

    def count_dead(self, task: str | None = None) -> int:
        """Return how many dead letters are kept."""
        if task is None:
            return int(self._rows(self._say.count_dead, {})[0][0])
        return int(self._rows(self._say.count_dead_of, {"task": to_key(task)})[0][0])

    # ---- leases -----------------------------------------------------------------------------

    def acquire(self, name: str, owner: str, ttl: float) -> Lease:
        """Take a lease, if nobody has it; see `Store.acquire`."""
        key = to_key(owner)
        given = {"name": to_key(name), "owner": key, "ttl": ttl}
        row = self._changed_row(self._say.acquire, self._say.lease, given)
        if row is None:
            raise StoreError(f"the lease {name!r} was taken, and is gone: is a trigger at work?")
        holder = owner if row.owner == key else from_text(row.owner)
        return Lease(name=name, owner=holder, due=row.due, extended=bool(row.extended))

    def extend(self, lease: Lease, ttl: float) -> bool:
        """Keep *lease* for *ttl* seconds from now."""
        return self._changed(self._say.extend, {**_held(lease), "ttl": ttl}) > 0

    def release(self, lease: Lease) -> bool:
        """Give *lease* back."""
        return self._changed(self._say.release, _held(lease), again=False) > 0

    def release_all(self, owner: str) -> int:
        """Give back all leases of *owner*."""
        return self._changed(self._say.release_all, {"holder": to_key(owner)}, again=False)

    # ---- counts -----------------------------------------------------------------------------

    def count(self, counts: Sequence[Count]) -> None:
        """Add *counts* to what was counted before."""
        merged: dict[tuple[int, str, str], Values] = {}
        for one in counts:
            key = (one.minute, to_key(one.task), to_key(one.outcome))
            sums = merged.setdefault(
                key,
                {
                    **dict(zip(("minute", "task", "outcome"), key, strict=True)),
                    "runs": 0,
                    "seconds": 0.0,
                    "slowest": one.slowest,
                },
            )
            sums["runs"] += one.runs
            sums["seconds"] += one.seconds
            sums["slowest"] = max(sums["slowest"], one.slowest)

        def work(connection: sa.Connection) -> None:
            with self._database.transaction(connection):
                # In one order for all: who locks in another one waits for ever.
                self._say.count.run_many(connection, [merged[key] for key in sorted(merged)])

        if merged:
            self._run(work, again=False)

    def counts(
        self, since: float, until: float | None = None, task: str | None = None
    ) -> list[Count]:
        """Return what was counted between two times."""
        given: Values = {"since": _whole(since), "until": _END if until is None else _whole(until)}
        statement = self._say.counts
        if task is not None:
            given["task"] = to_key(task)
            statement = self._say.counts_of
        return [
            Count(
                minute=row.minute,
                task=from_text(row.task),
                outcome=from_text(row.outcome),
                runs=row.runs,
                seconds=row.seconds,
                slowest=row.slowest,
            )
            for row in self._rows(statement, given)
        ]

    # ---- housekeeping -----------------------------------------------------------------------

    def purge(self, counts_before: float, limit: int = 1000) -> int:
        """Delete what has expired, at most *limit* of each kind."""
        given = {"until": _whole(counts_before), "limit": limit}
        return sum(self._changed(statement, given) for statement in self._say.purges)


def _database(url: str) -> Database:
    try:
        parsed = sa.make_url(url)
        name, _, driver = parsed.drivername.partition("+")
        kind = KINDS[name]
    except (ArgumentError, KeyError, ValueError):
        # From None: what it was read from may hold a password.
        raise ConfigurationError(
            "the store's URL cannot be read: write it as in 'sqlite:////srv/site/tasks.sqlite3' "
            "or 'postgresql://user:password@host/database', or begin it with 'mysql'"
        ) from None
    if driver not in {"", kind.driver.partition("+")[2]}:
        raise ConfigurationError(f"{parsed.drivername}: write {name}, or {kind.driver}, instead")
    return kind(parsed.set(drivername=kind.driver))


def _letter(row: sa.Row[Any]) -> DeadLetter:
    return DeadLetter(
        id=from_text(row.id),
        task=from_text(row.task),
        executor=from_text(row.executor),
        attempt=row.attempt,
        failed_at=row.failed_at,
        error=from_text(row.error),
        traceback=from_text(row.traceback),
        worker=from_text(row.worker),
        payload=row.payload,
        variables=row.variables,
    )


def _held(lease: Lease) -> Values:
    return {"key": to_key(lease.name), "holder": to_key(lease.owner)}


def _whole(moment: float) -> int:
    """Return the first whole second from *moment* on."""
    return math.ceil(max(-_END, min(moment, _END)))
