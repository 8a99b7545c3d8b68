"""What the user may set, read once from Django, the environment or configure()."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

from uwsgi_tasks.errors import ConfigurationError
from uwsgi_tasks.model import is_queue
from uwsgi_tasks.signing import Signer

_PREFIX = "UWSGI_TASKS_"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting, with its default."""

    executor: str = "auto"
    """What AUTO means: ``auto`` (spooler, else mule, else at once) or an executor's name."""
    fallback: str = "runtime"
    """Where AUTO goes if there is neither spooler nor mule, as under ``runserver``: ``runtime``,
    at once in the call, or ``thread``, in the background of this process."""
    threads: int = 4
    """Threads of each process that run the jobs of ``executor="thread"``, or in a mule that is a
    worker those of Redis."""
    thread_grace: float = 30
    """Seconds for which a process that ends finishes such jobs."""
    spooler_dir: str | Path | None = None
    """Outside uWSGI: the spooler directory of the server that shall run what is submitted."""
    dead_dir: str | Path | None = None
    """Where dead letters go where there is no spooler; a private folder of the temporary one."""
    crash_limit: int = 3
    """Crashes of its process after which a job becomes a dead letter."""
    spooler_frequency: int | None = 1
    """Seconds after which an idle spooler looks into its directory; None leaves uWSGI's own."""
    renice: bool = True
    """Undo the niceness of 19 that uWSGI gives its spoolers."""
    accept_legacy: bool = True
    """Run the spool files that uwsgi_tasks 0.7 wrote."""
    store: str | None = field(default=None, repr=False)
    """URL of what remembers results and dead letters, or ``django``: the default database there.
    By default an SQLite file in the spooler's directory; in memory where there is none."""
    namespace: str = ""
    """Keeps applications apart that share a store."""
    secret: str | list[str] | tuple[str, ...] | None = field(default=None, repr=False)
    """Signs what travels. Of several the first signs, and all are accepted. By default Django's
    SECRET_KEY, and its SECRET_KEY_FALLBACKS."""
    result_ttl: float = 0
    """Seconds for which results are kept, of tasks that do not say it themselves."""
    redis: str | None = field(default=None, repr=False)
    """URL of the Redis of ``executor="redis"``; by default that of this machine. Named here, it
    is the store as well, unless that is another."""
    redis_retry: float = 0
    """Seconds for which a call tries again to reach Redis, before it raises SubmitError."""
    queues: str = "default"
    """What ``mule = uwsgi_tasks.worker:main`` serves, with as many jobs at a time as *threads*
    says: ``high,default`` the first ones first, ``high=3,default=1`` by weight."""
    unknown_task_grace: float = 300
    """Seconds for which a job waits on Redis whose task no worker knows, before it is a dead
    letter: a newer worker may be about to start."""
    stats: bool = True
    """Count runs and their times, by task and minute."""

    signer: Signer | None = field(init=False, repr=False, compare=False)

    @property
    def has_redis(self) -> bool:
        """Is there a Redis that has jobs?"""
        return self.redis is not None or self.executor == "redis"

    @property
    def store_url(self) -> str | None:
        """The store that was named; None leaves it to where the spooler is."""
        return self.store or self.redis

    @property
    def pickles(self) -> bool:
        """Is what others may have written to be unpickled, and the like to be written?

        Not from a Redis, if nobody can tell who has written it.
        """
        return self.signer is not None or not (self.store_url or "").startswith(_REDIS)

    def __post_init__(self) -> None:
        self._check_numbers()
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise ConfigurationError(f"{name} must be true or false")
        for name in ("spooler_dir", "dead_dir"):
            value = getattr(self, name)
            if value is not None and not (
                isinstance(value, (str, Path)) and Path(value).is_absolute()
            ):
                raise ConfigurationError(f"{name} must be an absolute path, not {value!r}")
        if self.store is not None and not (isinstance(self.store, str) and self.store):
            raise ConfigurationError(
                f"store must be a URL such as 'sqlite:////srv/site/tasks.sqlite3', or 'django', "
                f"not {self.store!r}"
            )
        if self.redis is not None and not (isinstance(self.redis, str) and self.redis):
            # Without the value: it may hold a password, and this text lands in a log.
            raise ConfigurationError("redis must be a URL such as 'redis://localhost:6379/0'")
        if not (isinstance(self.namespace, str) and _NAMESPACE.fullmatch(self.namespace)):
            raise ConfigurationError(
                f"namespace takes up to 30 of a-z, 0-9 and _, not {self.namespace!r}"
            )
        parse_queues(self.queues)
        if self.fallback not in _FALLBACKS:
            raise ConfigurationError(f"fallback is runtime or thread, not {self.fallback!r}")
        object.__setattr__(self, "signer", _signer(self.secret))

    def _check_numbers(self) -> None:
        for name, least in (("crash_limit", 1), ("spooler_frequency", 1), ("threads", 1)):
            value = getattr(self, name)
            if name == "spooler_frequency" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigurationError(f"{name} must be a whole number from {least}: {value!r}")
        for name in _SECONDS:
            given = getattr(self, name)
            if (
                isinstance(given, bool)
                or not isinstance(given, (int, float))
                or not 0 <= given < _FOREVER
            ):
                raise ConfigurationError(f"{name} must be seconds, 0 for none, not {given!r}")


