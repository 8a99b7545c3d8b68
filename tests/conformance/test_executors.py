"""What every executor promises to whoever declares and calls a task."""

import asyncio
import contextlib
import os
import signal
import threading
from datetime import timedelta
from functools import wraps
from pathlib import Path

import pytest

from tests.conformance.conftest import CARRIERS, EXECUTORS
from uwsgi_tasks import (
    SPOOL_IGNORE,
    SPOOL_OK,
    SPOOL_RETRY,
    InvalidTask,
    ResultNotKept,
    Retry,
    RetryTaskException,
    State,
    SubmitError,
    get_current_task,
)
from uwsgi_tasks.executors import Executor, load


@pytest.mark.parametrize("name", EXECUTORS)
def test_the_contract_is_checked_for_every_executor(name):
    assert name in CARRIERS, (
        f"uwsgi_tasks/executors/{name}.py is a new executor: give it a carrier in "
        "tests/conformance/conftest.py, so that this contract is checked for it"
    )


@pytest.mark.parametrize("name", EXECUTORS)
def test_an_executor_is_named_as_its_file(name):
    kind = load(name)
    assert (issubclass(kind, Executor), kind.name) == (True, name)


def can_wait(carrier):
    return type(carrier).__name__ != "LonelyMule"


# --- the call


def test_arguments_arrive(carrier):
    got = []

    @carrier.task
    def send(*args, **kwargs):
        got.append((args, kwargs))

    send(1, "ä", [None], copy={"to": (b"\0",)})
    carrier.work()
    assert got == [((1, "ä", [None]), {"copy": {"to": (b"\0",)}})]


def test_arguments_may_have_the_names_of_options(carrier):
    got = []

    @carrier.task
    def send(**kwargs):
        got.append(kwargs)

    send(at=1, executor="x", priority=2, spooler="y", body=b"", name="z")
    carrier.work()
    assert got == [
        {"at": 1, "executor": "x", "priority": 2, "spooler": "y", "body": b"", "name": "z"}
    ]


def test_a_job_runs_once(carrier):
    runs = []

    @carrier.task
    def send():
        runs.append(1)

    send()
    carrier.work()
    carrier.wait(3600)
    assert (len(runs), carrier.left()) == (1, 0)


def test_jobs_of_one_caller_run_in_their_order(carrier):
    got = []

    @carrier.task
    def send(number):
        got.append(number)

    for number in range(9):
        send(number)
    carrier.work()
    assert got == list(range(9))


def test_the_value_is_known_only_where_the_call_has_run(carrier):
    handle = carrier.task(lambda: 42)()
    if carrier.travels:
        with pytest.raises(ResultNotKept):
            handle.result()
        if load(carrier.executor).tracks:
            assert handle.state is State.QUEUED
        else:
            with pytest.raises(ResultNotKept):
                _ = handle.state
    else:
        assert (handle.result(), handle.state) == (42, State.SUCCEEDED)


def test_the_handle_has_the_id_of_the_job(carrier):
    ids = []

    @carrier.task
    def send():
        ids.append(get_current_task().id)

    handle = send()
    carrier.work()
    assert ids == [handle.id]


def test_60_kilobytes_arrive(carrier):
    got = []

    @carrier.task
    def send(content):
        got.append(content)

    send(b"x" * 60_000)
    carrier.work()
    assert got == [b"x" * 60_000]


def test_what_is_too_large_is_refused_or_arrives_whole(carrier):
    got = []

    @carrier.task
    def send(content):
        got.append(content)

    if carrier.executor == "mule":
        with pytest.raises(SubmitError, match="use the spooler"):
            send(b"x" * 5_000_000)
        return
    send(b"x" * 5_000_000)
    carrier.work()
    assert got == [b"x" * 5_000_000]


@pytest.mark.parametrize(
    ("args", "kwargs", "named"),
    [((1, threading.Lock()), {}, "argument 2"), ((), {"on": threading.Lock()}, "argument 'on'")],
)
def test_what_cannot_be_pickled_is_refused_at_the_call_by_its_name(carrier, args, kwargs, named):
    runs = []

    @carrier.task
    def send(*_args, **_kwargs):
        runs.append(1)

    with pytest.raises(SubmitError, match=rf"conformance\.send: {named}, a _thread\.lock"):
        send(*args, **kwargs)
    carrier.work()
    assert runs == []


