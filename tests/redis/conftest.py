"""Servers of Redis, for those who want a real one."""

from tests.servers import (  # noqa: F401  fixtures
    redis_62,
    redis_cluster,
    redis_sentinel,
    redis_server,
    redis_tls,
)
