"""To a mule."""

import os
import threading
import time
from pathlib import Path

import pytest

from tests.fakes import FakeUwsgi
from uwsgi_tasks import InvalidTask, Retry, SubmitError
from uwsgi_tasks.codec import decode, encode
from uwsgi_tasks.errors import NotKept
from uwsgi_tasks.executors.mule import MuleExecutor
from uwsgi_tasks.model import Job
from uwsgi_tasks.server import Server
from uwsgi_tasks.settings import Settings
from uwsgi_tasks.task import options

JOB = Job("1", "shop.send", (1,))
WAITS = Retry(attempts=3, delay=5)


class Receiver:
    """Runs nothing, and answers with what it was told to."""

    def __init__(self):
        self.ran, self.buried, self.rejected = [], [], []
        self.following, self.given = [], []
        self.error = None

    def decode(self, payload):
        return decode(payload)

    def run(self, job, payload=None, index=0):
        self.given.append((payload, index))
        if self.error:
            raise self.error
        os.chdir("/")
        self.ran.append(job)
        return self.following.pop(0) if self.following else None

    def bury(self, job, reason):
        self.buried.append((job, reason))

    def reject(self, payload, reason):
        self.rejected.append((payload, reason))


class Relay:
    """An executor that can delay."""

    def __init__(self, *, ready=True):
        self.jobs = []
        self.ready = lambda: ready

    def submit(self, jobs):
        self.jobs.extend(jobs)
        return ()


@pytest.fixture
def uwsgi():
    return FakeUwsgi(mules=1)


@pytest.fixture
def receiver():
    return Receiver()


@pytest.fixture
def mule(uwsgi, receiver):
    server = Server(uwsgi)
    made = MuleExecutor(server, Settings)
    made.listen(receiver)
    with uwsgi.being("master"):
        server.install(lambda *_: -2, made.receive, lambda: None)
    uwsgi.fork(server, "mule")
    return made


def test_it_is_ready_once_a_mule_has_started(mule):
    assert mule.ready() is True


def test_it_is_ready_in_the_master_which_loads_before_it_forks():
    assert MuleExecutor(Server(FakeUwsgi(mules=1, role="master")), Settings).ready() is True


@pytest.mark.parametrize("opt", [{}, {"mules": 1}, {"mule": b"program.py"}])
def test_it_is_not_ready_where_nobody_would_run_a_job(opt):
    assert MuleExecutor(Server(FakeUwsgi(**opt)), Settings).ready() is False


def test_many_jobs_are_one_message(mule, uwsgi):
    jobs = [JOB._replace(id=str(number)) for number in range(3)]
    mule.submit(jobs)
    assert list(decode(uwsgi.messages[0][0])) == jobs


def test_a_job_of_the_future_goes_to_who_can_delay(mule, uwsgi):
    mule.relay = Relay()
    later = JOB._replace(at=time.time() + 60)
    mule.submit([later])
    assert (mule.relay.jobs, len(uwsgi.messages)) == ([later], 0)


def test_a_job_whose_time_has_come_is_sent(mule, uwsgi):
    mule.submit([JOB._replace(at=time.time() - 60)])
    assert len(uwsgi.messages) == 1


@pytest.mark.parametrize("relay", [None, Relay(ready=False)])
@pytest.mark.parametrize("threads", [0, 1])
def test_a_job_of_the_future_is_refused_where_nobody_can_delay(mule, uwsgi, relay, threads):
    mule.relay, uwsgi.has_threads = relay, threads
    with pytest.raises(SubmitError, match="a mule takes no job of the future: use the spooler"):
        mule.submit([JOB._replace(at=time.time() + 60)])
    assert not uwsgi.messages


@pytest.mark.parametrize("relay", [None, Relay(ready=False)])
@pytest.mark.parametrize("given", [{"retry_count": 3, "retry_timeout": 5}, {"retry": WAITS}])
def test_retries_that_wait_are_refused_where_nobody_can_wait(mule, relay, given):
    mule.relay = relay
    with pytest.raises(InvalidTask, match=r"a mule cannot wait .* nor threads") as caught:
        mule.check(options(given))
    for remedy in ("'enable-threads = true'", "'spooler = DIRECTORY'", "without a delay"):
        assert remedy in str(caught.value)


def test_retries_without_a_delay_are_taken_where_nobody_can_wait(mule):
    assert mule.check(options({"retry": Retry(attempts=3)})) is None


@pytest.mark.parametrize(("relay", "threads"), [(Relay(), 0), (Relay(), 1), (None, 1)])
def test_retries_that_wait_are_taken_where_somebody_can_wait(mule, uwsgi, relay, threads):
    mule.relay, uwsgi.has_threads = relay, threads
    assert mule.check(options({"retry_count": 3, "retry_timeout": 5})) is None


