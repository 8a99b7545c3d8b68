"""Steps in Redis: scripts, and what those who have them run need of a client."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

Word = str | bytes | int | float
Reply = Any


def prefix(namespace: str) -> str:
    """Return what all keys of a namespace begin with, behind the brace of some."""
    return f"uwsgi_tasks:{namespace}" if namespace else "uwsgi_tasks"


class Script:
    """A Lua script, one atomic step; its text opens with the keys that it touches."""

    def __init__(self, text: str = "", *, file: str = "") -> None:
        self._text, self._file = text, file

    @cached_property
    def text(self) -> str:
        """What it says."""
        return self._text or (Path(__file__).parent / self._file).read_text()

    @cached_property
    def sha(self) -> str:
        """What Redis calls it."""
        from hashlib import sha1  # noqa: PLC0415  it loads OpenSSL, which not all need who import us

        return sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    @classmethod
    def load(cls, name: str) -> Script:
        """Return the script in the file *name* beside this module, which is read when it runs."""
        return cls(file=name)


class Waiting(Protocol):
    """Waits until something is pushed to one of some lists."""

    def wait(self, seconds: float) -> bool:
        """Wait; True if something was pushed. Raises RedisAway."""

    def wake(self) -> None:
        """End the wait, or the next one, at once."""

    def close(self) -> None:
        """Let go of all that it has."""


class Redis(Protocol):
    """A Redis; all raise RedisAway, and may be called again."""

    def call(self, *words: Word) -> Reply:
        """Send one command, whose second word is its key; return the reply, texts as bytes."""

    def calls(self, commands: Sequence[Sequence[Word]]) -> list[Reply]:
        """Send many commands at once; return their replies. They are no atomic step."""

    def run(self, script: Script, keys: Sequence[Word], args: Sequence[Word] = ()) -> Reply:
        """Run *script*: one atomic step. In a cluster all *keys* must be in one slot."""

    def waiter(self, keys: Sequence[str]) -> Waiting:
        """Return what waits until a list at one of *keys* has an entry, and takes that."""
