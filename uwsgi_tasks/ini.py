"""A uwsgi.ini as uWSGI reads it."""

from __future__ import annotations

import grp
import os
import pwd
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from uwsgi_tasks.errors import ConfigurationError

_PLACEHOLDER = re.compile(r"(?P<kind>[%$])\((?P<name>[^()]*)\)")
_MAGIC = re.compile(r"%([^(])", re.DOTALL)
_SETS = {"set", "set-ph", "set-placeholder"}
_INCLUDES = {"ini", "include", "inherit"}
_FALSE = {"false", "no", "off", "0"}
_DEPTH = 10
"""Files that may include each other, and placeholders that may name each other."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One line of the file, its placeholders resolved; those that stand for nothing remain."""

    name: str
    value: str
    """Empty where the line has no value, which means true."""
    file: Path
    line: int


@dataclass(frozen=True, kw_only=True)
class Ini:
    """What one file, and those that it includes, say; in their order.

    The lines of a condition (``if-env = ...``) count as if it held, and those of a ``for`` once.
    """

    path: Path
    options: tuple[Option, ...]

    def get(self, name: str) -> list[str]:
        """Return every value of an option; none if it is not there."""
        return [option.value for option in self.options if option.name == name]

    def has(self, name: str) -> bool:
        """Is there a line with this option, and is it not switched off?"""
        values = self.get(name)
        return bool(values) and values[-1].lower() not in _FALSE

    def paths(self, name: str) -> list[Path]:
        """Return every value of an option as a path.

        uWSGI goes by the directory that it is started in. We do not know that one: if a relative
        path does not lead anywhere from here, it is taken to start where the file is.
        """
        return [self._path(value) for value in self.get(name)]

    def _path(self, value: str) -> Path:
        here = Path(value).absolute()
        return here if here.exists() else self.path.parent / value


def read(path: str | Path, environ: Mapping[str, str] = os.environ) -> Ini:
    """Return what a uwsgi.ini says; ``FILE:SECTION`` is another section than ``[uwsgi]``.

    Raises ConfigurationError if it cannot be read, or has no such section.
    """
    raw = list(_lines(str(path), _DEPTH))
    known: dict[str, str] = {}
    for option in raw:
        name, value = option.name, option.value
        if name in _SETS:
            name, _, value = value.partition("=")
        # The first value stands for %(name), also in lines above it.
        known.setdefault(name.strip(), value.strip())
    options = tuple(
        Option(
            name=option.name,
            value=_resolve(option.value, known, environ, _DEPTH),
            file=option.file,
            line=option.line,
        )
        for option in raw
    )
    return Ini(path=_split(str(path))[0], options=options)


def _split(path: str) -> tuple[Path, str]:
    file, colon, section = path.rpartition(":")
    if colon and not Path(path).exists():
        return Path(file).absolute(), section
    return Path(path).absolute(), "uwsgi"


def _lines(path: str, depth: int) -> Iterator[Option]:
    """Yield the lines of a section and of what it includes, their magic variables replaced."""
    file, wanted = _split(path)
    if file.suffix not in {".ini", ""}:
        raise ConfigurationError(f"{file} is not read: only the ini format is known here")
    try:
        text = file.read_text(errors="surrogateescape")
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read ({error.strerror})") from error
    magic = _magic(path, file, wanted)
    section, found = "", False
    for number, line in enumerate(text.split("\n"), 1):
        content = line.strip()
        if content.startswith("["):
            section = content[1:].partition("]")[0]
            found = found or section == wanted
        elif section == wanted and content and content[0] not in ";#":
            # No comment may follow a value, and no line goes on in the next: so does uWSGI read it.
            name, _, value = content.partition("=")
            value = _MAGIC.sub(lambda match: magic(match[1]), value.strip())
            yield Option(name=name.strip(), value=value, file=file, line=number)
            if name.strip() in _INCLUDES and depth:
                yield from _lines(_included(value, file), depth - 1)
    if not found:
        raise ConfigurationError(f"{file} has no section [{wanted}]")


def _included(value: str, file: Path) -> str:
    """Return a path that uWSGI would look for from its directory, which we do not know."""
    return value if _split(value)[0].exists() else str(file.parent / value)


def _magic(given: str, file: Path, section: str) -> Callable[[str], str]:
    """Return what replaces %d and its like in *file*; what it does not know vanishes."""
    parts = file.parent.parts[1:]
    values = {
        "%": "%",
        "c": file.parent.name,
        "d": f"{file.parent}/".replace("//", "/"),
        "e": file.suffix.removeprefix("."),
        "g": str(os.getegid()),
        "h": os.uname().nodename,
        "n": file.stem,
        "o": given,
        "p": str(file),
        "s": file.name,
        "u": str(os.geteuid()),
        "G": _name(grp.getgrgid, os.getegid()),
        "U": _name(pwd.getpwuid, os.geteuid()),
        "v": str(Path.cwd()),
        "x": "" if section == "uwsgi" else section,
        **{str(number): part for number, part in enumerate(parts[:10])},
    }
    return lambda letter: values.get(letter, "")


def _name(look_up: Callable[[int], Sequence[object]], number: int) -> str:
    try:
        return str(look_up(number)[0])
    except KeyError:
        return ""


def _resolve(value: str, known: Mapping[str, str], environ: Mapping[str, str], depth: int) -> str:
    """Replace %(name) and $(NAME); what is unknown stays, as it does in uWSGI."""

    def found(match: re.Match[str]) -> str:
        source = known if match["kind"] == "%" else environ
        text = source.get(match["name"])
        if text is None or not depth:
            return match[0]
        return _resolve(text, known, environ, depth - 1)

    return _PLACEHOLDER.sub(found, value)
