"""One open connection to Redis: commands go out, and replies come in."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from collections.abc import Sequence
from typing import Any

import hiredis

from uwsgi_tasks.redis.script import Reply, Word

_MUCH = 65536
"""Bytes that are read at once, at most."""


class Refused(Exception):
    """Redis does not do what it was told; its words."""


class UnknownScript(Refused):
    """Redis knows no script of this name."""


FAILURES = (Refused, OSError)
"""What a line raises."""


class Line:
    """The conversation over a *connection* of redis-py, which has opened it, and closes it.

    redis-py's own methods do more for a command than each job should pay for. What sends or reads
    raises OSError if it is broken or too slow; `ask` and `read` raise Refused.
    """

    __slots__ = ("_connection", "_is_encrypted", "_reader", "_socket", "pid", "used_at")

    def __init__(self, connection: Any) -> None:
        self._connection, self._socket = connection, connection._sock  # noqa: SLF001  no other way
        self._is_encrypted = hasattr(self._socket, "pending")
        self.pid = os.getpid()
        """The process that has opened it, and may use it."""
        self.used_at = 0.0
        """When it was taken last, as its owner says."""
        self._reader = hiredis.Reader(protocolError=ConnectionError, replyError=_refusal)

    def fileno(self) -> int:
        """Return the number of its file."""
        number: int = self._socket.fileno()
        return number

    def ask(self, words: Sequence[Word]) -> Reply:
        """Send one command; return its reply, texts as bytes."""
        self._socket.sendall(_packed(words))
        return self.read()

    def ask_within(self, seconds: float, words: Sequence[Word]) -> Reply:
        """`ask`, and wait no longer than that for what the network does."""
        timeout = self._socket.gettimeout()
        self._socket.settimeout(seconds)
        try:
            return self.ask(words)
        finally:
            self._socket.settimeout(timeout)

    def send(self, commands: Sequence[Sequence[Word]]) -> None:
        """Send commands, one behind the other."""
        self._socket.sendall(b"".join(map(_packed, commands)))

    def read(self) -> Reply:
        """Wait for the next reply, and return it."""
        reader = self._reader
        # Its word for "not yet": no reply is that.
        while (reply := reader.gets()) is False:
            self._feed()
        if isinstance(reply, Refused):
            raise reply
        return reply

    def _feed(self) -> None:
        data = self._socket.recv(_MUCH)
        if not data:
            raise ConnectionError("the server has closed the connection")
        self._reader.feed(data)

    def arrives(self) -> bool:
        """Has a part of a reply arrived, now that there is something to read?

        Where all is encrypted that may be no more than a message between the two ends.
        """
        if not self._is_encrypted:
            self._feed()
            return True
        import ssl  # noqa: PLC0415  for them alone

        timeout = self._socket.gettimeout()
        self._socket.settimeout(0)
        try:
            self._feed()
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        finally:
            self._socket.settimeout(timeout)
        return True

    def is_broken(self) -> bool:
        """Is something here, though nothing is expected? It is its end, or that of all sense."""
        try:
            return self.arrives() if self._is_encrypted else self.comes(0.0)
        except (OSError, ValueError):
            return True

    def comes(self, seconds: float) -> bool:
        """Is there something to read within *seconds*, or the end of the connection?"""
        if self._is_encrypted and self._socket.pending():
            return True
        look = select.poll()
        look.register(self._socket, select.POLLIN)
        return bool(look.poll(seconds * 1000))

    def abort(self) -> None:
        """Close the connection; what is under way in either direction is thrown away."""
        with contextlib.suppress(OSError):
            # Else the kernel would go on trying to bring it there, for minutes.
            linger = struct.pack("ii", 1, 0)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        # Not as redis-py does: a shutdown would come before.
        self._socket.close()
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()


def _packed(words: Sequence[Word]) -> bytes:
    # Any number of them, which its type does not say.
    given: Any = tuple(words)
    packed: bytes = hiredis.pack_command(given)
    return packed


def _refusal(text: str) -> Refused:
    return UnknownScript(text) if text.startswith("NOSCRIPT") else Refused(text)
