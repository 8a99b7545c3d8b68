"""What the page about logging promises: its own blocks, against Sentry's and OpenTelemetry's."""

import importlib
import json
import logging
import logging.config
import re
from pathlib import Path

import pytest
import sentry_sdk
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from sentry_sdk.integrations import logging as sentry_logging
from sentry_sdk.integrations.dedupe import DedupeIntegration
from sentry_sdk.transport import Transport

import uwsgi_tasks
from uwsgi_tasks import App, Retry, RetryTaskException, TaskCancelled
from uwsgi_tasks.testing import queue_tasks

PAGE = (Path(__file__).parents[2] / "docs" / "logging.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SECRET = "the password of the call"  # noqa: S105  no secret of ours


def block_with(words):
    (found,) = [block for block in BLOCKS if words in block]
    return found


@pytest.fixture
def app(tmp_path, monkeypatch):
    """An application of its own; what a block of the page declares goes to it."""
    app = App(dead_dir=str(tmp_path / "dead"))
    for name in ("middleware", "on_submit"):
        monkeypatch.setattr(uwsgi_tasks, name, getattr(app, name))
    return app


@pytest.fixture
def queued(app):
    with queue_tasks(app) as queued:
        yield queued


@pytest.fixture
def send(app, queued):
    """A task that succeeds, but raises what it is given first, one in each attempt."""
    todo = []

    @app.task(name="shop.send", retry=Retry(attempts=3, delay=1, on=OSError))
    def send(_password=SECRET):
        if todo:
            raise todo.pop(0)

    send_after = send.using()

    def submit(*errors):
        todo[:] = errors
        return send_after(SECRET)

    return submit


# --- the blocks themselves


@pytest.mark.parametrize("words", ["def report_to_sentry", "def trace_the_attempt"])
def test_an_example_has_less_than_thirty_lines(words):
    assert len(block_with(words).splitlines()) < 30


def test_the_loggers_of_the_page_exist():
    names = re.findall(r"^\| `(uwsgi_tasks\.[\w.]+)` \|", PAGE, re.MULTILINE)
    assert len(names) > 5
    for name in names:
        assert importlib.import_module(name).log.name == name


# --- our own lines, and those of the user


@pytest.fixture
def log_module():
    """What the blocks without third parties declare; no configuration outlives the test."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    found = {}
    try:
        for words in ("class CurrentJob", "logging.config.dictConfig", "class JsonLines"):
            exec(block_with(words), found)
        yield found
    finally:
        root.handlers[:], root.level = before
        for name in ("uwsgi_tasks", "uwsgi_tasks.attempts"):
            logging.getLogger(name).setLevel(logging.NOTSET)


def failing(app):
    @app.task(name="shop.send")
    def send(_password):
        logging.getLogger("shop").warning("by\nthe task")
        raise OSError("no such host:\nweb1")

    return send


def test_with_the_first_configuration_a_line_of_the_task_has_its_id(
    log_module, app, queued, capsys
):
    # Its handler found the standard error of the moment when the block ran.
    exec(block_with("logging.config.dictConfig"), log_module)
    handle = failing(app)(SECRET)
    queued.run(check=False)
    logging.getLogger("shop").warning("outside")

    lines = capsys.readouterr().err.splitlines()
    assert any(f"WARNING  [{handle.id}] shop: by" in line for line in lines)
    assert any(
        f"ERROR    [{handle.id}] uwsgi_tasks.attempts: shop.send[{handle.id}] failed in attempt 1: "
        "OSError: no such host: web1; it is kept in the store" in line
        for line in lines
    )
    assert any("WARNING  [-] shop: outside" in line for line in lines)


def test_with_json_each_event_is_one_line_with_its_fields(log_module, app, queued, capsys):
    logging.config.dictConfig(log_module["LOGGING"])
    handle = failing(app)(SECRET)
    queued.run(check=False)

    text = capsys.readouterr().err
    theirs, ours = (json.loads(line) for line in text.splitlines())
    fields = {
        "task_name": "shop.send",
        "job_id": handle.id,
        "attempt": 1,
        "executor": "queued",
    }
    assert theirs == {**theirs, **fields, "message": "by\nthe task", "logger": "shop"}
    assert ours == {**ours, **fields, "level": "ERROR", "logger": "uwsgi_tasks.attempts"}
    assert ours["traceback"].startswith("Traceback")
    assert "in send" in ours["traceback"]
    assert SECRET not in text


def test_the_line_of_json_on_the_page_has_the_fields_of_the_formatter(log_module):
    (shown,) = re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    record = logging.getLogger("uwsgi_tasks.attempts").makeRecord(
        "uwsgi_tasks.attempts",
        logging.ERROR,
        "",
        0,
        "said",
        (),
        (OSError, OSError(), None),
        extra={"task_name": "", "job_id": "", "attempt": 3, "executor": ""},
    )
    made = log_module["JsonLines"]().format(record)
    assert list(json.loads(made)) == list(json.loads(shown))


# --- Sentry


class Collected(Transport):
    """Sends nothing, and shows what was to be sent."""

    def __init__(self):
        super().__init__()
        self.envelopes = []
        self.flushed = []
        """How many envelopes there were at each flush."""

    def capture_envelope(self, envelope):
        self.envelopes.append(envelope)

    def flush(self, timeout, callback=None):
        self.flushed.append(len(self.envelopes))

    def of(self, kind):
        return [
            item.payload.json
            for envelope in self.envelopes
            for item in envelope.items
            if item.type == kind
        ]

    @property
    def events(self):
        return self.of("event")

    @property
    def attempts(self):
        return [one for one in self.of("transaction") if one["transaction"] == "shop.send"]


@pytest.fixture
def sent(monkeypatch):
    """Sentry, as the page sets it up, but for where it sends to and how much it patches."""
    sent, init = Collected(), sentry_sdk.init

    def init_here(**given):
        ours = {
            "dsn": "https://key@sentry.invalid/1",
            "transport": sent,
            "traces_sample_rate": 1.0,
            # The two defaults that matter here; the others patch what other tests use.
            "default_integrations": False,
            "integrations": [sentry_logging.LoggingIntegration(), DedupeIntegration()],
        }
        init(**{**given, **ours})

    monkeypatch.setattr(sentry_sdk, "init", init_here)
    exec(block_with("sentry_sdk.init("), {})
    with sentry_sdk.isolation_scope():
        yield sent
    sentry_sdk.get_client().close()
    sentry_sdk.get_global_scope().set_client(None)


@pytest.fixture
def reported(app, sent):
    exec(block_with("def report_to_sentry"), {})
    return sent


def test_an_attempt_is_a_transaction_with_the_jobs_tags(reported, send, queued):
    handle = send()
    queued.run_all()

    (attempt,) = reported.attempts
    assert attempt["tags"] == {"task": "shop.send", "job_id": handle.id, "attempt": "1"}
    assert attempt["contexts"]["trace"]["op"] == "queue.process"
    assert attempt["transaction_info"] == {"source": "task"}
    assert reported.events == []


def test_the_trace_of_the_caller_goes_on_in_the_attempts(reported, send, queued):
    with sentry_sdk.start_transaction(name="a request") as request:
        send(OSError("no such host"))
    queued.run_all()

    (asked,) = [one for one in reported.of("transaction") if one["transaction"] == "a request"]
    (publish,) = asked["spans"]
    assert (publish["op"], publish["description"]) == ("queue.publish", "shop.send")
    traces = [one["contexts"]["trace"] for one in reported.attempts]
    assert [one["trace_id"] for one in traces] == [request.trace_id] * 2
    assert [one["parent_span_id"] for one in traces] == [publish["span_id"]] * 2
    (event,) = reported.events
    assert event["contexts"]["trace"]["trace_id"] == request.trace_id


def test_a_call_outside_of_a_trace_has_one_of_its_own(reported, send, queued):
    send()
    queued.run_all()

    assert len(reported.attempts) == 1


def test_an_attempt_that_fails_for_good_is_one_event_though_it_is_logged_too(
    reported, send, queued, caplog
):
    handle = send(KeyError("no such order"))
    queued.run_all(check=False)

    assert [one.levelname for one in caplog.records] == ["ERROR"]
    kind, _, trace = caplog.records[0].exc_info
    # The frames of the middleware are above the task.
    assert (kind, trace.tb_frame.f_code.co_name) == (KeyError, "send")
    (event,) = reported.events
    assert event["exception"]["values"][-1]["type"] == "KeyError"
    assert event["tags"] == {"task": "shop.send", "job_id": handle.id, "attempt": "1"}
    assert event["transaction"] == "shop.send"
    (attempt,) = reported.attempts
    assert attempt["contexts"]["trace"]["status"] == "internal_error"


def test_where_nothing_drops_the_second_event_the_logger_is_ignored(
    reported, send, queued, monkeypatch
):
    monkeypatch.setattr(sentry_logging, "_IGNORED_LOGGERS", set())
    monkeypatch.setattr(DedupeIntegration, "identifier", "nothing of this name is on")
    send(KeyError("no such order"))
    queued.run_all(check=False)
    assert len(reported.events) == 2

    sentry_logging.ignore_logger("uwsgi_tasks.attempts")
    send(KeyError("no such order"))
    queued.run_all(check=False)
    assert len(reported.events) == 3


def test_each_of_the_attempts_is_reported_with_its_number(reported, send, queued):
    send(OSError("1"), OSError("2"), OSError("3"))
    queued.run_all(check=False)

    assert [one["tags"]["attempt"] for one in reported.attempts] == ["1", "2", "3"]
    assert [
        (one["tags"]["attempt"], one["exception"]["values"][-1]["value"]) for one in reported.events
    ] == [("1", "1"), ("2", "2"), ("3", "3")]


@pytest.mark.parametrize("asked", [RetryTaskException(count=2), TaskCancelled()])
def test_what_a_task_asks_for_is_not_reported(reported, send, queued, asked):
    send(asked)
    queued.run_all(check=False)

    assert reported.events == []
    assert reported.attempts


def test_a_failure_is_sent_before_anything_else_happens(reported, send, queued):
    send(OSError("no such host"))
    queued.run_all()

    # The transaction and the event of the first attempt; the second did not fail.
    assert reported.flushed == [2]


def test_what_was_set_for_an_attempt_does_not_stay(reported, send, queued):
    send()
    queued.run_all()
    sentry_sdk.capture_message("outside")

    (event,) = reported.events
    assert "job_id" not in event.get("tags", {})


def test_the_arguments_of_a_call_are_not_sent(reported, send, queued):
    send(OSError("no such host"), KeyError("no such order"))
    queued.run_all(check=False)

    assert len(reported.events) == 2
    assert SECRET not in str([one.serialize() for one in reported.envelopes])


def test_without_the_middleware_a_job_that_fails_for_good_is_an_event(sent, send, queued):
    handle = send(OSError("1"), KeyError("no such order"))
    queued.run_all(check=False)

    (event,) = sent.events
    assert event["logger"] == "uwsgi_tasks.attempts"
    assert event["exception"]["values"][-1]["type"] == "KeyError"
    assert [frame["function"] for frame in event["exception"]["values"][-1]["stacktrace"]["frames"]]
    assert event["extra"] == {
        "task_name": "shop.send",
        "job_id": handle.id,
        "attempt": 2,
        "executor": "queued",
    }
    assert SECRET not in str([one.serialize() for one in sent.envelopes])


# --- OpenTelemetry


@pytest.fixture
def spans(app, monkeypatch):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # There is one for a process, which cannot be replaced.
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    exec(block_with("def trace_the_attempt"), {})
    yield exporter
    provider.shutdown()


@pytest.fixture
def request_tracer(spans):
    return trace.get_tracer("tests")


def of_kind(spans, kind):
    return [span for span in spans.get_finished_spans() if span.kind is kind]


def test_a_call_is_a_span_and_so_is_its_attempt(spans, send, queued):
    handle = send()
    queued.run_all()

    (call,) = of_kind(spans, SpanKind.PRODUCER)
    (attempt,) = of_kind(spans, SpanKind.CONSUMER)
    assert (call.name, attempt.name) == ("send shop.send", "process shop.send")
    common = {
        "messaging.system": "uwsgi_tasks",
        "messaging.destination.name": "shop.send",
        "messaging.message.id": handle.id,
    }
    assert call.attributes == {**common, "messaging.operation.type": "send"}
    assert attempt.attributes == {
        **common,
        "messaging.operation.type": "process",
        "uwsgi_tasks.attempt": 1,
        "uwsgi_tasks.executor": "queued",
    }
    assert (attempt.status.status_code, attempt.events) == (StatusCode.UNSET, ())


def test_the_trace_of_the_caller_reaches_each_attempt(spans, request_tracer, send, queued):
    with request_tracer.start_as_current_span("a request") as request:
        send(OSError("no such host"))
    queued.run_all()

    (call,) = of_kind(spans, SpanKind.PRODUCER)
    assert call.parent == request.get_span_context()
    attempts = of_kind(spans, SpanKind.CONSUMER)
    assert [one.parent.span_id for one in attempts] == [call.context.span_id] * 2
    assert {one.context.trace_id for one in attempts} == {request.get_span_context().trace_id}


def test_each_attempt_that_fails_is_one_span_with_one_exception(spans, send, queued):
    send(OSError("1"), OSError("2"))
    queued.run_all()

    attempts = of_kind(spans, SpanKind.CONSUMER)
    assert [one.attributes["uwsgi_tasks.attempt"] for one in attempts] == [1, 2, 3]
    assert [one.status.status_code for one in attempts] == [
        StatusCode.ERROR,
        StatusCode.ERROR,
        StatusCode.UNSET,
    ]
    assert [
        [(event.name, event.attributes["exception.message"]) for event in one.events]
        for one in attempts
    ] == [[("exception", "1")], [("exception", "2")], []]


def test_a_span_that_the_task_opens_is_below_its_attempt(app, spans, request_tracer, queued):
    @app.task(name="shop.send")
    def send():
        with request_tracer.start_as_current_span("in the task"):
            pass

    send()
    queued.run_all()

    (attempt,) = of_kind(spans, SpanKind.CONSUMER)
    (inner,) = of_kind(spans, SpanKind.INTERNAL)
    assert inner.parent.span_id == attempt.context.span_id