# --- map


def test_map_keeps_the_order_of_the_calls_and_of_the_handles(carrier):
    got = []

    @carrier.task
    def send(*args):
        got.append((get_current_task().id, args))

    handles = send.map("abc", [1, 2, 3])
    carrier.work()
    ids = [handle.id for handle in handles]
    assert got == list(zip(ids, [("a", 1), ("b", 2), ("c", 3)], strict=True))
    assert len(set(ids)) == 3


def test_of_a_map_each_call_is_tried_again_by_itself(carrier):
    runs = []

    @carrier.task(retry=Retry(attempts=2))
    def send(number):
        runs.append((number, get_current_task().attempt))
        if number == 1 and get_current_task().attempt == 1:
            raise OSError

    send.map(range(3))
    carrier.work()
    assert sorted(runs) == [(0, 1), (1, 1), (1, 2), (2, 1)]


def test_of_a_map_one_call_that_fails_does_not_stop_the_others(carrier):
    runs = []

    @carrier.task
    def send(number):
        runs.append(number)
        if number == 1:
            raise OSError("no such host")

    assert carrier.failures(lambda: send.map(range(3))) == ["OSError: no such host"]
    assert runs == [0, 1, 2]


def test_a_map_with_an_argument_that_cannot_be_pickled_runs_nothing(carrier):
    runs = []
    send = carrier.task(runs.append)
    with pytest.raises(SubmitError, match="argument 1"):
        send.map([1, threading.Lock()])
    carrier.work()
    assert runs == []


# --- failing


def test_an_exception_ends_as_a_dead_letter_or_reaches_the_caller(carrier):
    @carrier.task
    def send():
        raise OSError("no such host")

    assert carrier.failures(send) == ["OSError: no such host"]
    assert carrier.left() == 0


def test_a_dead_letter_holds_the_job(carrier):
    @carrier.task
    def send(*_args, **_kwargs):
        raise KeyError

    if not carrier.travels:
        with pytest.raises(KeyError):
            send(1)
        assert carrier.dead() == []
        return
    handle = send(1, copy=True)
    carrier.work()
    ((letter, job),) = carrier.dead()
    assert (job.id, job.args, job.kwargs) == (handle.id, (1,), {"copy": True})
    assert (letter.task, letter.id) == ("conformance.send", handle.id)


def test_a_dead_letter_can_be_declined(carrier):
    @carrier.task(dead_letter=False)
    def send():
        raise OSError("no such host")

    assert carrier.failures(send) == ([] if carrier.travels else ["OSError: no such host"])


def test_a_failure_does_not_run_again_by_itself(carrier):
    runs = []

    @carrier.task(retry_count=3)
    def send():
        runs.append(1)
        raise OSError("no such host")

    carrier.failures(send)
    carrier.wait(3600)
    assert len(runs) == 1


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_what_would_end_a_process_does_not_end_the_server(carrier, kind):
    @carrier.task
    def send():
        raise kind

    if carrier.travels:
        assert len(carrier.failures(send)) == 1
    else:
        with pytest.raises(kind):
            send()


class Speechless(Exception):
    def __str__(self):
        raise RuntimeError("not even a message")


@pytest.mark.parametrize(
    "error", [Speechless(), ValueError("half of a pair: \ud83d")], ids=["speechless", "surrogate"]
)
def test_an_error_whose_text_cannot_be_shown_does_not_run_for_ever(carrier, error):
    runs = []

    @carrier.task
    def send():
        runs.append(1)
        raise error

    try:
        send()
    except type(error):
        assert not carrier.travels
    for _ in range(5):
        carrier.wait(10)
    assert len(runs) == 1
    assert len(carrier.dead()) == int(carrier.travels)