def parse_queues(text: str) -> list[tuple[str, int | None]]:
    """Return the queues that *text* names, and their weights. Raises ConfigurationError."""
    found: list[tuple[str, int | None]] = []
    for part in text.split(",") if isinstance(text, str) else ():
        name, is_weighted, weight = part.strip().partition("=")
        if not is_queue(name) or (is_weighted and not (weight.isdecimal() and int(weight))):
            raise ConfigurationError(
                f"queues are written as high,default or as high=3,default=1, not {text!r}"
            )
        found.append((name, int(weight) if is_weighted else None))
    names, weights = [name for name, _ in found], {weight is None for _, weight in found}
    if not found or len(set(names)) < len(names) or len(weights) > 1:
        raise ConfigurationError(
            f"queues: {text!r}: each one once, and either all of them have a weight or none"
        )
    return found


def _signer(secret: Any) -> Signer | None:
    if secret is None:
        return None
    secrets = [secret] if isinstance(secret, str) else secret
    if not isinstance(secrets, (list, tuple)) or not secrets:
        raise ConfigurationError("secret must be a text, or a list of texts: the first one signs")
    for one in secrets:
        if not isinstance(one, str) or len(one) < _LEAST_SECRET:
            # Without the value: this text lands in a log.
            raise ConfigurationError(f"secret must have {_LEAST_SECRET} characters at least")
    return Signer(secrets)


_FALLBACKS = ("runtime", "thread")
_REDIS = ("redis", "unix:", "valkey")
_SECONDS = ("result_ttl", "thread_grace", "redis_retry", "unknown_task_grace")
_SWITCHES = ("renice", "accept_legacy", "stats")
_NAMESPACE = re.compile(r"[a-z0-9_]{0,30}")
_LEAST_SECRET = 8
_FOREVER = float("inf")
_NAMES = {entry.name for entry in fields(Settings) if entry.init}


def read(
    overrides: Mapping[str, Any],
    environ: Mapping[str, str] = os.environ,
    django: Callable[[], Mapping[str, Any]] | None = None,
) -> Settings:
    """Put the settings together: *overrides*, then the environment, then Django's, then defaults.

    Raises ConfigurationError for a key that does not exist or a value that cannot be.
    """
    values: dict[str, Any] = {}
    for source, found in (
        ("Django's UWSGI_TASKS", (django or from_django)()),
        ("the environment", from_environment(environ)),
        ("configure()", overrides),
    ):
        for name in found:
            if name not in _NAMES:
                raise ConfigurationError(
                    f"{source} has no setting {name!r}: choose from {', '.join(sorted(_NAMES))}"
                )
        values.update(found)
    if values.get("secret") is None:
        values["secret"] = (django_secret if django is None else lambda: None)()
    if values.get("store") == "django" and django is None:
        values["store"] = django_store()
    return Settings(**values)


