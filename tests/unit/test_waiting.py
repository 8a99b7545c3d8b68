"""The jobs of a spooler's directory, as others see them."""

import contextlib
import fcntl
import os
import signal
import time
from pathlib import Path

import pytest

from uwsgi_tasks import waiting as module
from uwsgi_tasks.codec import encode
from uwsgi_tasks.marks import Mark, Progress
from uwsgi_tasks.model import Job, State, Stop
from uwsgi_tasks.spool import PROBE, TICKET, SpoolDirectory
from uwsgi_tasks.spool_file import PREFIX, file_name, pack, pack_variables
from uwsgi_tasks.waiting import Own, Waiting

Q, R, AGAIN, GONE = State.QUEUED, State.RUNNING, State.RETRYING, State.CANCELLED
JOB = Job("3f-1", "shop.send", (1,), submitted_at=1000.0)
MANY = [JOB._replace(id=f"3f-2.{number}", args=(number,)) for number in range(4)]
SOON = 600.0


class Unknown:
    """An argument that only its own process can import."""


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "spool"
    (folder / "running").mkdir(parents=True)
    return SpoolDirectory(folder)


@pytest.fixture
def waiting(files):
    return Waiting(files)


def put(files, *jobs, age=None, priority=None, name=None):
    """Write jobs into the directory, *age* seconds ago."""
    first = jobs[0]
    name = name or file_name(first.id.partition(".")[0], first.attempt)
    files.write(encode(jobs), priority, name=name)
    if age is not None:
        at = time.time() - age
        os.utime(files.find(name), (at, at))
    return files.find(name)


def put_later(files, *jobs, priority=None, due=None):
    name = file_name(jobs[0].id.partition(".")[0], jobs[0].attempt)
    due = time.time() + SOON if due is None else due
    files.write_later(encode(jobs), due, priority, name=name)
    return files.delayed_path(name, due, priority)


class Spooler:
    """A process that runs the file of this name, under its lock; *deaf* to what would end it."""

    def __init__(self, files, name, *, done=None, deaf=False, locks=True):
        ready, self._told = os.pipe()
        self.pid = os.fork()
        if self.pid:
            assert os.read(ready, 1) == b"x"
            os.close(ready)
            os.close(self._told)
            return
        with contextlib.suppress(BaseException):
            mark = Mark(files.path / "running", b"1.1", ordered=False)
            mark.begin(name)
            if done:
                mark.advance(*done)
            # Its mark ends with it: who sees that it has gone finds how it has ended.
            signal.signal(signal.SIGALRM, signal.SIG_IGN if deaf else lambda *_: os._exit(0))
            with files.find(name).open("r+b") as file:
                if locks:
                    fcntl.lockf(file, fcntl.LOCK_EX)
                os.write(self._told, b"x")
                while True:
                    signal.pause()
        os._exit(1)

    def end(self):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def running(files):
    """Let another process run the file of this name."""
    started = []

    def start(name, **given):
        started.append(Spooler(files, name, **given))
        return started[-1]

    yield start
    for one in started:
        one.end()


# --- what waits


def test_in_an_empty_directory_nothing_waits(waiting):
    assert (len(waiting), list(waiting.standings()), waiting.find("3f-1")) == (0, [], None)


def test_all_that_is_known_of_a_job_that_waits_is_shown(files, waiting):
    put(files, JOB)
    found = waiting.find("3f-1")
    assert (found.id, found.task, found.executor, found.state) == (
        "3f-1",
        "shop.send",
        "spooler",
        Q,
    )
    assert (found.attempt, found.submitted_at, found.at) == (1, 1000.0, None)
    assert (found.priority, found.calls, found.place) == (None, 1, str(files.path))
    assert (found.worker, found.started_at, found.done, found.total) == (None,) * 4


def test_the_oldest_come_first_and_those_of_the_future_last(files, waiting):
    for number, age in enumerate([10, 30, 20]):
        put(files, JOB._replace(id=str(number)), age=age)
    put_later(files, JOB._replace(id="4"), due=time.time() + 700)
    put_later(files, JOB._replace(id="3"))
    assert [one.id for one in waiting.standings()] == ["1", "2", "0", "3", "4"]
    assert [one.id for one in waiting.standings(2)] == ["1", "2"]
    assert len(waiting) == 5


