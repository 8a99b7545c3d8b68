"""The page about threads does what it says."""

import signal
from pathlib import Path

import pytest

import uwsgi_tasks
from tests.test_docs import ROOT, module_of
from uwsgi_tasks import App
from uwsgi_tasks.server import Server

PAGE = Path(ROOT) / "docs" / "threads.md"


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Return what the page defines, with an app of its own."""
    app = App(Server(None), store="memory://", dead_dir=str(tmp_path), thread_grace=0)
    monkeypatch.setattr(uwsgi_tasks, "default_app", app)
    monkeypatch.setattr(uwsgi_tasks, "task", app.task)
    found = {"__name__": "page_threads"}
    exec(compile(module_of(PAGE), str(PAGE), "exec"), found)
    yield found
    app._thread.stop()


def test_a_job_is_submitted_and_its_result_comes_back(page):
    assert page["submit"]() == "notified 1"


def test_jobs_are_delayed_given_priorities_and_mapped(page):
    values = [handle.result(timeout=30) for handle in page["submit_more"]()]
    assert values == [f"notified {number}" for number in (2, 3, 4, 5, 6)]


def test_the_page_sends_auto_to_threads(page):
    assert page["default_app"].settings.fallback == "thread"


def test_a_task_that_tells_its_progress_runs_to_its_end(page):
    assert page["import_rows"](["a", "b"]).result(timeout=30) == 2


def test_a_coroutine_runs_to_its_end(page):
    assert page["fetch"]("https://example.org/").result(timeout=30) == "https://example.org/"


def test_what_is_left_is_requeued(page):
    app = page["default_app"]
    send = app.task(executor="thread", name="send")(lambda: 1 / 0)
    send().wait(30)
    before = app.dead.list()
    page["requeue_what_is_left"]()
    assert [letter.task for letter in before] == ["send"]


def test_a_signal_can_end_a_script_in_good_order(page):
    before = signal.getsignal(signal.SIGTERM)
    try:
        page["main"]()
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
