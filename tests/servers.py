"""Servers of databases, in a folder of the test's own, from start to the last of their processes.

One that is not installed skips the test, and fails it where the variable CI is set.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Self

import pytest
import sqlalchemy as sa

PATIENCE = 60.0


class Server:
    """One server; it listens on a socket in its folder."""

    programs: ClassVar[Mapping[str, Sequence[str]]]
    """By what we call them: the names and places of what we start."""
    account: ClassVar[str]
    """Whom it runs as where we are root, which such servers refuse to be."""
    driver: ClassVar[str]
    stops_by: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, *, durable: bool = False) -> None:
        self.durable = durable
        """Does what it has promised survive when it is killed?"""
        self._found = {key: _find(names) for key, names in self.programs.items()}
        # Short: the path of a socket has 108 bytes at most.
        self.folder = Path(tempfile.mkdtemp(prefix="ut-"))
        self.data = self.folder / "data"
        self._log = self.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        if os.geteuid() == 0:
            owner = pwd.getpwnam(self.account)
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)

    @classmethod
    def missing(cls) -> list[str]:
        """Which of its programs are not installed."""
        return [names[0] for names in cls.programs.values() if _find(names) is None]

    @property
    def url(self) -> str:
        """Where a store finds it."""
        raise NotImplementedError

    @property
    def address(self) -> str:
        """Where SQLAlchemy finds it, which has its own idea of drivers."""
        scheme, _, rest = self.url.partition(":")
        return f"{scheme}+{self.driver}:{rest}"

    def install(self) -> Sequence[str]:
        """The command that fills its folder."""
        raise NotImplementedError

    def command(self) -> Sequence[str]:
        """The command that runs it."""
        raise NotImplementedError

    def start(self) -> Self:
        """Start it, for the first time or again, and return when it answers."""
        assert self._process is None
        deadline = time.monotonic() + PATIENCE
        with self._log.open("ab") as log:
            if not self.data.exists():
                self._run(self.install(), log).wait()
            while not self._answers():
                if self._process is None or self._process.poll() is not None:
                    # Again: the rest of one that was killed may still be there.
                    self._process = self._run(self.command(), log)
                assert time.monotonic() < deadline, self._log.read_text()
                time.sleep(0.02)
        return self

    def _run(self, command: Sequence[str], log: object) -> subprocess.Popen[bytes]:
        # Whoever kills us has not to look for it.
        prefix = ["setpriv", "--pdeathsig", "KILL"]
        if os.geteuid() == 0:
            prefix += [f"--reuid={self.account}", f"--regid={self.account}", "--init-groups"]
        return subprocess.Popen(
            [*prefix, *command],
            cwd=self.folder,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )

    def _answers(self) -> bool:
        try:
            with self.connection():
                return True
        except sa.exc.DBAPIError:
            return False

    @contextmanager
    def connection(self) -> Iterator[sa.Connection]:
        """Open a connection of the test's own, which commits each statement."""
        engine = sa.create_engine(self.address, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            yield connection

    def stop(self) -> None:
        """End it in its own way."""
        self._end(self.stops_by)

    def kill(self) -> None:
        """End it as a failing machine would."""
        self._end(signal.SIGKILL)

    def _end(self, by: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        # It may be held still.
        process.send_signal(signal.SIGCONT)
        process.send_signal(by)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def restart(self) -> None:
        """End it, and start it again."""
        self.stop()
        self.start()

    def remove(self) -> None:
        """End it, and take its folder away."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class PostgreSQL(Server):
    """PostgreSQL, of any version."""

    programs: ClassVar = {
        "install": ("initdb", "/usr/lib/postgresql/*/bin/initdb"),
        "run": ("postgres", "/usr/lib/postgresql/*/bin/postgres"),
    }
    account = "postgres"
    driver = "psycopg"
    # Fast: it does not wait for its clients to leave.
    stops_by = signal.SIGINT

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={self.folder}"

    def install(self) -> Sequence[str]:
        found = str(self._found["install"])
        options = [
            "--username=postgres",
            "--auth=trust",
            "--no-sync",
            "--no-locale",
            "--encoding=UTF8",
        ]
        return [found, *options, f"--pgdata={self.data}"]

    def command(self) -> Sequence[str]:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.folder),
            "shared_buffers": "32MB",
            "max_connections": "60",
        }
        if not self.durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        options = [part for item in settings.items() for part in ("-c", "=".join(item))]
        return [str(self._found["run"]), "-D", str(self.data), *options]


class MariaDB(Server):
    """MariaDB, of any version."""

    programs: ClassVar = {
        "install": ("mariadb-install-db", "mysql_install_db"),
        "run": ("mariadbd", "mysqld", "/usr/sbin/mariadbd"),
    }
    account = "mysql"
    driver = "pymysql"

    @property
    def url(self) -> str:
        # PyMySQL would read all certificates of the machine at each connection: 18 ms.
        return f"mysql://root@localhost/test?unix_socket={self.folder}/socket&ssl_disabled=yes"

    def install(self) -> Sequence[str]:
        options = [
            "--no-defaults",
            "--auth-root-authentication-method=normal",
            "--skip-name-resolve",
        ]
        return [str(self._found["install"]), *options, f"--datadir={self.data}"]

    def command(self) -> Sequence[str]:
        options = [
            "--no-defaults",
            f"--datadir={self.data}",
            f"--socket={self.folder}/socket",
            f"--pid-file={self.folder}/pid",
            "--skip-networking",
            "--innodb-buffer-pool-size=64M",
            "--max-allowed-packet=64M",
        ]
        if not self.durable:
            options += ["--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0"]
            options += ["--innodb-flush-method=nosync"]
        return [str(self._found["run"]), *options]


def _find(names: Sequence[str]) -> str | None:
    """Return the first program of these names; Debian keeps servers where only root looks."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    for name in names:
        if found := shutil.which(name, path=path):
            return found
        if "*" in name and (all_ := sorted(Path("/").glob(name[1:]))):
            return str(all_[-1])
    return None


@contextmanager
def serve(kind: type[Server], *, durable: bool = False) -> Iterator[Server]:
    """Run a server; without one, skip, or fail where CI is set."""
    if missing := kind.missing():
        reason = f"{' and '.join(missing)} not installed"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    server = kind(durable=durable)
    try:
        yield server.start()
    finally:
        server.remove()


@pytest.fixture(scope="session")
def postgresql():
    """A PostgreSQL that all tests share; a test may restart it."""
    with serve(PostgreSQL) as server:
        yield server


@pytest.fixture(scope="session")
def mariadb():
    """A MariaDB that all tests share; a test may restart it."""
    with serve(MariaDB) as server:
        yield server