@pytest.mark.parametrize("outcome", ["fails", "asks again"])
def test_a_buffer_that_cannot_be_pickled_does_not_run_for_ever(carrier, outcome):
    runs = []

    @carrier.task(retry_count=3)
    def send():
        runs.append(1)
        get_current_task().buffer["lock"] = threading.Lock()
        if outcome == "fails":
            raise OSError
        return SPOOL_RETRY

    try:
        send()
    except Exception:  # noqa: BLE001  how it ends is the matter of other tests
        assert not carrier.travels
    for _ in range(5):
        carrier.wait(10)
    assert (len(runs) <= 3, carrier.left()) == (True, 0)
    assert len(carrier.dead()) == int(carrier.travels)


def test_a_task_that_is_gone_is_a_dead_letter(carrier):
    @carrier.task
    def send():
        pass

    if not carrier.travels:
        return
    send()
    carrier.app.tasks.clear()
    carrier.work()
    assert [letter.error.partition(":")[0] for letter, _ in carrier.dead()] == ["TaskNotFound"]


# --- trying again


def test_retry_count_counts_the_runs(carrier):
    left = []

    @carrier.task(retry_count=3)
    def send():
        left.append(get_current_task().retry_count)
        return SPOOL_RETRY

    failures = carrier.failures(send)
    assert left == [3, 2, 1]
    assert "asked for another attempt after number 3" in failures[0]


def test_retry_count_given_for_one_call_counts_too(carrier):
    runs = []

    @carrier.task
    def send():
        runs.append(1)
        return SPOOL_RETRY

    carrier.failures(send.using(retry_count=3))
    assert len(runs) == 3


def test_retry_count_set_inside_the_task_counts_too(carrier):
    runs = []

    @carrier.task
    def send():
        runs.append(1)
        if len(runs) == 1:
            get_current_task().retry_count = 3
        return SPOOL_RETRY

    carrier.failures(send)
    assert len(runs) == 3


@pytest.mark.parametrize(
    ("option", "value", "runs"),
    [
        ("retry", Retry(attempts=3), 3),
        ("name", "conformance.other", 1),
        ("dead_letter", False, 1),
        ("spooler_return", True, 1),
    ],
)
def test_what_is_changed_for_one_call_is_obeyed_or_refused(carrier, option, value, runs):
    made = []

    @carrier.task
    def send():
        made.append(1)
        raise OSError("no such host")

    try:
        copy = send.using(**{option: value})
    except InvalidTask:
        # The declaration alone can say it: whoever runs the job goes by that.
        return
    failures = carrier.failures(copy)
    assert len(made) == runs
    assert failures == (
        [] if option == "dead_letter" and carrier.travels else ["OSError: no such host"]
    )


def test_a_job_that_succeeds_at_last_leaves_nothing(carrier):
    runs = []

    @carrier.task(retry_count=5)
    def send():
        runs.append(1)
        return SPOOL_RETRY if len(runs) < 3 else SPOOL_OK

    assert carrier.failures(send) == []
    assert (len(runs), carrier.left()) == (3, 0)


def test_all_attempts_are_one_job(carrier):
    seen = []

    @carrier.task(retry_count=3)
    def send(*args):
        task = get_current_task()
        seen.append((task.id, task.attempt, args))
        return SPOOL_RETRY if task.attempt < 3 else None

    handle = send(1)
    carrier.work()
    assert seen == [(handle.id, number, (1,)) for number in (1, 2, 3)]


def test_an_exception_can_ask_for_another_attempt(carrier):
    runs = []

    @carrier.task(retry_count=2)
    def send():
        runs.append(1)
        raise RetryTaskException

    assert len(carrier.failures(send)) == 1
    assert len(runs) == 2


def test_an_exception_can_say_how_many_runs_are_left(carrier):
    left = []

    @carrier.task
    def send():
        left.append(get_current_task().retry_count)
        raise RetryTaskException(count=4 if len(left) == 1 else None)

    carrier.failures(send)
    assert left == [None, 3, 2, 1]


@pytest.mark.parametrize("given", [{"count": "3"}, {"timeout": "soon"}, {"timeout": -1}])
def test_a_request_that_cannot_be_is_a_failure_and_does_not_run_for_ever(carrier, given):
    runs = []

    @carrier.task(retry_count=3)
    def send():
        runs.append(1)
        raise RetryTaskException(**given)

    assert len(carrier.failures(send)) == 1
    assert len(runs) == 1


