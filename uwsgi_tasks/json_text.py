"""Values as JSON that come out as they went in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

PLAIN = frozenset({str, int, float, bool, type(None)})
"""What needs no look at what it holds."""
_EXACT = PLAIN | {list, tuple, dict}


def _quick_encoder() -> Callable[[Any], str]:
    """Return what JSONEncoder.encode is but for what that makes anew each time: half the time."""
    try:
        encode = json.encoder.c_make_encoder(  # type: ignore[attr-defined]
            markers=None,
            default=None,
            encoder=json.encoder.encode_basestring,
            indent=None,
            key_separator=":",
            item_separator=",",
            sort_keys=False,
            skipkeys=False,
            allow_nan=False,
        )
    # Python promises none of it.
    except (AttributeError, TypeError):
        return json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
    return lambda value: "".join(encode(value, 0))


encode = _quick_encoder()
"""Return a value as JSON; it is one that `unfit` has nothing against, so ask that first.

Raises ValueError for a number that JSON has no word for, or with too many digits.
"""


def escaped(text: str) -> str:
    """Return JSON as ASCII: half of a pair of surrogates has no place in UTF-8."""
    return json.dumps(json.loads(text), separators=(",", ":"))


def in_utf8(text: str) -> bytes:
    """Return JSON as bytes, whatever characters are in it."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return escaped(text).encode()


def unfit(value: Any, *, exact: bool) -> str:
    """Return what *value* holds that JSON would change or refuse; a tuple becomes a list.

    *exact*: nor is anything let through that comes out as another type, or NaN, or infinity.
    Raises RecursionError for what holds itself.
    """
    kind = type(value)
    if (exact and kind not in _EXACT) or not _is_json(value):
        return f"a {kind.__module__}.{kind.__qualname__}"
    if exact and kind is float and (value != value or value in {float("inf"), float("-inf")}):  # noqa: PLR0124
        return f"{value}, which JSON has no word for"
    inner: Iterable[Any] = value if isinstance(value, (list, tuple)) else ()
    if isinstance(value, dict):
        for key in value:
            # JSON would make a text of it, without a word.
            if not isinstance(key, str) or (exact and type(key) is not str):
                return f"the key {key!r:.50}, which is no text"
        inner = value.values()
    for one in inner:
        if (exact and type(one) is float) or type(one) not in PLAIN:
            found = unfit(one, exact=exact)
            if found:
                return found
    return ""


def _is_json(value: Any) -> bool:
    """May JSON hold *value*, or what it is a kind of? But no named tuple."""
    return value is None or isinstance(value, (str, int, float, dict, list)) or type(value) is tuple
