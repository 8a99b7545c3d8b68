"""URLs of Redis: one server, one that Sentinels watch, or a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

from uwsgi_tasks.errors import ConfigurationError

_SINGLE = {"redis", "rediss", "unix", "valkey", "valkeys"}
_MANY = {"sentinel": 26379, "cluster": 6379}
"""The kinds of several servers, and where they listen by default."""
EXAMPLES = (
    "redis://host:6379/0, rediss:// with TLS, unix:///path?db=0, "
    "redis+sentinel://host1:26379,host2:26379/name/0 or redis+cluster://host1:6379,host2:6379"
)
"""URLs, as a user may write them."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """What a URL says."""

    kind: str
    """``single``, ``sentinel`` or ``cluster``."""
    url: str
    """Of one server: as redis-py reads it."""
    hosts: Sequence[tuple[str, int]] = ()
    name: str = ""
    """What the Sentinels call their master."""
    shown: str = ""
    """Without a password."""


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        is_cut = "@" in url and "@" not in parts.netloc and parts.scheme != "unix"
        if not is_cut and not parts.fragment and ("," in parts.netloc or parts.port != 0):
            return parts
    except ValueError:
        # Not with what it says: that may be a part of the password.
        pass
    raise ConfigurationError(
        "the URL of Redis cannot be read; a password has %23 for #, %2F for /, %3F for ?, and "
        f"%40 for @: {EXAMPLES}"
    )


def parse(url: str) -> Address:
    """Return what *url* says. Raises ConfigurationError."""
    parts = _split(url)
    scheme, _, kind = parts.scheme.partition("+")
    if kind == "" and scheme in _MANY:
        scheme, kind = "redis", scheme
    if scheme not in _SINGLE or not (kind == "" or kind in _MANY):
        raise ConfigurationError(
            f"no Redis is at a URL that begins with {parts.scheme}: {EXAMPLES}"
        )
    scheme = scheme.replace("valkey", "redis")
    account, at, places = parts.netloc.rpartition("@")
    shown = f"{parts.scheme}://{places}{parts.path}"
    if not kind:
        return Address(kind="single", url=f"{scheme}{url[len(parts.scheme) :]}", shown=shown)
    hosts = []
    for place in places.split(","):
        try:
            found = urlsplit(f"//{place}")
            hosts.append((found.hostname or "localhost", found.port or _MANY[kind]))
        except ValueError as error:
            raise ConfigurationError(f"{shown}: {place!r} is no host: {EXAMPLES}") from error
    path = [part for part in parts.path.split("/") if part]
    name = unquote(path.pop(0)) if kind == "sentinel" and path else ""
    if kind == "sentinel" and not name:
        raise ConfigurationError(f"{shown}: which master? {EXAMPLES}")
    if kind == "cluster" and path not in ([], ["0"]):
        raise ConfigurationError(f"{shown}: a cluster has database 0 alone")
    rest = "/".join(path)
    query = f"?{parts.query}" if parts.query else ""
    # Each of the servers, as redis-py would read it: account, database and options.
    one = f"{scheme}://{account}{at}localhost/{rest}{query}"
    return Address(kind=kind, url=one, hosts=hosts, name=name, shown=shown)