def test_retry_tries_again_by_itself(carrier):
    runs = []

    @carrier.task(retry=Retry(attempts=3))
    def send():
        runs.append(get_current_task().attempt)
        raise OSError("no such host")

    assert carrier.failures(send) == ["OSError: no such host"]
    assert runs == [1, 2, 3]


def test_retry_tries_the_named_exceptions_only(carrier):
    runs = []

    @carrier.task(retry=Retry(attempts=3, on=KeyError))
    def send():
        runs.append(1)
        raise OSError

    carrier.failures(send)
    assert len(runs) == 1


@pytest.mark.parametrize(
    ("given", "raised"),
    [
        ({"retry_count": 2, "retry_timeout": 10}, None),
        ({"retry_count": 2, "retry_timeout": timedelta(seconds=10)}, None),
        ({"retry_count": 2}, RetryTaskException(timeout=10)),
        ({"retry_count": 2, "retry_timeout": 3}, RetryTaskException(timeout=timedelta(seconds=10))),
        ({"retry": Retry(attempts=2, delay=10)}, OSError()),
    ],
)
def test_an_attempt_waits_as_long_as_it_was_told_to(carrier, given, raised):
    runs = []

    def send():
        runs.append(1)
        if len(runs) == 1 and raised:
            raise raised
        return SPOOL_RETRY if len(runs) == 1 else None

    if not can_wait(carrier) and "retry_timeout" in given | vars(Retry()) and raised is None:
        with pytest.raises(InvalidTask, match="a mule cannot wait"):
            carrier.task(**given)(send)
        return
    if not can_wait(carrier):
        return
    carrier.task(**given)(send)()
    seen = []
    for seconds in (0, 8.5, 3):
        carrier.wait(seconds)
        seen.append(len(runs))
    # The caller of a runtime task waits for all of it.
    assert seen == ([1, 1, 2] if carrier.travels else [2, 2, 2])


def test_a_wait_that_nobody_can_make_is_refused_or_a_dead_letter(carrier):
    if can_wait(carrier):
        return

    @carrier.task(retry_count=2)
    def send():
        raise RetryTaskException(timeout=10)

    assert "a mule cannot wait" in carrier.failures(send)[0]


# --- codes


@pytest.mark.parametrize("value", [None, 0, -1, -2, 7, "text", False, object()])
def test_a_value_is_a_value_unless_codes_are_obeyed(carrier, value):
    runs = []

    @carrier.task
    def send():
        runs.append(1)
        return value

    assert carrier.failures(send) == []
    assert len(runs) == 1


@pytest.mark.parametrize("value", [SPOOL_OK, None, 7, True, "text"])
def test_what_is_no_request_ends_the_job(carrier, value):
    runs = []

    @carrier.task(spooler_return=True)
    def send():
        runs.append(1)
        return value

    assert carrier.failures(send) == []
    assert len(runs) == 1


def test_spool_ignore_drops_the_job(carrier, caplog):
    runs = []

    @carrier.task(spooler_return=True)
    def send():
        runs.append(1)
        return SPOOL_IGNORE

    assert carrier.failures(send) == []
    assert (len(runs), carrier.left()) == (1, 0)
    assert ("is dropped" in caplog.text) == carrier.travels


def test_spool_retry_without_a_count_is_obeyed_until_it_ends(carrier):
    runs = []

    @carrier.task(spooler_return=True)
    def send():
        runs.append(1)
        return SPOOL_RETRY if len(runs) < 6 else SPOOL_OK

    if not can_wait(carrier):
        return
    send()
    for _ in range(8):
        carrier.wait(2)
    assert (len(runs), carrier.dead()) == (6, [])


# --- the current task


def test_a_buffer_lives_from_attempt_to_attempt(carrier):
    seen = []

    @carrier.task(retry_count=3)
    def send():
        buffer = get_current_task().buffer
        seen.append(dict(buffer))
        buffer[len(seen)] = "done"
        return SPOOL_RETRY if len(seen) < 3 else None

    send()
    carrier.work()
    assert seen == [{}, {1: "done"}, {1: "done", 2: "done"}]


def test_a_buffer_belongs_to_one_job(carrier):
    seen = []

    @carrier.task
    def send():
        seen.append(dict(get_current_task().buffer))
        get_current_task().buffer["mine"] = 1

    send()
    send()
    carrier.work()
    assert seen == [{}, {}]