def test_all_jobs_of_a_message_are_run(mule, receiver):
    jobs = [JOB._replace(id=str(number)) for number in range(3)]
    mule.receive(encode(jobs), None)
    assert receiver.ran == jobs


def test_each_job_comes_with_where_it_can_be_read_again(mule, receiver):
    message = encode([JOB, JOB._replace(id="2")])
    mule.receive(message, None)
    assert receiver.given == [(message, 0), (message, 1)]


def test_the_directory_of_the_mule_is_its_own_again_after_a_job(mule, home):
    mule.receive(encode([JOB]), None)
    assert Path.cwd() == home


def test_the_next_attempt_is_sent(mule, uwsgi, receiver):
    receiver.following = [JOB.again(None)]
    mule.receive(encode([JOB]), None)
    assert decode(uwsgi.messages[0][0])[0].attempt == 2


def test_the_next_attempt_runs_at_once_where_the_queue_is_full(mule, uwsgi, receiver):
    uwsgi.room = 0
    receiver.following = [JOB.again(None)]
    mule.receive(encode([JOB]), None)
    assert [job.attempt for job in receiver.ran] == [1, 2]


def test_what_runs_at_once_can_still_be_read_again(mule, uwsgi, receiver):
    # Its arguments are those of the call, and what the second attempt makes of them is not.
    uwsgi.room = 0
    receiver.following = [JOB.again(None), JOB.again(None).again(None)]
    message = encode([JOB])
    mule.receive(message, None)
    assert receiver.ran[1].attempt == 2
    assert all(
        payload and decode(payload)[index].args == JOB.args for payload, index in receiver.given
    )


def test_a_mule_that_is_not_there_is_refused_when_the_task_is_declared(mule):
    with pytest.raises(InvalidTask, match="there is no mule 2: this server has 1"):
        mule.check(options({"mule": 2}))
    assert mule.check(options({"mule": 1})) is None


def test_a_mule_whose_directory_is_gone_runs_its_jobs(mule, receiver, home):
    home.rmdir()
    mule.receive(encode([JOB]), None)
    assert receiver.ran == [JOB]


def test_the_next_attempt_is_buried_where_it_can_neither_wait_nor_run(waiting, uwsgi, receiver):
    uwsgi.has_threads = 0
    waiting(JOB.again(time.time() + 60))
    ((job, reason),) = receiver.buried
    assert (job.attempt, reason.startswith("a mule cannot wait")) == (2, True)


# ---- what waits in the mule itself ------------------------------------------------------------


@pytest.fixture
def waiting(mule, uwsgi, receiver):
    """Have a mule run a job that is followed by this one."""
    uwsgi.has_threads = 1

    def run(following):
        receiver.following = [following]
        with uwsgi.being("mule"):
            mule.receive(encode([JOB]), None)

    yield run
    if mule._delays is not None:
        mule._delays.take_all()


def test_the_next_attempt_is_sent_when_it_is_due_and_not_before(waiting, uwsgi, monkeypatch):
    sent_at, send = [], uwsgi.mule_msg
    monkeypatch.setattr(
        uwsgi, "mule_msg", lambda *message: sent_at.append(time.time()) or send(*message)
    )
    at = time.time() + 0.2
    waiting(JOB.again(at))
    wait_for(lambda: uwsgi.messages)
    assert sent_at[0] >= at
    (job,) = decode(uwsgi.messages[0][0])
    assert (job.attempt, job.at, job.args) == (2, at, JOB.args)


def test_the_next_attempt_goes_to_the_mule_that_its_call_names(waiting, uwsgi):
    waiting(JOB._replace(mule=1).again(time.time() + 0.05))
    wait_for(lambda: uwsgi.messages)
    assert uwsgi.messages[0][1] == 1


def test_what_waits_is_sent_in_the_order_of_time(waiting, uwsgi):
    # All of them are there before the first is due.
    now = time.time() + 1
    for number, seconds in enumerate((0.3, 0.1, 0.2)):
        waiting(JOB._replace(id=str(number)).again(now + seconds))
    wait_for(lambda: len(uwsgi.messages) == 3)
    assert [decode(message)[0].id for message, _ in uwsgi.messages] == ["1", "2", "0"]


def test_a_spooler_takes_what_must_wait_before_the_mule_does(waiting, mule):
    mule.relay = Relay()
    later = JOB.again(time.time() + 60)
    waiting(later)
    assert (mule.relay.jobs, mule._delays) == ([later], None)


