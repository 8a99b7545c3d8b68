"""Pickles to look at."""

import os
import pickle
import sys
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from types import ModuleType, SimpleNamespace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwsgi_tasks.standins import look

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.binary() | st.binary().map(bytearray),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)  # fmt: skip


class Colour(Enum):
    RED = 1


class Order:
    """As users have them."""

    def __init__(self, number):
        self.number = number

    def ship(self, days):
        return days


class Keyed(dict):
    pass


class Listed(list):
    pass


class Named:
    def __new__(cls, *, name):
        return super().__new__(cls)

    def __getnewargs_ex__(self):
        return (), {"name": "x"}


def looked_at(value):
    return look(pickle.dumps(value, 5))


@given(PLAIN)
def test_what_is_plain_is_itself(value):
    assert looked_at(value) == value


@pytest.mark.parametrize("value", [{1, 2}, frozenset("ab"), (), [[]], 2**100])
def test_collections_and_numbers_are_themselves(value):
    assert looked_at(value) == value


@pytest.mark.parametrize(
    "value",
    [
        datetime(2030, 1, 1, tzinfo=UTC),
        datetime(2030, 1, 1, tzinfo=timezone(timedelta(hours=2))),
        date(2030, 1, 1),
        time(12),
        timedelta(days=1),
        Decimal("1.10"),
        UUID(int=5),
    ],
)
def test_what_only_holds_a_value_is_itself(value):
    assert looked_at(value) == value


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Order(7), "Order({'number': 7})"),
        (Colour.RED, "Colour(1)"),
        (Order, "Order"),
        (Keyed(a=1), "Keyed(('a', 1))"),
        (Listed([1, 2]), "Listed(1, 2)"),
        (Listed([1]), "Listed(1)"),
        (Named(name="x"), "Named(('name', 'x'))"),
        (looked_at, "looked_at"),
    ],
)
def test_an_object_shows_what_it_would_have_been_made_of(value, shown):
    assert repr(looked_at(value)) == f"<{__name__}.{shown}>"


def test_objects_are_shown_inside_of_others():
    shown = repr(looked_at({"order": [Order(Colour.RED)]}))
    assert shown == (f"{{'order': [<{__name__}.Order({{'number': <{__name__}.Colour(1)>}})>]}}")


def test_objects_that_know_each_other_are_shown_to_an_end():
    parent, child = Order(1), Order(2)
    parent.child, child.parent = child, parent
    assert repr(looked_at(parent)).count("<...>") == 1


def test_an_object_may_be_a_key():
    (key,) = looked_at({Colour.RED: 1})
    assert repr(key) == f"<{__name__}.Colour(1)>"


def test_what_an_object_names_is_not_imported(monkeypatch):
    module = ModuleType("shop_of_nobody")
    module.Order = type("Order", (), {"__module__": "shop_of_nobody", "__qualname__": "Order"})
    monkeypatch.setitem(sys.modules, "shop_of_nobody", module)
    content = pickle.dumps(module.Order(), 5)
    monkeypatch.delitem(sys.modules, "shop_of_nobody")
    assert repr(look(content)) == "<shop_of_nobody.Order()>"


def test_a_method_that_would_be_called_shows_of_what():
    class Maker:
        def __reduce__(self):
            return Order("x").ship, (7,)

    assert repr(looked_at(Maker())) == (
        f"<builtins.getattr(<{__name__}.Order({{'number': 'x'}})>, 'ship')(7)>"
    )


def test_an_item_may_come_alone():
    # As pickle's own code in Python gives them; that in C gives many at a time.
    found = looked_at(Listed())
    found.append(3)
    assert repr(found) == f"<{__name__}.Listed(3)>"


class Deadly:
    def __reduce__(self):
        return os._exit, (9,)


def test_what_an_object_names_is_not_called():
    assert repr(looked_at(Deadly())) == "<posix._exit(9)>"


@pytest.mark.parametrize(
    ("module", "name"),
    [("builtins", "eval"), ("os", "system"), ("datetime", "sys.exit"), ("decimal", "getcontext")],
)
def test_nothing_that_does_something_is_reached(module, name):
    content = b"\x80\x04" + b"".join(
        b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)
    ) + b"\x93)R."  # fmt: skip
    assert repr(look(content)) == f"<{module}.{name}()>"


@pytest.mark.parametrize("content", [b"", b"x", pickle.dumps([1], 5)[:-1], b"\x80\x05Q."])
def test_a_broken_pickle_raises(content):
    with pytest.raises((EOFError, pickle.UnpicklingError)):
        look(content)


def test_a_namespace_shows_what_is_in_it():
    assert "{'a': 1}" in repr(looked_at(SimpleNamespace(a=1)))