def two_calls_down(found):
    def further():
        found.append(get_current_task())

    further()


def test_the_current_task_is_found_from_a_helper(carrier):
    found = []

    @carrier.task
    def send():
        two_calls_down(found)

    handle = send()
    carrier.work()
    assert [task.id for task in found] == [handle.id]


def test_the_current_task_is_found_in_a_coroutine(carrier):
    found = []

    @carrier.task
    async def send():
        await asyncio.sleep(0)
        two_calls_down(found)

    handle = send()
    carrier.work()
    assert [task.id for task in found] == [handle.id]


def test_the_current_task_is_found_in_a_thread_of_a_process_that_runs_one_at_a_time(carrier):
    found = []

    @carrier.task
    def send():
        thread = threading.Thread(target=two_calls_down, args=[found])
        thread.start()
        thread.join()

    handle = send()
    carrier.work()
    assert [task and task.id for task in found] == [handle.id if carrier.alone else None]


def test_there_is_no_current_task_when_it_has_run(carrier):
    carrier.failures(carrier.task(lambda: 1 / 0))
    assert get_current_task() is None


def test_the_current_task_says_who_runs_it(carrier):
    found = []

    @carrier.task
    def send():
        found.append(get_current_task().executor)

    send()
    carrier.work()
    assert found == [carrier.executor]


# --- functions of other kinds


def test_a_coroutine_function_runs_to_its_end(carrier):
    got = []

    @carrier.task
    async def send(value):
        await asyncio.sleep(0)
        got.append(value)
        return value

    handle = send(5)
    carrier.work()
    assert got == [5]
    assert carrier.travels or handle.result() == 5


def test_a_coroutine_can_ask_for_another_attempt(carrier):
    runs = []

    @carrier.task(retry_count=2)
    async def send():
        await asyncio.sleep(0)
        runs.append(1)
        raise RetryTaskException

    carrier.failures(send)
    assert len(runs) == 2


