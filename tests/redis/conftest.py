"""Servers of Redis, for those who want a real one."""

import pytest

from tests.servers import (  # noqa: F401  fixtures
    redis_62,
    redis_cluster,
    redis_sentinel,
    redis_server,
    redis_tls,
)


@pytest.fixture(params=["redis_server", "redis_62", "redis_cluster"])
def server(request):
    """Each server in which what we do may come about in another way."""
    server = request.getfixturevalue(request.param)
    server.flush()
    yield server
    server.flush()


@pytest.fixture
def one_server(redis_server):  # noqa: F811
    """A server alone: of what is the same on all."""
    redis_server.flush()
    yield redis_server
    redis_server.flush()