def from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings that stand in the environment as UWSGI_TASKS_SPOOLER_DIR and so on."""
    return {
        key.removeprefix(_PREFIX).lower(): _parsed(key.removeprefix(_PREFIX).lower(), value)
        for key, value in environ.items()
        if key.startswith(_PREFIX)
    }


def _parsed(name: str, value: str) -> Any:
    if name == "secret" and value.startswith("["):
        try:
            return json.loads(value)
        except ValueError as error:
            raise ConfigurationError(f"{_PREFIX}SECRET is no list in JSON") from error
    if name in _SECONDS:
        try:
            return float(value)
        except ValueError as error:
            raise ConfigurationError(
                f"{_PREFIX}{name.upper()} must be seconds: {value!r}"
            ) from error
    if name in _SWITCHES:
        word = value.lower()
        if word not in {"1", "0", "true", "false", "yes", "no", "on", "off"}:
            raise ConfigurationError(f"{_PREFIX}{name.upper()} must be true or false: {value!r}")
        return word in {"1", "true", "yes", "on"}
    if name in {"crash_limit", "spooler_frequency", "threads"}:
        if name == "spooler_frequency" and value.lower() in {"", "none"}:
            return None
        try:
            return int(value)
        except ValueError as error:
            raise ConfigurationError(
                f"{_PREFIX}{name.upper()} must be a whole number: {value!r}"
            ) from error
    return value


def django_is_late() -> bool:
    """Is Django here, and has nobody told it yet where its settings are?"""
    if "DJANGO_SETTINGS_MODULE" in os.environ or "django.conf" not in sys.modules:
        return False
    return not sys.modules["django.conf"].settings.configured


def _django_settings() -> Any:
    """Return Django's settings, where this process uses Django and has told it where they are."""
    if "DJANGO_SETTINGS_MODULE" not in os.environ and "django" not in sys.modules:
        return None
    try:
        from django.conf import settings
    except ImportError:
        return None
    if not settings.configured and "DJANGO_SETTINGS_MODULE" not in os.environ:
        return None
    return settings


def from_django() -> Mapping[str, Any]:
    """Return Django's UWSGI_TASKS, where this process uses Django."""
    found = getattr(_django_settings(), "UWSGI_TASKS", {})
    if not isinstance(found, Mapping):
        raise ConfigurationError(f"UWSGI_TASKS must be a dictionary, not {found!r}")
    return found


def django_secret() -> list[str] | None:
    """Return Django's SECRET_KEY and its SECRET_KEY_FALLBACKS, where this process uses Django."""
    settings = _django_settings()
    if settings is None:
        return None
    try:
        key = getattr(settings, "SECRET_KEY", "")
    # Django's, of an application that has no such key, and need not have one.
    except Exception:  # noqa: BLE001
        return None
    found = map(str, [key, *getattr(settings, "SECRET_KEY_FALLBACKS", ())])
    return [text for text in found if len(text) >= _LEAST_SECRET] or None


_SCHEMES = {
    "django.db.backends.sqlite3": "sqlite",
    "django.db.backends.postgresql": "postgresql",
    "django.contrib.gis.db.backends.postgis": "postgresql",
    "django.db.backends.mysql": "mysql",
}


def django_store() -> str:
    """Return the URL of Django's default database. Raises ConfigurationError."""
    databases = getattr(_django_settings(), "DATABASES", None) or {}
    found = databases.get("default", {})
    scheme = _SCHEMES.get(found.get("ENGINE", ""))
    if scheme is None:
        raise ConfigurationError(
            f"store='django': the default of DATABASES is {found.get('ENGINE') or 'not there'}, "
            f"and this works with {', '.join(sorted(set(_SCHEMES.values())))}: name a URL instead"
        )
    if scheme == "sqlite":
        return f"sqlite:///{Path(found['NAME']).absolute()}"
    user = quote(str(found.get("USER") or ""), safe="")
    password = quote(str(found.get("PASSWORD") or ""), safe="")
    account = f"{user}:{password}@" if password else f"{user}@" if user else ""
    name, host = quote(str(found["NAME"])), str(found.get("HOST") or "")
    port = f":{found['PORT']}" if found.get("PORT") else ""
    if host.startswith("/"):
        # A socket: PostgreSQL's folder, MySQL's file.
        query = "host" if scheme == "postgresql" else "unix_socket"
        return f"{scheme}://{account}/{name}?{query}={quote(host)}{port and '&port=' + port[1:]}"
    return f"{scheme}://{account}{host or 'localhost' * (scheme == 'mysql')}{port}/{name}"


def django_tasks() -> None:
    """Import the module ``tasks`` of each of Django's applications, where this process uses it."""
    if _django_settings() is None:
        return
    from django.utils.module_loading import autodiscover_modules

    autodiscover_modules("tasks")


def django_setup(settings_module: str | None = None) -> None:
    """Initialise Django in a spooler or mule, before the first task runs.

    *settings_module* is the dotted path of the settings; by default the environment names it.
    """
    import django
    from django.apps import apps
    from django.conf import ENVIRONMENT_VARIABLE

    if settings_module:
        os.environ[ENVIRONMENT_VARIABLE] = settings_module
    # Not settings.configured, as 0.7 asked: reading one setting makes it true, without the apps.
    if not apps.ready:
        django.setup()
