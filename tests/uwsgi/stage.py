"""What a served application has at hand; copied beside it, never imported by the tests."""

import json
import os
import time
import traceback
from pathlib import Path

try:
    import uwsgi
except ImportError:  # a script outside the server imports the application too
    uwsgi = None

GENERATION = os.urandom(8).hex()  # differs after each reload


def where():
    """Return the name of this process: worker1, mule2, spooler, master, or outside."""
    if uwsgi is None:
        return "outside"
    if uwsgi.worker_id():
        return f"worker{uwsgi.worker_id()}"
    if uwsgi.mule_id():
        return f"mule{uwsgi.mule_id()}"
    return (
        "spooler" if hasattr(uwsgi, "i_am_the_spooler") and uwsgi.i_am_the_spooler() else "master"
    )


def record(event, **data):
    """Append one line to the file of events."""
    line = {"event": event, "where": where(), "pid": os.getpid(), "time": time.time(), **data}
    fd = os.open(os.environ["STAGE_EVENTS"], os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        os.write(fd, json.dumps(line, default=str).encode() + b"\n")
    finally:
        os.close(fd)


def gate(name):
    """Wait until the test opens this gate."""
    path = Path(os.environ["STAGE_GATES"], name)
    while not path.exists():
        time.sleep(0.005)


def application_for(namespace):
    """Make a WSGI application that runs the Python text of each request in *namespace*."""

    def run(source):
        try:
            code = compile(source, "<call>", "eval")
        except SyntaxError:
            exec(compile(source, "<call>", "exec"), namespace)
            return None
        return eval(code, namespace)

    def application(environ, start_response):
        source = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])).decode()
        try:
            answer = {"value": repr(run(source))}
        except BaseException as error:  # noqa: BLE001 (whatever it is, the test reads it)
            answer = {"error": type(error).__name__, "traceback": traceback.format_exc()}
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps({"generation": GENERATION, **answer}).encode()]

    return application
