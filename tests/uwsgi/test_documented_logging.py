"""The two examples of the page about logging, in a spooler: what they see gets out of it."""

import re
import textwrap
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "logging.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
HOOKS = ["--py-call-uwsgi-fork-hooks"]

TASK = """
    @task(executor="spooler", retry=Retry(attempts=2, on=OSError), name="shop.send")
    def send():
        if get_current_task().attempt == 1:
            raise OSError("no such host")
        raise KeyError("no such order")
"""

SENTRY = (
    """
    import sentry_sdk
    from sentry_sdk.transport import HttpTransport
    from uwsgi_tasks import Retry, get_current_task, task

    class Collecting(HttpTransport):
        def _send_envelope(self, envelope):
            for item in envelope.items:
                found = item.payload.json
                trace = found["contexts"]["trace"]["trace_id"]
                record(item.type, tags=found.get("tags"), trace=trace)

    sentry_sdk.init(
        dsn="http://key@127.0.0.1:9/1", transport=Collecting, traces_sample_rate=1.0,
        auto_enabling_integrations=False,
    )
"""
    + TASK
    + """
    def request():
        with sentry_sdk.start_transaction(name="a request") as request:
            send()
        return request.trace_id
"""
)

TELEMETRY = (
    """
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    from uwsgi_tasks import Retry, get_current_task, task

    class Collecting(SpanExporter):
        def export(self, spans):
            for span in spans:
                record(span.kind.name, trace=span.context.trace_id, errors=len(span.events))
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Collecting(), schedule_delay_millis=100))
    trace.set_tracer_provider(provider)
"""
    + TASK
    + """
    def request():
        with trace.get_tracer("tests").start_as_current_span("a request") as request:
            send()
        return request.get_span_context().trace_id
"""
)


def with_example(source, words):
    (block,) = [block for block in BLOCKS if words in block]
    return textwrap.dedent(source) + block


def test_sentry_hears_of_each_attempt_once(serve):
    server = serve(with_example(SENTRY, "def report_to_sentry"), options=HOOKS)
    trace = server.call("request()")

    events = server.wait_for_events("event", 2)
    server.wait_for(lambda: "failed in attempt 2" in server.log)
    assert [one["tags"]["attempt"] for one in events] == ["1", "2"]
    assert {one["trace"] for one in events} == {trace}
    assert {one["where"] for one in events} == {"spooler"}
    attempts = [one for one in server.wait_for_events("transaction", 3) if one["tags"]]
    assert [one["tags"]["attempt"] for one in attempts] == ["1", "2"]
    assert len(server.events("event")) == 2


def test_opentelemetry_has_a_span_of_each_attempt(serve):
    server = serve(with_example(TELEMETRY, "def trace_the_attempt"), options=HOOKS)
    trace = server.call("request()")

    attempts = server.wait_for_events("CONSUMER", 2)
    assert [(one["trace"], one["errors"]) for one in attempts] == [(trace, 1)] * 2
    assert {one["where"] for one in attempts} == {"spooler"}
    (call,) = server.wait_for_events("PRODUCER")
    assert call["trace"] == trace
