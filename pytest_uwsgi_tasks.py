"""The pytest plugin: its fixtures lend the context managers of `uwsgi_tasks.testing` to a test.

Whoever has us installed has it loaded in each run of pytest, so it imports nothing of ours before
a test asks for it. For that, too, it stands outside the package: importing a module imports the
packages above it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from uwsgi_tasks import App
    from uwsgi_tasks.testing import QueuedTasks, SubmittedTasks


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add our setting."""
    parser.addini(
        "uwsgi_tasks_strict",
        "fail a test that leaves something in queued_tasks",
        type="bool",
        default=False,
    )


def pytest_configure(config: pytest.Config) -> None:
    """Add our mark."""
    config.addinivalue_line(
        "markers", "uwsgi_tasks_app(app): the App whose tasks the fixtures of uwsgi_tasks are for"
    )


@pytest.fixture
def uwsgi_tasks_app(request: pytest.FixtureRequest) -> App:
    """Return the app of this test: that of the mark, or the default one. Override it for yours."""
    from uwsgi_tasks import default_app

    mark = request.node.get_closest_marker("uwsgi_tasks_app")
    return mark.args[0] if mark else default_app


@pytest.fixture
def captured_tasks(uwsgi_tasks_app: App) -> Iterator[SubmittedTasks]:
    """Keep what is submitted from running, and show it to the test."""
    from uwsgi_tasks.testing import capture_tasks

    with capture_tasks(uwsgi_tasks_app) as captured:
        yield captured


@pytest.fixture
def eager_tasks(uwsgi_tasks_app: App) -> Iterator[SubmittedTasks]:
    """Run what is submitted within its call, which raises what the task raises."""
    from uwsgi_tasks.testing import eager_tasks

    with eager_tasks(uwsgi_tasks_app) as ran:
        yield ran


@pytest.fixture
def queued_tasks(uwsgi_tasks_app: App, pytestconfig: pytest.Config) -> Iterator[QueuedTasks]:
    """Queue what is submitted, and run it when the test says so."""
    from uwsgi_tasks.testing import queue_tasks

    strict = pytestconfig.getini("uwsgi_tasks_strict")
    with queue_tasks(uwsgi_tasks_app, strict=strict) as queued:
        yield queued
