"""Pickles to look at: nothing that they name is imported or called."""

from __future__ import annotations

import pickle
from io import BytesIO
from reprlib import recursive_repr
from typing import Any, Self

_HARMLESS = {
    ("datetime", "datetime"),
    ("datetime", "date"),
    ("datetime", "time"),
    ("datetime", "timedelta"),
    ("datetime", "timezone"),
    ("decimal", "Decimal"),
    ("uuid", "UUID"),
}
"""What is built, for it does nothing but hold a value."""


class _Named(type):
    """A class or function that was not imported: it shows its name."""

    path: str

    def __repr__(cls) -> str:
        return f"<{cls.path}>"


class StandIn(metaclass=_Named):
    """Shows what an object would have been made of."""

    path = ""
    parts: list[Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Take what its class would have been called with."""
        made = super().__new__(cls)
        made.parts = [*args, *kwargs.items()]
        return made

    def __call__(self, *args: Any, **kwargs: Any) -> StandIn:
        """Be called, where the object would have been a function, as a bound method is."""
        made: StandIn = _Named("StandIn", (StandIn,), {"path": repr(self)[1:-1]})(*args, **kwargs)
        return made

    def __setstate__(self, state: Any) -> None:
        self.parts.append(state)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.parts.append((key, value))

    def append(self, item: Any) -> None:
        """Take an item, where the object would have been a list."""
        self.parts.append(item)

    def extend(self, items: Any) -> None:
        """Take items, where the object would have been a list."""
        self.parts.extend(items)

    # Objects that know each other are common.
    @recursive_repr("<...>")
    def __repr__(self) -> str:
        return f"<{type(self).path}({', '.join(map(repr, self.parts))})>"


class _Looker(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _HARMLESS:
            return super().find_class(module, name)
        return _Named("StandIn", (StandIn,), {"path": f"{module}.{name}"})


def look(pickled: bytes) -> Any:
    """Return what is in *pickled*, with a `StandIn` for each object that is not plain.

    Raises whatever a broken pickle raises.
    """
    return _Looker(BytesIO(pickled)).load()
