"""What is said to a database: every statement of a store, made of SQLAlchemy Core."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, cast

import sqlalchemy as sa

from uwsgi_tasks.model import State
from uwsgi_tasks.stores._databases import Database, Values
from uwsgi_tasks.stores._tables import Tables

_Condition = sa.ColumnElement[bool]


class Statement:
    """A statement as its driver takes it: compiled once, for that costs more than running it."""

    def __init__(self, statement: sa.ClauseElement, dialect: sa.Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self._text = str(compiled)
        self._constants = {k: value for k, value in compiled.params.items() if value is not None}
        # None for a driver that takes values by their names.
        self._names: list[str] | None = getattr(compiled, "positiontup", None)

    def _values(self, given: Values) -> Any:
        # Here, when all locks are held: a wait shall not make the time old.
        values = {**self._constants, **given, "now": time.time()}
        return values if self._names is None else tuple([values[name] for name in self._names])

    def run(self, connection: sa.Connection, given: Values) -> sa.CursorResult[Any]:
        return connection.exec_driver_sql(self._text, self._values(given))

    def run_many(self, connection: sa.Connection, given: Sequence[Values]) -> None:
        connection.exec_driver_sql(self._text, [self._values(one) for one in given])


def _is(column: Any, *states: State) -> _Condition:
    return sa.or_(*(column == _state(state) for state in states))


def _state(state: State) -> Any:
    return sa.literal_column(f"'{state.value}'")


def _is_final(column: Any) -> _Condition:
    return _is(column, State.SUCCEEDED, State.FAILED, State.CANCELLED)


def _all(table: sa.Table) -> Values:
    return {column.name: sa.bindparam(column.name, type_=column.type) for column in table.c}


class Statements:
    """All that is said to one database; each is compiled when it is wanted first."""

    def __init__(self, database: Database, tables: Tables, dialect: sa.Dialect) -> None:
        self._database, self._dialect = database, dialect
        self._results, self._dead = tables.results, tables.dead
        self._leases, self._counts = tables.leases, tables.counts
        self.returns: bool = dialect.update_returning
        """Can a change return what it has made?"""

    def _made(self, statement: sa.ClauseElement) -> Statement:
        return Statement(statement, self._dialect)

    def _change(self, statement: Any, *columns: sa.Column[Any]) -> Statement:
        return self._made(statement.returning(*columns) if self.returns else statement)

    def _upsert(
        self, table: sa.Table, values: Values, changes: Any, unless: _Condition | None = None
    ) -> Any:
        return self._database.upsert(table, values, changes, unless)

    def _lives(self, column: Any) -> _Condition:
        return cast("_Condition", column > self._database.now)

    def _until(self) -> Any:
        return self._database.now + sa.bindparam("ttl", type_=sa.Double)

    @cached_property
    def now(self) -> Statement:
        return self._made(sa.select(self._database.now))

    # ---- results

    def _save(self, stop: Callable[[Any, Any], Any], unless: _Condition | None) -> Statement:
        values = _all(self._results)

        def changes(old: Any, new: Any) -> Values:
            # In the order that suits MySQL: all else asks for the state, which comes first, and
            # "stop" for the time that comes last.
            rest = {name: new[name] for name in values if name not in {"id", "expires_at"}}
            all_ = {"state": new.state, **rest, "stop": stop(old, new)}
            return {**all_, "expires_at": new.expires_at}

        values["expires_at"] = self._until()
        return self._made(self._upsert(self._results, values, changes, unless))

    @cached_property
    def save_end(self) -> Statement:
        return self._save(lambda _, new: new.stop, None)

    @cached_property
    def save(self) -> Statement:
        def stop(old: Any, new: Any) -> Any:
            asked = sa.and_(self._lives(old.expires_at), old.stop > new.stop)
            return sa.case((asked, old.stop), else_=new.stop)

        old = self._results.c
        return self._save(stop, sa.and_(_is_final(old.state), self._lives(old.expires_at)))

    @cached_property
    def _this(self) -> _Condition:
        old = self._results.c
        return sa.and_(old.id == sa.bindparam("key"), self._lives(old.expires_at))

    @cached_property
    def get(self) -> Statement:
        columns = [column for column in self._results.c if column.name != "expires_at"]
        return self._made(sa.select(*columns).where(self._this))

    @cached_property
    def state(self) -> Statement:
        return self._made(sa.select(self._results.c.state).where(self._this))

    @cached_property
    def stop(self) -> Statement:
        return self._made(sa.select(self._results.c.stop).where(self._this))

    def _unless_ended(self, changes: Values) -> sa.Update:
        old = self._results.c
        kept = {
            name: sa.case((_is_final(old.state), old[name]), else_=new)
            for name, new in changes.items()
        }
        return sa.update(self._results).where(self._this).values(kept)

    @cached_property
    def start(self) -> Statement:
        changes = {
            "state": _state(State.RUNNING),
            "attempt": sa.bindparam("this_attempt", type_=sa.Integer),
            "worker": sa.bindparam("by", type_=sa.Text),
            "started_at": self._database.now,
            "done": sa.null(),
            "total": sa.null(),
        }
        return self._change(self._unless_ended(changes), self._results.c.state)

    @cached_property
    def advance(self) -> Statement:
        changes = {
            "done": sa.bindparam("come", type_=sa.Double),
            "total": sa.bindparam("of", type_=sa.Double),
        }
        return self._change(self._unless_ended(changes), self._results.c.stop)

    @cached_property
    def cancel(self) -> Statement:
        old = self._results.c
        asked = sa.bindparam("asked", type_=sa.SmallInteger)
        waits = _is(old.state, State.QUEUED, State.RETRYING)
        obeys = sa.and_(_is(old.state, State.RUNNING), old.stop < asked)
        # In this order: MySQL would ask for the state that it has just changed.
        statement = (
            sa.update(self._results)
            .where(self._this)
            .ordered_values(
                (old.ended_at, sa.case((waits, self._database.now), else_=old.ended_at)),
                (old.stop, sa.case((obeys, asked), else_=old.stop)),
                (old.state, sa.case((waits, _state(State.CANCELLED)), else_=old.state)),
            )
        )
        return self._change(statement, old.state)

    @cached_property
    def forget(self) -> Statement:
        return self._made(sa.delete(self._results).where(self._this))

    # ---- dead letters

    @cached_property
    def bury(self) -> Statement:
        def changes(_: Any, new: Any) -> Values:
            return {column.name: new[column.name] for column in table.c if not column.primary_key}

        table = self._dead
        return self._made(self._upsert(table, _all(table), changes))

    def dead(self, *, after: bool, task: bool) -> Statement:
        """Return the one for a page after a letter, or of a task."""
        return self._pages[after, task]

    @cached_property
    def _pages(self) -> dict[tuple[bool, bool], Statement]:
        both = (False, True)
        return {
            (after, task): self._page(after=after, task=task) for after in both for task in both
        }

    def _page(self, *, after: bool, task: bool) -> Statement:
        letter = self._dead.c
        page = sa.select(self._dead).order_by(letter.failed_at.desc(), letter.id.desc())
        if after:
            moment = sa.bindparam("before", type_=sa.Double)
            # Not as a comparison of pairs, for which MySQL would read the whole index.
            older = sa.or_(letter.failed_at < moment, letter.id < sa.bindparam("key"))
            page = page.where(letter.failed_at <= moment, older)
        if task:
            page = page.where(letter.task == sa.bindparam("task"))
        return self._made(page.limit(sa.bindparam("limit", type_=sa.Integer)))

    @cached_property
    def find_dead(self) -> Statement:
        return self._made(sa.select(self._dead).where(self._dead.c.id == sa.bindparam("key")))

    @cached_property
    def exhume(self) -> Statement:
        dead = self._dead.c
        return self._made(
            sa.delete(self._dead).where(
                dead.id == sa.bindparam("key"),
                dead.failed_at <= sa.bindparam("until", type_=dead.failed_at.type),
            )
        )

    @cached_property
    def count_dead(self) -> Statement:
        return self._made(sa.select(sa.func.count()).select_from(self._dead))

    @cached_property
    def count_dead_of(self) -> Statement:
        of = self._dead.c.task == sa.bindparam("task")
        return self._made(sa.select(sa.func.count()).select_from(self._dead).where(of))

    # ---- leases

    @cached_property
    def acquire(self) -> Statement:
        table = self._leases

        def changes(old: Any, new: Any) -> Values:
            # The time, which all ask for, comes last: MySQL makes one change after the other.
            held = self._lives(old.due)
            return {
                name: sa.case((held, old[name]), else_=new[name])
                for name in ("owner", "extended", "due")
            }

        values = {**_all(table), "due": self._until(), "extended": sa.literal_column("0")}
        statement = self._upsert(table, values, changes)
        return self._change(statement, table.c.owner, table.c.due, table.c.extended)

    @cached_property
    def lease(self) -> Statement:
        lease = self._leases.c
        columns = (lease.owner, lease.due, lease.extended)
        return self._made(sa.select(*columns).where(lease.name == sa.bindparam("name")))

    @cached_property
    def _held(self) -> _Condition:
        lease = self._leases.c
        mine = lease.owner == sa.bindparam("holder")
        return sa.and_(lease.name == sa.bindparam("key"), mine, self._lives(lease.due))

    @cached_property
    def extend(self) -> Statement:
        changes = {"due": self._until(), "extended": sa.literal_column("1")}
        return self._made(sa.update(self._leases).where(self._held).values(changes))

    @cached_property
    def release(self) -> Statement:
        return self._made(sa.delete(self._leases).where(self._held))

    @cached_property
    def release_all(self) -> Statement:
        lease = self._leases.c
        theirs = lease.owner == sa.bindparam("holder")
        return self._made(sa.delete(self._leases).where(theirs, self._lives(lease.due)))

    # ---- counts

    @cached_property
    def count(self) -> Statement:
        def changes(old: Any, new: Any) -> Values:
            slower = new.slowest > old.slowest
            return {
                "runs": old.runs + new.runs,
                "seconds": old.seconds + new.seconds,
                "slowest": sa.case((slower, new.slowest), else_=old.slowest),
            }

        return self._made(self._upsert(self._counts, _all(self._counts), changes))

    def _counted(self, *conditions: _Condition) -> Statement:
        table = self._counts
        since, until = (sa.bindparam(end, type_=sa.BigInteger) for end in ("since", "until"))
        found = sa.select(table).where(table.c.minute >= since, table.c.minute < until)
        return self._made(found.where(*conditions).order_by(*table.primary_key))

    @cached_property
    def counts(self) -> Statement:
        return self._counted()

    @cached_property
    def counts_of(self) -> Statement:
        return self._counted(self._counts.c.task == sa.bindparam("task"))

    # ---- housekeeping

    @cached_property
    def purges(self) -> list[Statement]:
        now = self._database.now
        ended, due, minute = self._results.c.expires_at, self._leases.c.due, self._counts.c.minute
        until = sa.bindparam("until", type_=sa.BigInteger)
        return [
            self._made(self._database.delete_some(table, condition, order))
            for table, condition, order in (
                (self._results, ended <= now, ended),
                (self._leases, due <= now, due),
                (self._counts, minute < until, minute),
            )
        ]
