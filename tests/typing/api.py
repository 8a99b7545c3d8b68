"""The public names as a user would write them; mypy reads this file, nobody runs it."""

import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import Any, ParamSpec, TypeVar, assert_type
from unittest.mock import ANY, call

from uwsgi_tasks import (
    SPOOL_IGNORE,
    SPOOL_OK,
    SPOOL_RETRY,
    App,
    Attempt,
    CurrentTask,
    DataQueue,
    HeapEntry,
    Job,
    JobHandle,
    LeaseLost,
    Outcome,
    PredicateFailed,
    Retry,
    RetryTaskException,
    State,
    Task,
    TaskExecutor,
    TaskHeap,
    configure,
    cron,
    cron_lazy,
    django_setup,
    fixture,
    get_current_task,
    middleware,
    on_submit,
    set_uwsgi_callbacks,
    task,
    timer,
    timer_lazy,
)
from uwsgi_tasks.data_queue import DataQueue as DataQueueType
from uwsgi_tasks.testing import Attempt as MadeAttempt
from uwsgi_tasks.testing import (
    CapturedJob,
    QueuedTasks,
    SubmittedTasks,
    capture_tasks,
    eager_tasks,
    queue_tasks,
)

P = ParamSpec("P")
R = TypeVar("R")

configure(crash_limit=5, spooler_dir="/srv/site/spool", spooler_frequency=None)
set_uwsgi_callbacks()
django_setup()
django_setup("site.settings")


@task
def bare(user_id: int, *, polite: bool = True) -> str:
    return f"{user_id} {polite}"


@task(executor=TaskExecutor.SPOOLER, retry=Retry(attempts=5, delay=timedelta(seconds=2), backoff=2))
def with_options(path: str) -> int:
    return len(path)


def is_busy(error: BaseException) -> bool:
    return "busy" in str(error)


def is_done(outcome: Outcome) -> bool:
    assert_type(outcome.exception, BaseException | None)
    assert_type(outcome.attempt, int)
    return outcome.value == "done" and not isinstance(outcome.exception, PredicateFailed)


@task(retry=Retry(attempts=0, delay=1, timeout=timedelta(minutes=1), on=is_busy, until=is_done))
def judged(path: str) -> str:
    return path


@task(retry=Retry(on=(OSError, KeyError), until=lambda outcome: outcome.value, max_delay=60))
def judged_in_place(path: str) -> str:
    return path


def by_hand() -> str | None:
    for attempt in judged.attempts("a path"):
        assert_type(attempt, Attempt)
        assert_type(attempt.number, int)
        assert_type(attempt.state, State)
        assert_type(attempt.wait, float | None)
        assert_type(attempt.exception, BaseException | None)
    judged.attempts(42)  # type: ignore[arg-type]
    return judged.func("a path")


@task(executor="mule", mule="farm")
async def coroutine(seconds: float) -> None:
    assert seconds >= 0


def logged(func: Callable[P, R]) -> Callable[P, R]:
    @wraps(func)
    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        return func(*args, **kwargs)

    return inner


@task(spooler_return=True, retry_count=3, retry_timeout=timedelta(days=1))
@logged
def decorated(count: int) -> int:
    if count > 1:
        raise RetryTaskException(count=2, timeout=timedelta(seconds=5))
    return {0: SPOOL_OK, 1: SPOOL_RETRY}.get(count, SPOOL_IGNORE)


@task(at=timedelta(seconds=10), priority=3, spooler="/srv/site/spool", working_dir=None)
def introspecting() -> JobHandle | None:
    current = get_current_task()
    if current is None:
        return None
    current.buffer.setdefault("seen", []).append(current.args)
    current.at = timedelta(seconds=20)
    current.retry_count = 2
    current.retry_timeout = 5
    return current(*current.args, **current.kwargs)


handle = bare(42, polite=False)
assert_type(handle, JobHandle)
assert_type(handle.id, str)
assert_type(handle.state, State)

assert_type(bare.func(1, polite=True), str)
assert_type(with_options.using(at=datetime.now(UTC))("x"), JobHandle)
assert_type(with_options.map(["a", "b"]), list[JobHandle])
assert_type(decorated(1), JobHandle)
coroutine(0.5)
introspecting()

bare("42")  # type: ignore[arg-type]
bare(42, rude=True)  # type: ignore[call-arg]
bare()  # type: ignore[call-arg]


