"""The tables of a store in a database, and what fits into them."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from uwsgi_tasks.errors import StoreError

_WIDTH = 255
"""Characters of what is looked for. MySQL has room for three of them in an index."""
_ESCAPE = "\x1a"
# PostgreSQL takes no NUL, nobody half of a surrogate pair, and MySQL ignores a space at the end.
_TRAPS = re.compile("[\0\x1a\ud800-\udfff]| \\Z")
_ESCAPED = re.compile(f"{_ESCAPE}([0-9a-f]{{4}})")
_CUT = re.compile(f"{_ESCAPE}[0-9a-f]{{0,3}}\\Z")


def to_text(text: str) -> str:
    """Return *text* as every database takes it."""
    return _TRAPS.sub(lambda found: f"{_ESCAPE}{ord(found[0]):04x}", text)


def from_text(stored: str) -> str:
    """Return the text that was stored so."""
    if _ESCAPE not in stored:
        return stored
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), stored)


def to_key(text: str) -> str:
    """Return *text* as it is looked for; of a very long one, the end is only a checksum.

    The key of a key is itself: what was read can be asked for again.
    """
    stored = to_text(text)
    if len(stored) <= _WIDTH:
        return stored
    checksum = hashlib.blake2b(stored.encode(), digest_size=16).hexdigest()
    return f"{_CUT.sub('', stored[: _WIDTH - 1 - len(checksum)])}#{checksum}"


def to_number(number: float | None) -> float | None:
    """Return what a user gave for a number; MySQL has none that is endless, or not a number."""
    return None if number is None or not math.isfinite(number) else float(number)


_LOOKED_FOR = sa.String(_WIDTH).with_variant(sa.String(_WIDTH, collation="C"), "postgresql")
_LONG = sa.Text().with_variant(mysql.LONGTEXT(), "mysql")
_BYTES = sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql")


class Tables:
    """The tables of one namespace, as the newest version of the schema has them."""

    def __init__(self, namespace: str) -> None:
        self.metadata = sa.MetaData()
        self.prefix = f"uwsgi_tasks_{namespace}_" if namespace else "uwsgi_tasks_"
        self.schema = self._table("schema", sa.Column("version", sa.Integer, primary_key=True))
        self.results = self._table(
            "results",
            sa.Column("id", _LOOKED_FOR, primary_key=True),
            sa.Column("task", _LONG, nullable=False),
            sa.Column("executor", _LONG, nullable=False),
            sa.Column("state", sa.String(20), nullable=False),
            sa.Column("attempt", sa.Integer, nullable=False),
            sa.Column("submitted_at", sa.Double, nullable=False),
            sa.Column("started_at", sa.Double),
            sa.Column("ended_at", sa.Double),
            sa.Column("worker", _LONG),
            sa.Column("outcome", _BYTES),
            sa.Column("error", _LONG),
            sa.Column("traceback", _LONG),
            sa.Column("done", sa.Double),
            sa.Column("total", sa.Double),
            sa.Column("stop", sa.SmallInteger, nullable=False),
            sa.Column("expires_at", sa.Double, nullable=False),
            indexes={"expiry": ["expires_at"]},
        )
        self.dead = self._table(
            "dead",
            sa.Column("id", _LOOKED_FOR, primary_key=True),
            sa.Column("task", _LOOKED_FOR, nullable=False),
            sa.Column("executor", _LONG, nullable=False),
            sa.Column("attempt", sa.Integer, nullable=False),
            sa.Column("failed_at", sa.Double, nullable=False),
            sa.Column("error", _LONG, nullable=False),
            sa.Column("traceback", _LONG, nullable=False),
            sa.Column("worker", _LONG, nullable=False),
            sa.Column("payload", _BYTES, nullable=False),
            sa.Column("variables", _BYTES, nullable=False),
            indexes={"time": ["failed_at", "id"], "task": ["task", "failed_at", "id"]},
        )
        self.leases = self._table(
            "leases",
            sa.Column("name", _LOOKED_FOR, primary_key=True),
            sa.Column("owner", _LOOKED_FOR, nullable=False),
            sa.Column("due", sa.Double, nullable=False),
            sa.Column("extended", sa.SmallInteger, nullable=False),
            indexes={"owner": ["owner"], "due": ["due"]},
        )
        self.counts = self._table(
            "counts",
            sa.Column("minute", sa.BigInteger, primary_key=True, autoincrement=False),
            sa.Column("task", _LOOKED_FOR, primary_key=True),
            sa.Column("outcome", _LOOKED_FOR, primary_key=True),
            sa.Column("runs", sa.BigInteger, nullable=False),
            sa.Column("seconds", sa.Double, nullable=False),
            sa.Column("slowest", sa.Double, nullable=False),
            indexes={"task": ["task", "minute"]},
        )

    def _table(
        self, thing: str, *columns: sa.Column[Any], indexes: dict[str, list[str]] | None = None
    ) -> sa.Table:
        name = self.prefix + thing
        return sa.Table(
            name,
            self.metadata,
            *columns,
            *(sa.Index(f"{name}_{key}", *of) for key, of in (indexes or {}).items()),
            # A row lies in the index of its key: one tree less to write to.
            sqlite_with_rowid=False,
            mysql_engine="InnoDB",
            mysql_charset="utf8mb4",
            mysql_collate="utf8mb4_bin",
        )


Step = Callable[[sa.Connection, Tables], None]

STEPS: tuple[Step, ...] = ()
"""How to come from version 1 of the tables to the next one, from that to the one after, ...

Each must bear being begun again: MySQL keeps each change of a table at once.
"""


def migrate(
    connection: sa.Connection,
    tables: Tables,
    alone: Callable[[sa.Connection, str], AbstractContextManager[None]],
) -> None:
    """Make the tables, or bring them to the newest version, while we are *alone* with them.

    Raises StoreError if they are newer than we are.
    """
    newest = len(STEPS) + 1
    version = _version(connection, tables)
    if version < newest:
        with alone(connection, tables.prefix):
            # Somebody else may have done it while we waited.
            version = _version(connection, tables)
            _upgrade(connection, tables, version, newest)
    if version > newest:
        raise StoreError(
            f"the tables {tables.prefix}* are of version {version}, and this uwsgi_tasks knows "
            f"{newest} only: install here the release that others use there"
        )


def _upgrade(connection: sa.Connection, tables: Tables, version: int, newest: int) -> None:
    if version == 0:
        tables.metadata.create_all(connection)
        connection.execute(tables.schema.insert().values(version=newest))
        return
    for number, step in enumerate(STEPS[version - 1 :], version + 1):
        step(connection, tables)
        connection.execute(tables.schema.insert().values(version=number))


def _version(connection: sa.Connection, tables: Tables) -> int:
    """Return the version of the tables that are there, or 0."""
    if not sa.inspect(connection).has_table(tables.schema.name):
        return 0
    newest = sa.select(sa.func.max(tables.schema.c.version))
    return connection.execute(newest).scalar() or 0
