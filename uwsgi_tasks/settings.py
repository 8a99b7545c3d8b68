"""What the user may set, read once from Django, the environment or configure()."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from uwsgi_tasks.errors import ConfigurationError

_PREFIX = "UWSGI_TASKS_"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting, with its default."""

    executor: str = "auto"
    """What AUTO means: ``auto`` (spooler, else mule, else at once) or an executor's name."""
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

    def __post_init__(self) -> None:
        for name, least in (("crash_limit", 1), ("spooler_frequency", 1)):
            value = getattr(self, name)
            if name == "spooler_frequency" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigurationError(f"{name} must be a whole number from {least}: {value!r}")
        for name in ("renice", "accept_legacy"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigurationError(f"{name} must be true or false")
        for name in ("spooler_dir", "dead_dir"):
            value = getattr(self, name)
            if value is not None and not (
                isinstance(value, (str, Path)) and Path(value).is_absolute()
            ):
                raise ConfigurationError(f"{name} must be an absolute path, not {value!r}")


_NAMES = {field.name for field in fields(Settings)}


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
    return Settings(**values)


def from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings that stand in the environment as UWSGI_TASKS_SPOOLER_DIR and so on."""
    return {
        key.removeprefix(_PREFIX).lower(): _parsed(key.removeprefix(_PREFIX).lower(), value)
        for key, value in environ.items()
        if key.startswith(_PREFIX)
    }


def _parsed(name: str, value: str) -> Any:
    if name in {"renice", "accept_legacy"}:
        word = value.lower()
        if word not in {"1", "0", "true", "false", "yes", "no", "on", "off"}:
            raise ConfigurationError(f"{_PREFIX}{name.upper()} must be true or false: {value!r}")
        return word in {"1", "true", "yes", "on"}
    if name in {"crash_limit", "spooler_frequency"}:
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


def from_django() -> Mapping[str, Any]:
    """Return Django's UWSGI_TASKS, where this process uses Django."""
    if "DJANGO_SETTINGS_MODULE" not in os.environ and "django" not in sys.modules:
        return {}
    try:
        from django.conf import settings
    except ImportError:
        return {}
    if not settings.configured and "DJANGO_SETTINGS_MODULE" not in os.environ:
        return {}
    found = getattr(settings, "UWSGI_TASKS", {})
    if not isinstance(found, Mapping):
        raise ConfigurationError(f"UWSGI_TASKS must be a dictionary, not {found!r}")
    return found


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
