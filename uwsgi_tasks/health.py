"""An answer for probes: is this worker well?"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from uwsgi_tasks.errors import ConfigurationError


@contextlib.contextmanager
def answering(
    address: tuple[str, int] | None,
    is_healthy: Callable[[], bool],
    facts: Callable[[], dict[str, object]],
) -> Iterator[None]:
    """Answer HTTP at *address*, host and port, meanwhile: 200 if all is well, else 503.

    *facts* are shown, as JSON. Raises ConfigurationError if the address cannot be had.
    """
    if address is None:
        yield
        return

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_well = is_healthy()
            said = json.dumps({"healthy": is_well, **facts()}).encode()
            self.send_response(200 if is_well else 503)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        do_HEAD = do_GET  # noqa: N815  as above

        def log_message(self, *_args: object) -> None:
            """Say nothing: probes come each few seconds."""

    try:
        server = ThreadingHTTPServer(address, Handler)
    except OSError as error:
        host, port = address
        raise ConfigurationError(f"--health {host}:{port}: {error.strerror or error}") from error
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="uwsgi_tasks probes", daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
