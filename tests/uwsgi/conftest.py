"""The `serve` fixture: a real uWSGI for each test, or for each module."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.uwsgi.serving import Server, program

Serve = Callable[..., Server]
Ending = dict[Server, "Future[int | None]"]


@pytest.fixture(scope="session")
def ending() -> Iterator[Callable[[Server], None]]:
    """End servers beside the tests that follow: a master takes a second for it, idly."""
    codes: Ending = {}
    with ThreadPoolExecutor(max_workers=8) as pool:
        yield lambda server: codes.update({server: pool.submit(server.stop)})
    stuck = [str(server.folder) for server, code in codes.items() if code.result() is None]
    assert not stuck, f"uWSGI did not stop by itself in {stuck}"


def _serve(factory: pytest.TempPathFactory, end: Callable[[Server], None]) -> Iterator[Serve]:
    if not program():
        reason = "needs uWSGI: pip install pyuwsgi"
        # In CI a missing server is a mistake of the set-up, not a reason to test less.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    servers: list[Server] = []

    def serve(source: str = "", **options: Any) -> Server:
        server = Server(factory.mktemp("served"), source, **options)
        servers.append(server)
        return server.start()

    try:
        yield serve
    finally:
        for server in servers:
            end(server)


@pytest.fixture
def serve(
    tmp_path_factory: pytest.TempPathFactory, ending: Callable[[Server], None]
) -> Iterator[Serve]:
    """Start a uWSGI that serves this source; see `Server` for the options."""
    yield from _serve(tmp_path_factory, ending)


@pytest.fixture(scope="module")
def serve_module(
    tmp_path_factory: pytest.TempPathFactory, ending: Callable[[Server], None]
) -> Iterator[Serve]:
    """Do the same once for a whole module of tests that do not disturb each other."""
    yield from _serve(tmp_path_factory, ending)
