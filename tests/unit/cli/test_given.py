"""What is typed on the command line."""

import time
from datetime import datetime, timedelta

import click
import pytest

from uwsgi_tasks.cli import given


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1.5h", 5400), ("15m", 900), ("7d", 604800), ("2 w", 1209600)],
)
def test_a_length_of_time_is_read(text, seconds):
    assert given.span(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "-1", "1y", "1h30m", "nan"])
def test_what_is_no_length_of_time_is_refused(text):
    with pytest.raises(click.BadParameter, match="15m"):
        given.span(text)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("1700000000.5", 1700000000.5),
        ("2023-11-14T22:13:20Z", 1700000000),
        ("2023-11-15 00:13:20+02:00", 1700000000),
    ],
)
def test_a_time_is_read(text, moment):
    assert given.moment(text) == moment


def test_a_time_without_an_offset_is_that_of_this_machine():
    local = datetime.fromtimestamp(1700000000)  # noqa: DTZ006  the point of the test

    assert given.moment(local.isoformat()) == 1700000000


@pytest.mark.parametrize("text", ["", "soon", "nan", "inf", "2023-13-01"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(click.BadParameter, match="2030-01-31T08:00"):
        given.moment(text)


def test_arguments_are_json_and_names_make_keywords():
    texts = ["42", '"a text"', "null", "sizes=[1, 2]", 'to="a=b"', '"a=b"']

    assert given.arguments(texts) == (
        (42, "a text", None, "a=b"),
        {"sizes": [1, 2], "to": "a=b"},
    )


def test_arguments_can_be_taken_as_texts():
    assert given.arguments(["42", "to=ada", "http://x/?a=b"], as_text=True) == (
        ("42", "http://x/?a=b"),
        {"to": "ada"},
    )


@pytest.mark.parametrize(
    ("text", "remedy"), [("word", "'\"word\"'"), ("to=ada", "'to=\"ada\"'"), ("{", "--text")]
)
def test_a_word_that_is_no_json_is_refused_with_the_remedy(text, remedy):
    with pytest.raises(click.UsageError) as caught:
        given.arguments([text])

    assert remedy in caught.value.message


def test_a_keyword_that_is_given_twice_is_refused():
    with pytest.raises(click.UsageError, match="twice"):
        given.arguments(["a=1", "a=2"])


def test_only_the_options_that_were_given_go_with_a_call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert given.call_options(None, None, None, None) == {}
    assert given.call_options(None, 60, 0, "spool") == {
        "at": timedelta(seconds=60),
        "priority": 0,
        "spooler": str(tmp_path / "spool"),
    }
    assert given.call_options(time.time(), None, None, None).keys() == {"at"}


def test_a_time_and_a_delay_exclude_each_other():
    with pytest.raises(click.UsageError, match="exclude"):
        given.call_options(1.0, 1.0, None, None)
