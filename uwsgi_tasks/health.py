"""An answer for probes: is this worker well?"""

from __future__ import annotations

import json
import logging
import os
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial

from uwsgi_tasks.errors import ConfigurationError

log = logging.getLogger(__name__)

_PATIENCE = 5.0
"""Seconds that one who asks may take for it."""


def answer(
    address: tuple[str, int], is_healthy: Callable[[], bool], facts: Mapping[str, object]
) -> None:
    """Answer HTTP at *address*, host and port, until the process ends: 200 if all is well, or 503.

    *facts* are shown, as JSON. Raises ConfigurationError if the address cannot be had.
    """
    host, port = address
    try:
        server = _Server(address, _handler(is_healthy, facts))
    except OSError as error:
        raise ConfigurationError(f"--health {host}:{port}: {error.strerror or error}") from error
    # A process that outlives us must not keep the address from who takes our place.
    os.register_at_fork(after_in_child=server.socket.close)
    # It looks after nothing else, and need not look up.
    serve = partial(server.serve_forever, poll_interval=3600)
    threading.Thread(target=serve, name="uwsgi_tasks probes", daemon=True).start()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    def handle_error(self, *_args: object) -> None:
        """Say little: most have left before the answer."""
        log.debug("a probe was not answered: %s", sys.exception())


def _handler(
    is_healthy: Callable[[], bool], facts: Mapping[str, object]
) -> type[socketserver.BaseRequestHandler]:
    # A megabyte, which most workers need not pay for.
    from http.server import BaseHTTPRequestHandler  # noqa: PLC0415

    class Handler(BaseHTTPRequestHandler):
        timeout = _PATIENCE

        def do_GET(self) -> None:
            is_well = is_healthy()
            said = json.dumps({"healthy": is_well, **facts}).encode()
            self.send_response(200 if is_well else 503)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(said)

        do_HEAD = do_GET  # noqa: N815  as above

        def log_message(self, *_args: object) -> None:
            """Say nothing: probes come each few seconds."""

    return Handler
