"""What a line in the log says."""

import ast
import logging
from pathlib import Path

import pytest

import uwsgi_tasks
from uwsgi_tasks import log_lines
from uwsgi_tasks.model import DeadLetter, Job

JOB = Job("3f2c", "shop.send", ("secret",), attempt=2)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("no such host", "no such host"),
        ("", ""),
        ("first\nsecond", "first second"),
        ("first\r\n\n    second\n", "first second"),
        # Else a text could forge a line of somebody else.
        ("a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g", "a b c d e f g"),
        ("two  blanks stay", "two  blanks stay"),
        (OSError("first\nsecond"), "first second"),
        (JOB, "shop.send[3f2c]"),
    ],
)
def test_a_text_is_one_line(text, line):
    assert log_lines.one_line(text) == line


def test_the_fields_of_a_job_say_which_it_is_and_nothing_of_its_arguments():
    assert log_lines.of(JOB, "spooler") == {
        "task_name": "shop.send",
        "job_id": "3f2c",
        "attempt": 2,
        "executor": "spooler",
    }


def test_an_executor_that_is_not_known_is_left_out():
    assert "executor" not in log_lines.of(JOB)


def test_a_dead_letter_has_the_same_fields():
    letter = DeadLetter(
        id="3f2c", task="shop.send", executor="mule", attempt=2, failed_at=0.0, error=""
    )
    assert log_lines.of(letter) == log_lines.of(JOB)


def test_no_field_is_one_that_a_log_record_has():
    # It raises KeyError for those.
    record = logging.getLogger("uwsgi_tasks").makeRecord(
        "", logging.INFO, "", 0, "", (), None, extra=log_lines.of(JOB, "spooler")
    )
    assert record.job_id == "3f2c"


def test_an_exception_comes_without_the_frame_that_caught_it():
    def fails():
        raise OSError("no such host")

    try:
        fails()
    except OSError as error:
        shown = logging.Formatter().formatException(log_lines.from_the_task_on(error))

    assert shown.startswith("Traceback (most recent call last):\n")
    assert [line for line in shown.splitlines() if "in " in line and "line" in line] == [
        f'  File "{__file__}", line {fails.__code__.co_firstlineno + 1}, in fails'
    ]


def test_all_frames_down_to_the_caller_of_the_task_are_left_out():
    def fails():
        raise OSError("no such host")

    def calls():
        fails()

    def surrounds():
        calls()

    def shown_below(caller):
        try:
            surrounds()
        except OSError as error:
            trace = log_lines.from_the_task_on(error, caller.__code__)[2]
        names = []
        while trace is not None:
            names.append(trace.tb_frame.f_code.co_name)
            trace = trace.tb_next
        return names

    assert shown_below(calls) == ["fails"]
    # It is not among them: what raised was above it.
    assert shown_below(test_a_text_is_one_line) == ["surrounds", "calls", "fails"]


def test_an_exception_that_was_never_raised_has_no_frames():
    error = OSError("no such host")
    assert log_lines.from_the_task_on(error) == (OSError, error, None)


# --- all that the package logs

PACKAGE = Path(uwsgi_tasks.__file__).parent
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
CALLS = {
    f"{path.relative_to(PACKAGE)}:{node.lineno}": node
    for path in sorted(PACKAGE.rglob("*.py"))
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Call)
    and isinstance(node.func, ast.Attribute)
    and node.func.attr in LEVELS
    and ast.unparse(node.func.value) == "log"
}
# A job is a tuple with the arguments of its call, and some handlers send a line's arguments as
# they are; an error's text may be of many lines. Both go through one_line().
AS_THEY_ARE = {"job", "error", "away", "refused", "str", "shown"}


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_a_call_of_the_log_is_one_line_without_a_job_or_an_error_as_they_are(call):
    for value in call.args:
        called = ast.unparse(value.func if isinstance(value, ast.Call) else value)
        assert called.rpartition(".")[2] not in AS_THEY_ARE, ast.unparse(value)
        for text in ast.walk(value):
            assert not (isinstance(text, ast.Constant) and "\n" in str(text.value))


def test_the_calls_of_the_log_are_found():
    assert len(CALLS) > 20