def test_what_runs_comes_first_though_its_time_is_put_ahead(files, waiting, running):
    put(files, JOB, age=10)
    put(files, JOB._replace(id="2"), age=-5)
    running(PREFIX + "2")
    assert [(one.id, one.state) for one in waiting.standings()] == [("2", R), ("3f-1", Q)]
    assert [one.id for one in waiting.standings(1)] == ["2"]


def test_what_runs_can_be_listed_alone(files, waiting, running):
    put(files, JOB)
    put(files, JOB._replace(id="2"), priority=5)
    running(PREFIX + "2")
    assert [(one.id, one.priority) for one in waiting.standings(running=True)] == [("2", 5)]


def test_what_has_just_ended_does_not_run(files, waiting, running):
    path = put(files, JOB)
    running(path.name)
    path.unlink()
    assert list(waiting.standings()) == []


def test_those_that_are_wanted_can_be_chosen(files, waiting):
    for number in range(5):
        put(files, JOB._replace(id=str(number), task=f"task{number % 2}"), age=10 - number)
    put_later(files, JOB._replace(id="5", task="task1"))
    wanted = waiting.standings(where=lambda one: one.task == "task1")
    assert [one.id for one in wanted] == ["1", "3", "5"]
    assert [one.id for one in waiting.standings(1, where=lambda one: one.task == "task1")] == ["1"]


def test_a_job_with_a_priority_is_found_in_its_folder(files, waiting):
    put(files, JOB, priority=7)
    assert (waiting.find("3f-1").priority, len(waiting)) == (7, 1)


def test_a_later_attempt_is_found_by_the_id(files, waiting):
    put(files, JOB._replace(attempt=3))
    found = waiting.find("3f-1")
    assert (found.state, found.attempt) == (AGAIN, 3)


@pytest.mark.parametrize("attempt", [1, 2])
def test_a_job_of_the_future_is_found_with_its_time(files, waiting, attempt):
    due = time.time() + SOON
    put_later(files, JOB._replace(attempt=attempt), priority=3, due=due)
    found = waiting.find("3f-1")
    assert (found.at, found.priority) == (pytest.approx(due, abs=0.01), 3)


@pytest.mark.parametrize("id_", ["3f", "3f-", "3f-11", "f-1", "3f-1.0", ""])
def test_no_other_job_is_taken_for_it(files, waiting, id_):
    put(files, JOB)
    put(files, JOB._replace(attempt=2))
    put_later(files, JOB._replace(attempt=3))
    assert (waiting.find(id_), waiting.read(id_), waiting.cancel(id_, Stop.KILL)) == (None,) * 3
    assert len(waiting) == 3


@pytest.mark.parametrize("name", [TICKET, f"{PROBE}0f"])
def test_what_is_no_job_of_anybody_is_not_shown(files, waiting, name):
    (files.path / name).write_bytes(pack({"a": "b"}, b""))
    assert (len(waiting), list(waiting.standings())) == (0, [])


@pytest.mark.parametrize(
    "content", [b"", b"cut", pack({"key": "value"}, b"theirs"), pack({}, encode([JOB])[:-1])]
)
def test_what_cannot_be_read_is_shown_without_its_task(files, waiting, content):
    (files.path / f"{PREFIX}web1_1").write_bytes(content)
    (found,) = waiting.standings()
    assert (found.id, found.task, found.state) == ("web1_1", "", Q)
    assert time.time() - 60 < found.submitted_at <= time.time()


def test_what_cannot_be_read_and_is_run_is_shown_as_running(files, waiting, running):
    name = f"{PREFIX}web1_1"
    (files.path / name).write_bytes(pack({"key": "value"}, b"theirs"))
    running(name)
    assert [one.state for one in waiting.standings()] == [R]