def test_what_a_full_queue_does_not_take_when_it_is_due_is_sent_later(
    waiting, uwsgi, monkeypatch, caplog
):
    monkeypatch.setattr("uwsgi_tasks.executors.mule._PAUSE", 0.05)
    uwsgi.room = 0
    waiting(JOB.again(time.time() + 0.05))
    wait_for(lambda: "cannot be sent to a mule yet" in caplog.text)
    uwsgi.room = 278
    wait_for(lambda: uwsgi.messages)
    assert decode(uwsgi.messages[0][0])[0].attempt == 2


def test_what_cannot_be_pickled_when_it_is_due_is_buried_and_holds_nothing_up(
    waiting, uwsgi, receiver
):
    now = time.time()
    waiting(JOB.again(now + 0.05)._replace(buffer={"lock": threading.Lock()}))
    waiting(JOB._replace(id="2").again(now + 0.1))
    wait_for(lambda: uwsgi.messages)
    ((job, reason),) = receiver.buried
    assert (job.id, "lock" in reason) == ("1", True)
    assert decode(uwsgi.messages[0][0])[0].id == "2"


def test_what_waits_when_the_mule_ends_is_buried(waiting, uwsgi, receiver):
    for number in (2, 1):
        waiting(JOB._replace(id=str(number)).again(time.time() + 60 * number))
    uwsgi.atexit()
    assert [(job.id, job.attempt) for job, _ in receiver.buried] == [("1", 2), ("2", 2)]
    assert {reason for _, reason in receiver.buried} == {
        "its mule ended before it was due: requeue it"
    }


def test_one_that_cannot_be_kept_when_the_mule_ends_is_named_and_hides_no_other(
    waiting, uwsgi, receiver, caplog
):
    def full(job, _reason):
        if job.id == "1":
            raise NotKept("no dead letter could be written")
        kept.append(job.id)

    kept, receiver.bury = [], full
    for number in (1, 2):
        waiting(JOB._replace(id=str(number)).again(time.time() + 60 * number))
    uwsgi.atexit()
    assert kept == ["2"]
    (record,) = [record for record in caplog.records if record.levelname == "CRITICAL"]
    assert (record.job_id, "is lost" in record.message) == ("1", True)


def test_a_function_that_was_to_be_called_at_the_end_still_is(waiting, uwsgi, receiver):
    called = []
    uwsgi.atexit = lambda: called.append(len(receiver.buried))
    waiting(JOB.again(time.time() + 60))
    uwsgi.atexit()
    assert called == [1]


def test_a_mule_in_which_nothing_waits_leaves_the_end_alone(mule, uwsgi):
    with uwsgi.being("mule"):
        mule.receive(encode([JOB]), None)
    assert not hasattr(uwsgi, "atexit")


def test_an_attempt_that_is_due_already_runs_at_once_where_the_queue_is_full(
    waiting, uwsgi, receiver
):
    uwsgi.room = 0
    waiting(JOB.again(time.time() - 1))
    assert [job.attempt for job in receiver.ran] == [1, 2]
    assert not receiver.buried


def wait_for(condition, deadline=20.0):
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def test_a_message_that_cannot_be_kept_is_lost_with_a_log_line(mule, receiver, caplog):
    receiver.error = OSError("disk full")
    mule.receive(encode([JOB]), None)
    (record,) = caplog.records
    assert (record.levelname, "is lost" in record.message) == ("CRITICAL", True)
    assert (record.job_id, record.task_name, record.executor) == (JOB.id, JOB.task, "mule")


def test_a_message_that_is_not_ours_goes_to_the_hook_before_ours(mule, receiver):
    got = []
    mule.receive(b"theirs", got.append)
    assert (got, receiver.rejected) == ([b"theirs"], [])


def test_a_message_that_is_nobodys_is_a_dead_letter(mule, receiver):
    mule.receive(b"whose?", None)
    assert receiver.rejected == [(b"whose?", "a message to a mule that is not ours")]


def test_a_message_that_the_hook_before_ours_cannot_handle_is_a_dead_letter(mule, receiver, caplog):
    def theirs(_message):
        raise KeyError("unknown")

    mule.receive(b"theirs", theirs)
    assert receiver.rejected == [(b"theirs", "KeyError: 'unknown'")]
    assert "theirs could not handle a message" in caplog.text


def test_a_message_of_ours_that_can_neither_be_read_nor_kept_is_lost_with_a_log_line(
    mule, receiver, caplog
):
    def nowhere(_payload):
        raise NotKept

    receiver.decode = nowhere
    mule.receive(encode([JOB]), None)
    assert receiver.ran == []
    assert caplog.messages == [f"a message of {len(encode([JOB]))} bytes is lost"]
