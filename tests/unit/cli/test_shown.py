"""How values look."""

import json
import math

import pytest

from uwsgi_tasks.cli import shown


class Rude:
    def __repr__(self):
        raise ValueError("no")


def test_a_time_is_iso_8601_in_utc():
    assert shown.stamp(1700000000.25) == "2023-11-14T22:13:20.250Z"
    assert shown.stamp(None) is None
    assert shown.stamp(1e300) == "1e+300"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0s"), (0.9, "0s"), (59, "59s"), (61, "1m01s"), (7500, "2h05m"), (180000, "2d02h")],
)
def test_a_length_of_time_has_its_two_largest_units(seconds, text):
    assert shown.span(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.00123, "1.23 ms"), (0.5, "500 ms"), (2.345, "2.35 s"), (90, "1m30s")]
)
def test_a_run_took_three_digits(seconds, text):
    assert shown.took(seconds) == text


def test_progress_is_what_was_said_of_it():
    assert shown.progress(None, 10) == ""
    assert shown.progress(3, 10) == "3/10"
    assert shown.progress(2.5, None) == "2.5"


def test_a_sparkline_has_a_bar_for_each_value_and_a_blank_for_none():
    assert shown.sparkline([0, 1, 4, 8]) == " ▁▄█"
    assert shown.sparkline([0, 0]) == "  "
    assert shown.sparkline([]) == ""


def test_nothing_moves_the_cursor():
    assert shown.clean("a\x1b[2Jb\rc\td\ne\udcff") == "a\\x1b[2Jb\\rc\td\ne\\udcff"


def test_what_json_lacks_is_shown_by_its_repr():
    value = {"a": (1, {2}), "b": math.inf, "c": {1: 2}, "d": None, "e": [True, 1.5, "x"]}

    assert shown.as_json(value) == {
        "a": [1, "{2}"],
        "b": "inf",
        "c": "{1: 2}",
        "d": None,
        "e": [True, 1.5, "x"],
    }


def test_what_contains_itself_has_an_end():
    value = []
    value.append(value)

    assert "[...]" in shown.document(value)
    assert shown.value(value) == "[[...]]"


def test_what_has_no_repr_says_so():
    assert shown.as_json(Rude()) == "<Rude, whose repr failed: ValueError: no>"


def test_a_document_can_be_written_anywhere():
    assert json.loads(shown.document({"ü": "\udcff"})) == {"ü": "\udcff"}
    assert shown.document({"ü": 1}).isascii()


def test_a_value_is_json_if_json_has_it():
    assert shown.value({"a": ["ü", None]}) == '{"a": ["ü", null]}'
    assert shown.value({1, 2}) == "{1, 2}"
    assert shown.value(math.nan) == "nan"
