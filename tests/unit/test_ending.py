"""The end of a process, outside of uWSGI."""

import os
import sys

import pytest

from uwsgi_tasks import ending as module
from uwsgi_tasks.server import Server

NOBODY = Server(None)


def nothing(*_args):
    return None


@pytest.fixture
def ending(monkeypatch):
    """Return the end of a process that does not end."""
    monkeypatch.setattr(module.Ending, "start", nothing)
    monkeypatch.setattr(module.atexit, "register", nothing)
    monkeypatch.setattr(module, "_endings", {})
    made = module.ending_of_this_process()
    made._actor.start()
    yield made
    made._go.put(None)
    made._actor.join()


def test_outside_uwsgi_all_actions_are_kept_for_one_end(ending):
    NOBODY.at_exit(nothing)
    NOBODY.at_exit(nothing)
    assert (module._endings, len(ending._actions)) == ({os.getpid(): ending}, 2)


def test_an_end_that_cannot_be_prepared_is_tried_again_with_the_next_action(monkeypatch):
    def start(_self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(module.Ending, "start", start)
    monkeypatch.setattr(module, "_endings", {})
    with pytest.raises(RuntimeError):
        NOBODY.at_exit(nothing)
    assert module._endings == {}


def test_one_action_that_fails_does_not_keep_the_others_from_being_called(ending, caplog):
    called = []
    for action in (lambda: called.append(1), lambda: 1 / 0, sys.exit, lambda: called.append(3)):
        NOBODY.at_exit(action)
    ending._cut()
    assert called == [3, 1]
    assert "could not be ended as it should" in caplog.text


def test_an_action_is_called_once_however_often_the_end_comes(ending):
    called = []
    NOBODY.at_exit(lambda: called.append(1))
    ending._cut()
    ending._cut()
    assert called == [1]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_end_hurries_and_goes_on_to_its_actions(ending, interruption):
    called = []
    again = [interruption, interruption]

    def first():
        raise interruption

    def hurry():
        called.append("hurry")
        if again:
            raise again.pop()

    NOBODY.at_exit(lambda: called.append("action"), first=first, hurry=hurry)
    ending._begin()
    assert called == ["hurry", "hurry", "hurry", "action"]


def test_an_end_that_nobody_interrupts_leaves_the_actions_for_later(ending):
    called = []
    NOBODY.at_exit(lambda: called.append("action"), first=lambda: called.append("first"))
    ending._begin()
    assert called == ["first"]


def test_no_action_is_taken_when_the_end_has_begun(ending):
    ending._begin()
    with pytest.raises(RuntimeError, match="begun to end"):
        NOBODY.at_exit(nothing)


def test_a_fork_does_not_call_the_actions_of_its_parent(ending):
    called = []
    NOBODY.at_exit(lambda: called.append(1), first=lambda: called.append(2))
    ending.pid += 1
    ending._begin()
    ending._cut()
    assert called == []