tasks = TaskHeap(sleep=time.sleep, interval=0.5)
entry = tasks.append(bare, 42, polite=False)
tasks.append(coroutine.using(at=timedelta(hours=1)), 0.5)
tasks.append(bare, "42")  # type: ignore[arg-type]
tasks.append(print, "42")  # type: ignore[arg-type]
tasks.run(stop=True)
tasks.stop_now()
tasks.stop_after()
tasks.sleep()
tasks.sleep(5)
assert_type(entry, HeapEntry)
assert_type(entry.state, State)
assert_type(entry.attempt, int)
assert_type(entry.next_at, datetime | None)
assert_type(entry.exception, BaseException | None)
assert_type(entry.cancel(), bool)
assert_type(list(tasks), list[HeapEntry])
assert_type(len(tasks), int)
assert_type(tasks.interval, float)


@timer(seconds=5, iterations=3, target="workers")
def ticking(signal_number: int) -> None:
    assert signal_number


@timer_lazy(target="mule")
def ticking_later(signal_number: int) -> None:
    assert signal_number


@cron(minute=-2, hour=4, day=-1, month=-1, dayweek=1)
def at_four(signal_number: int) -> None:
    assert signal_number


@cron_lazy(minute=0)
def later_at_four(signal_number: int) -> None:
    assert signal_number


ticking_later.add_setup(seconds=10, iterations=2)
ticking_later()
later_at_four()


def shown(job: Job) -> str:
    return f"{job} {job.id} {job.attempt}"


def in_a_minute(given: Task[[str], int], path: str) -> JobHandle:
    return given.using(at=timedelta(minutes=1))(path)


in_a_minute(with_options, "x")


def test_what_is_submitted(captured_tasks: SubmittedTasks) -> None:
    bare(42)
    assert_type(captured_tasks.assert_submitted(bare, 42, polite=ANY), CapturedJob)
    captured_tasks.assert_submitted_once(bare.using(priority=3, at=timedelta(days=1)), user_id=42)
    captured_tasks.assert_not_submitted(with_options)
    captured_tasks.assert_nothing_submitted()
    assert captured_tasks.calls(bare) == [call(42), call(ANY)]
    assert_type(captured_tasks.of(bare, 42), list[CapturedJob])
    assert_type([job.at for job in captured_tasks], list[datetime | timedelta | None])
    assert_type(captured_tasks.jobs[0].args, tuple[Any, ...])
    captured_tasks.clear()


def test_what_is_queued(queued_tasks: QueuedTasks) -> None:
    assert_type(queued_tasks.run(bare, check=False), list[MadeAttempt])
    assert_type(queued_tasks.run_all(limit=10)[0].state, State)
    queued_tasks.advance(timedelta(days=1))
    queued_tasks.advance(0.5)
    assert_type(queued_tasks.now, datetime)
    assert_type(queued_tasks.waiting, list[CapturedJob])
    assert_type(queued_tasks.failed[0].error, BaseException | None)
    queued_tasks.assert_nothing_waits()
    queued_tasks.strict = True


with capture_tasks() as captured, eager_tasks(App()) as ran, queue_tasks(strict=True) as queued:
    assert_type(captured, SubmittedTasks)
    assert_type(ran, SubmittedTasks)
    assert_type(queued, QueuedTasks)


@middleware
def timed(task: CurrentTask, call: Callable[[], Any]) -> Any:
    return call() if task.attempt == 1 else task.fixtures.database


@fixture
def database() -> Iterator[str]:
    yield "open"


@fixture(name="other")
async def session() -> AsyncIterator[str]:
    yield "open"


@on_submit
def tenant(job: Job) -> dict[str, str]:
    return {"tenant": job.task}


@on_submit
def silent(job: Job) -> None:
    assert job.headers is None


assert_type(database(), Iterator[str])
assert_type(session(), AsyncIterator[str])
the_same: Callable[[CurrentTask, Callable[[], Any]], Any] = App().middleware(timed)


@task(executor=TaskExecutor.REDIS, queue="mail", priority=3, lease=60, serializer="json")
def on_redis(number: int) -> str:
    """Run by a worker on any machine."""
    current = get_current_task()
    try:
        assert_type(current.heartbeat() if current else None, None)
    except LeaseLost:
        return ""
    return str(number)


remote: JobHandle = on_redis(1)
once: JobHandle = on_redis.using(lease=None, queue="reports")(2)
aggregate = DataQueue("aggregate", attempts=5, lease=5, dead_letter=True)
ids: list[str] = aggregate.put([{"page": 1}, [1.5, None]])
got = aggregate.get(2)
done: set[str] = aggregate.done(got)
waiting: int = len(aggregate)
dead: DataQueueType = aggregate.dead