def test_a_coroutine_can_call_another_task(carrier):
    got = []

    @carrier.task
    async def second(value):
        got.append(value)

    @carrier.task
    async def first(value):
        second(value + 1)

    # In a process of its own: where it hangs, it takes the event loop along.
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)
        with contextlib.suppress(BaseException):
            first(1)
            carrier.work()
        os._exit(0 if got == [2] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_wrapped_function_can_be_a_task(carrier):
    got = []

    def wrapper(func):
        @wraps(func)
        def inner(*args):
            got.append("before")
            try:
                func(*args)
            except OSError:
                return SPOOL_RETRY
            return SPOOL_OK

        return inner

    @carrier.task(retry_count=3)
    @wrapper
    def send(text):
        got.append(text)
        if len(got) < 4:
            raise OSError

    assert carrier.failures(lambda: send("hello")) == []
    assert (send.name, got) == ("conformance.send", ["before", "hello"] * 2)


# --- the seed's example


def test_a_task_that_submits_itself_goes_on_step_by_step(carrier):
    """The sequential removal of files, as the first document has it."""
    files, removed, reports = ["a", "b", "c"], [], []

    def select_file_for_removal(previous):
        following = files[files.index(previous) + 1 :] if previous else files
        return following[0] if following else None

    def del_file(name):
        if name == "b" and removed.count("b?") < 1:
            removed.append("b?")
            raise OSError("busy")
        removed.append(name)

    delay = {} if carrier.executor != "spooler" else {"at": timedelta(seconds=10)}

    @carrier.task(**delay)
    def remove_files_sequentially(previous_selected_file=None):
        current_task = get_current_task()
        selected_file = select_file_for_removal(previous_selected_file)
        if selected_file is None:
            reports.append(dict(current_task.buffer))
            return None
        try:
            del_file(selected_file)
        except OSError as ex:
            io_errors = current_task.buffer.setdefault("errors", {}).get(selected_file)
            if not io_errors:
                current_task.buffer["errors"][selected_file] = str(ex)
                if delay:
                    current_task.at = timedelta(seconds=20)
                return current_task(previous_selected_file)
        current_task.buffer.setdefault("results", {})[selected_file] = len(removed)
        return current_task(selected_file)

    remove_files_sequentially()
    for _ in range(10):
        carrier.wait(21)
    assert removed == ["a", "b?", "b", "c"]
    assert reports == [{"errors": {"b": "busy"}, "results": {"a": 1, "b": 3, "c": 4}}]
    assert carrier.dead() == []


def test_a_task_that_submits_itself_makes_a_new_job(carrier):
    seen = []

    @carrier.task(retry_count=2)
    def send(number=1, *, copy=False):
        task = get_current_task()
        seen.append((task.id, task.attempt, number, copy))
        if number < 3:
            assert task(number + 1, copy=True).id != task.id

    send()
    carrier.work()
    assert [rest for _, *rest in seen] == [[1, 1, False], [1, 2, True], [1, 3, True]]
    assert len({key for key, *_ in seen}) == 3


def test_what_a_task_submits_of_itself_must_be_picklable_too(carrier):
    @carrier.task
    def send(*_args):
        with pytest.raises(SubmitError, match="argument 1"):
            get_current_task()(threading.Lock())

    assert carrier.failures(send) == []


# --- where it runs


def test_a_job_runs_in_the_directory_of_its_caller(carrier, tmp_path, monkeypatch):
    got = []

    @carrier.task
    def send():
        got.append(Path.cwd())

    (tmp_path / "callers").mkdir()
    monkeypatch.chdir(tmp_path / "callers")
    send()
    if carrier.travels:
        monkeypatch.chdir(tmp_path)
    carrier.work()
    assert got == [tmp_path / "callers"]


def test_a_job_runs_in_the_directory_that_is_named(carrier, tmp_path):
    if not carrier.moves:
        return
    got = []

    @carrier.task(working_dir=tmp_path)
    def send():
        got.append(Path.cwd())

    send()
    carrier.work()
    assert got == [tmp_path]


# --- what is refused


@pytest.mark.parametrize(
    "options",
    [
        {"at": "tomorrow"},
        {"priority": "high"},
        {"retry_count": 0},
        {"retry_timeout": -1},
        {"count": 3},
        {"working_dir": "relative"},
    ],
)
def test_an_option_that_cannot_be_is_refused_when_it_is_declared(carrier, options):
    (name,) = options
    with pytest.raises(InvalidTask, match=name):
        carrier.task(**options)(len)


@pytest.mark.parametrize(
    ("options", "supported"),
    [
        ({"at": timedelta(seconds=5)}, "supports_delay"),
        ({"priority": 5}, "supports_priority"),
    ],
)
def test_an_option_is_honoured_or_refused_when_it_is_declared(carrier, options, supported):
    if getattr(load(carrier.executor), supported):
        runs = []
        carrier.task(**options)(lambda: runs.append(1))()
        carrier.wait(6)
        assert runs == [1]
    else:
        with pytest.raises(InvalidTask, match="use the spooler"):
            carrier.task(**options)(len)


@pytest.mark.parametrize("option", ["spooler", "mule"])
def test_the_place_of_another_executor_is_refused(carrier, option):
    if option != carrier.executor:
        with pytest.raises(InvalidTask, match=f"{option}= is for the {option}"):
            carrier.task(**{option: "/a"})(len)


def test_a_delayed_job_does_not_run_before_its_time(carrier):
    if not load(carrier.executor).supports_delay:
        return
    runs = []
    carrier.task(at=timedelta(seconds=30))(lambda: runs.append(1))()
    seen = []
    for seconds in (0, 28.5, 3):
        carrier.wait(seconds)
        seen.append(len(runs))
    assert seen == [0, 0, 1]


def test_a_job_is_submitted_whole_or_not_at_all(carrier, monkeypatch):
    if not carrier.travels:
        return
    runs = []
    send = carrier.task(lambda: runs.append(1))
    carrier.uwsgi.full, carrier.uwsgi.room = True, 0

    def full(*_args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("uwsgi_tasks.spool_file.os.write", full)
        patch.setattr("uwsgi_tasks.spool_file._write_private", full)
        with pytest.raises(SubmitError):
            send()
    carrier.uwsgi.full, carrier.uwsgi.room = False, 99
    carrier.work()
    assert (runs, carrier.left()) == ([], 0)


# --- what a task does to its arguments


@pytest.mark.parametrize("how", ["fails", "asks", "raises"])
def test_a_task_that_changes_its_arguments_is_tried_again_with_those_of_the_call(carrier, how):
    seen = []

    @carrier.task(retry_count=3, retry=Retry(attempts=3))
    def send(numbers, *, options):
        seen.append((list(numbers), dict(options)))
        numbers.append(len(seen))
        options.clear()
        if how == "fails" and len(seen) < 3:
            raise OSError
        if how == "raises" and len(seen) < 3:
            raise RetryTaskException
        return SPOOL_RETRY if len(seen) < 3 else None

    send([0], options={"copy": True})
    carrier.work()
    assert seen == [([0], {"copy": True})] * 3


def test_of_a_map_each_call_is_tried_again_with_its_own_arguments(carrier):
    seen = []

    @carrier.task(retry=Retry(attempts=2))
    def send(numbers):
        seen.append(list(numbers))
        numbers.clear()
        if get_current_task().attempt == 1:
            raise OSError

    send.map([[1], [2], [3]])
    carrier.work()
    assert sorted(seen) == [[1], [1], [2], [2], [3], [3]]


def test_arguments_that_can_no_longer_be_pickled_do_not_keep_a_job_from_its_next_attempt(carrier):
    seen = []

    @carrier.task(retry=Retry(attempts=2))
    def send(given):
        seen.append(list(given))
        given.append(threading.Lock())
        if len(seen) == 1:
            raise OSError

    send([1])
    carrier.work()
    assert (seen, carrier.dead()) == ([[1], [1]], [])


def test_a_dead_letter_has_the_arguments_of_the_call(carrier):
    @carrier.task
    def send(numbers):
        numbers.append(2)
        raise OSError

    carrier.failures(lambda: send([1]))
    assert [job.args for _, job in carrier.dead()] == ([([1],)] if carrier.travels else [])


def test_a_task_does_not_change_the_arguments_of_its_caller(carrier):
    given = [1]

    @carrier.task
    def send(numbers):
        numbers.append(2)

    send(given)
    carrier.work()
    assert given == [1]


def test_a_task_that_changes_its_arguments_is_tried_again_also_where_a_queue_is_full(carrier):
    seen = []

    @carrier.task(retry_count=4)
    def send(numbers):
        seen.append(list(numbers))
        numbers.append(len(seen))
        if carrier.uwsgi is not None:
            carrier.uwsgi.room = 0
        return SPOOL_RETRY if len(seen) < 4 else None

    send([0])
    carrier.work()
    assert seen == [[0]] * 4


# --- how often


def test_a_number_of_runs_of_one_call_makes_its_codes_count(carrier):
    runs = []

    @carrier.task
    def send():
        runs.append(1)
        return SPOOL_RETRY

    assert len(carrier.failures(send.using(retry_count=3))) == 1
    assert len(runs) == 3


def test_a_number_of_runs_that_a_task_sets_makes_its_codes_count(carrier):
    runs = []

    @carrier.task
    def send():
        runs.append(1)
        if len(runs) == 1:
            get_current_task().retry_count = 3
        return SPOOL_RETRY

    assert len(carrier.failures(send)) == 1
    assert len(runs) == 3


@pytest.mark.parametrize("timeout", [1e15, 1e300])
def test_a_wait_beyond_all_times_does_not_run_for_ever(carrier, timeout):
    runs = []

    @carrier.task(retry_count=3)
    def send():
        runs.append(1)
        raise RetryTaskException(timeout=timeout)

    with contextlib.suppress(Exception):
        send()
    for _ in range(5):
        carrier.wait(10)
    assert len(runs) <= 3


def test_a_coroutine_can_call_coroutines_that_call_others(carrier):
    done = []

    @carrier.task
    async def send(depth):
        done.append(depth)
        if depth < 3:
            send(depth + 1)

    # Elsewhere: threads that wait for ever would keep this process from ending.
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        with contextlib.suppress(BaseException):
            send(0)
            carrier.work()
        os._exit(0 if done == [0, 1, 2, 3] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