def test_what_goes_between_the_listing_and_the_look_is_passed_over(files, waiting, monkeypatch):
    put(files, JOB)

    def gone(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_bytes", gone)
    assert (list(waiting.standings()), waiting.find("3f-1"), waiting.read("3f-1")) == (
        *([], None),
        None,
    )


def test_what_goes_before_its_age_is_known_is_passed_over(files, waiting, monkeypatch):
    path = put(files, JOB)
    put(files, JOB._replace(id="2"))
    entries = list(files.waiting())
    monkeypatch.setattr(files, "waiting", lambda: iter(entries))
    path.unlink()
    assert [one.id for one in waiting.standings()] == ["2"]


@pytest.mark.parametrize("priority", [None, 5])
@pytest.mark.parametrize("attempt", [1, 2])
def test_a_job_that_is_moved_in_between_two_looks_is_found(
    files, waiting, monkeypatch, priority, attempt
):
    put_later(files, JOB._replace(attempt=attempt), priority=priority, due=time.time() + 0.01)
    delayed = files.delayed

    def moves():
        files.move_in(time.time() + SOON)
        return delayed()

    monkeypatch.setattr(files, "delayed", moves)
    assert waiting.find("3f-1").attempt == attempt


# --- what is in a job


def test_a_job_can_be_read(files, waiting):
    put(files, JOB)
    assert waiting.read("3f-1") == JOB


def test_of_a_batch_one_call_can_be_read(files, waiting):
    put(files, *MANY)
    assert waiting.read("3f-2.3") == MANY[3]


def test_reading_a_job_imports_nothing(files, waiting):
    put(files, JOB._replace(args=(Unknown(),)))
    assert repr(waiting.read("3f-1").args) == f"(<{__name__}.Unknown()>,)"


def test_a_job_of_the_future_can_be_read(files, waiting):
    put_later(files, JOB)
    assert waiting.read("3f-1") == JOB


# --- what runs


def test_how_far_a_job_has_come_is_shown(files, waiting, running):
    put(files, JOB)
    process = running(file_name("3f-1"), done=(1, 2))
    found = waiting.find("3f-1")
    assert (found.state, found.done, found.total) == (R, 1, 2)
    assert f":{process.pid} spooler" in found.worker
    assert time.time() - 60 < found.started_at <= time.time()


def test_of_a_batch_the_present_call_runs_and_the_others_wait(files, waiting, running):
    put(files, *MANY)
    Progress(files.path / "running", file_name("3f-2"), 4).note(1)
    running(file_name("3f-2"))
    found = [waiting.find(job.id) for job in MANY]
    assert found[0] is None
    assert [one.state for one in found[1:]] == [R, Q, Q]


def test_a_batch_is_listed_as_one_with_the_calls_that_are_left(files, waiting):
    put(files, *MANY)
    Progress(files.path / "running", file_name("3f-2"), 4).note(1)
    (one,) = waiting.standings()
    assert (one.id, one.calls, one.state) == ("3f-2.1", 3, Q)


def test_a_batch_that_is_done_and_not_yet_gone_has_no_call_left(files, waiting):
    put(files, *MANY)
    Progress(files.path / "running", file_name("3f-2"), 4).note(4)
    assert [one.calls for one in waiting.standings()] == [0]
    assert waiting.find("3f-2.3") is None


# --- cancelling what waits


@pytest.mark.parametrize("stop", [Stop.ASKED, Stop.KILL])
@pytest.mark.parametrize("attempt", [1, 2])
@pytest.mark.parametrize("priority", [None, 5])
@pytest.mark.parametrize("write", [put, put_later])
def test_a_job_that_waits_is_taken_away(files, waiting, stop, attempt, priority, write):
    job = JOB._replace(attempt=attempt)
    write(files, job, priority=priority)
    assert waiting.cancel("3f-1", stop) == (GONE, job)
    assert (len(waiting), waiting.cancel("3f-1", stop)) == (0, None)


def test_only_the_job_that_is_meant_is_taken_away(files, waiting):
    put(files, JOB)
    put(files, JOB._replace(id="3f-11"))
    waiting.cancel("3f-1", Stop.ASKED)
    assert [one.id for one in waiting.standings()] == ["3f-11"]


@pytest.mark.parametrize("later", [False, True])
def test_of_a_batch_one_call_is_left_out(files, waiting, later):
    (put_later if later else put)(files, *MANY)
    assert waiting.cancel("3f-2.0", Stop.ASKED) == (GONE, MANY[0])
    assert waiting.cancel("3f-2.2", Stop.ASKED) == (GONE, MANY[2])
    progress = Progress(files.path / "running", file_name("3f-2"), 4)
    assert [progress.is_cancelled(index, surely=True) for index in range(4)] == [
        *(True, False),
        *(True, False),
    ]
    assert len(waiting) == 1


@pytest.mark.parametrize("later", [False, True])
def test_a_call_that_is_left_out_does_not_wait(files, waiting, later):
    (put_later if later else put)(files, *MANY)
    waiting.cancel("3f-2.2", Stop.ASKED)
    assert waiting.find("3f-2.2") is None
    assert waiting.find("3f-2.1").state is Q


def test_a_call_is_cancelled_once(files, waiting):
    put(files, *MANY)
    waiting.cancel("3f-2.2", Stop.ASKED)
    assert waiting.cancel("3f-2.2", Stop.ASKED) is None


def test_a_call_that_is_done_is_not_cancelled(files, waiting):
    put(files, *MANY)
    Progress(files.path / "running", file_name("3f-2"), 4).note(2)
    assert waiting.cancel("3f-2.1", Stop.KILL) is None


def test_a_call_that_a_batch_does_not_have_is_not_cancelled(files, waiting):
    put(files, *MANY)
    assert waiting.cancel("3f-2.9", Stop.KILL) is None


def test_where_nothing_has_run_yet_a_call_can_be_left_out(tmp_path):
    files = SpoolDirectory(tmp_path)
    put(files, *MANY)
    assert Waiting(files).cancel("3f-2.2", Stop.ASKED) == (GONE, MANY[2])


def test_a_job_of_the_future_that_cannot_be_read_is_left_alone(files, waiting):
    path = put_later(files, JOB)
    path.write_bytes(pack_of_others())
    assert waiting.cancel("3f-1", Stop.KILL) is None
    assert path.exists()


def pack_of_others():
    return pack({"key": "value"}, b"theirs")


@pytest.mark.parametrize("later", [False, True])
def test_a_job_that_goes_while_it_is_taken_away_is_not_there(files, waiting, later, monkeypatch):
    path = (put_later if later else put)(files, JOB)
    monkeypatch.setattr(waiting, "_paths", lambda _id: [(path, None)])
    path.unlink()
    assert waiting.cancel("3f-1", Stop.ASKED) is None


def test_a_job_that_is_moved_in_meanwhile_is_found_all_the_same(files, waiting, monkeypatch):
    path = put_later(files, JOB)
    paths = waiting._paths

    def moves(id_):
        for found in list(paths(id_)):
            if path.exists():
                path.rename(files.path / file_name("3f-1"))
            yield found

    monkeypatch.setattr(waiting, "_paths", moves)
    assert waiting.cancel("3f-1", Stop.ASKED) == (GONE, JOB)
    assert len(waiting) == 0


def test_a_job_of_the_future_that_somebody_else_takes_is_not_ours(files, waiting, monkeypatch):
    path = put_later(files, JOB)
    taken = files.take_delayed
    monkeypatch.setattr(files, "take_delayed", lambda path: path.unlink() or taken(path))
    assert (waiting.cancel("3f-1", Stop.ASKED), path.exists()) == (None, False)


# --- cancelling what runs


def test_a_job_that_runs_is_asked_to_stop(files, waiting, running):
    path = put(files, JOB)
    process = running(path.name)
    assert waiting.cancel("3f-1", Stop.ASKED) == (R, JOB)
    assert path.exists()
    process.end()


def test_a_job_that_runs_is_ended_by_an_alarm(files, waiting, running):
    path = put(files, JOB)
    process = running(path.name)
    assert waiting.cancel("3f-1", Stop.KILL) == (R, JOB)
    assert process.end() == 0


def test_a_job_that_does_not_hear_the_alarm_is_ended_with_its_process(
    files, waiting, running, monkeypatch, caplog
):
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    path = put(files, JOB)
    process = running(path.name, deaf=True)
    assert waiting.cancel("3f-1", Stop.KILL) == (R, JOB)
    assert process.end() == -signal.SIGKILL
    assert f"process {process.pid} did not end {path.name}, and is killed" in caplog.text


def test_a_process_that_has_gone_on_to_the_next_call_is_not_ended(
    files, waiting, running, monkeypatch
):
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    path = put(files, *MANY)
    progress = Progress(files.path / "running", path.name, len(MANY))
    progress.note(1)
    process, sent = running(path.name, deaf=True), []

    def hears(*signals):
        sent.append(signals)
        progress.note(2)

    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", hears)
        assert waiting.cancel("3f-2.1", Stop.KILL) == (R, MANY[1])
    assert sent == [(process.pid, signal.SIGALRM)]


def test_a_call_that_does_not_hear_the_alarm_is_ended_with_its_process(
    files, waiting, running, monkeypatch
):
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    path = put(files, *MANY)
    Progress(files.path / "running", path.name, len(MANY)).note(1)
    process = running(path.name, deaf=True)
    assert waiting.cancel("3f-2.1", Stop.KILL) == (R, MANY[1])
    assert process.end() == -signal.SIGKILL


def test_a_process_that_ends_before_it_is_killed_is_no_fault(files, waiting, running, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", -1)
    path = put(files, JOB)
    running(path.name, deaf=True)
    kill = os.kill

    def late(pid, number):
        kill(pid, number)
        if number == signal.SIGKILL:
            raise ProcessLookupError

    monkeypatch.setattr(os, "kill", late)
    assert waiting.cancel("3f-1", Stop.KILL) == (R, JOB)


def test_a_job_that_has_just_been_taken_is_asked_as_soon_as_it_can_be(
    files, waiting, running, monkeypatch
):
    monkeypatch.setattr(module, "_MOMENT", 60)
    path, looks, ask = put(files, JOB), [], waiting._peers.stop
    running(path.name)

    def late(*args):
        looks.append(args)
        return ask(*args) if len(looks) > 3 else None

    monkeypatch.setattr(waiting._peers, "stop", late)
    assert waiting.cancel("3f-1", Stop.ASKED) == (R, JOB)
    assert len(looks) == 4


def test_a_file_that_somebody_else_has_locked_is_no_process_to_be_killed(files, waiting):
    path = put(files, JOB)
    ready, done = os.pipe()
    child = os.fork()
    if child == 0:
        with path.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            os.write(done, b"x")
            signal.pause()
    os.read(ready, 1)
    try:
        assert waiting.cancel("3f-1", Stop.KILL) is None
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(done)


@pytest.mark.parametrize("index", [2, 3])
def test_of_a_batch_that_runs_a_later_call_is_surely_left_out(files, waiting, running, index):
    put(files, *MANY)
    Progress(files.path / "running", file_name("3f-2"), 4).note(1)
    running(file_name("3f-2"))
    assert waiting.cancel(MANY[index].id, Stop.ASKED) == (GONE, MANY[index])


def test_of_a_batch_the_call_that_runs_is_asked(files, waiting, running):
    put(files, *MANY)
    Progress(files.path / "running", file_name("3f-2"), 4).note(1)
    running(file_name("3f-2"))
    assert waiting.cancel("3f-2.1", Stop.ASKED) == (R, MANY[1])
    assert waiting.cancel("3f-2.0", Stop.ASKED) is None
    assert waiting.cancel("3f-2.9", Stop.ASKED) is None


# --- what the present process runs itself: its file must not be opened


@pytest.fixture
def own(files, monkeypatch):
    """Let this process run a file; opening it ends the test."""

    def run(path, payload):
        mark = Mark(files.path / "running", b"1.1", ordered=False)
        mark.begin(path.name)
        open_ = Path.open

        def checked(self, *args, **kwargs):
            assert self != path, "the lock of uWSGI is lost"
            return open_(self, *args, **kwargs)

        monkeypatch.setattr(Path, "open", checked)
        return mark, Waiting(files, Own(running=mark.running(), payload=payload, mark=mark))

    return run


def test_a_job_that_runs_here_is_seen_as_running(files, own):
    _, waiting = own(put(files, JOB), encode([JOB]))
    assert (waiting.find("3f-1").state, waiting.read("3f-1")) == (R, JOB)
    assert [one.state for one in waiting.standings()] == [R]


def test_a_job_that_runs_here_can_be_asked_to_stop(files, own):
    mark, waiting = own(put(files, JOB), encode([JOB]))
    assert waiting.cancel("3f-1", Stop.ASKED) == (R, JOB)
    assert mark.asked_to_stop("3f-1") is Stop.ASKED


def test_a_job_can_kill_itself(files, own, monkeypatch):
    mark, waiting = own(put(files, JOB), encode([JOB]))
    killed = []
    monkeypatch.setattr(os, "kill", lambda *args: killed.append(args))
    assert waiting.cancel("3f-1", Stop.KILL) == (R, JOB)
    assert killed == [(os.getpid(), signal.SIGALRM)]
    assert mark.asked_to_stop("3f-1") is Stop.KILL


def test_beside_what_runs_here_others_are_taken_away(files, own):
    put(files, JOB._replace(id="2"))
    _, waiting = own(put(files, JOB), encode([JOB]))
    assert waiting.cancel("2", Stop.ASKED)[0] is GONE


def test_what_runs_here_and_is_not_ours_has_no_jobs(files, own):
    path = files.path / f"{PREFIX}web1_1"
    path.write_bytes(pack_variables({}))
    _, waiting = own(path, b"theirs")
    assert [(one.id, one.task, one.state) for one in waiting.standings()] == [("web1_1", "", R)]
