"""Into the spooler."""

import os
import signal
import time
from zlib import crc32

import pytest

from tests.fakes import PREFIX, FakeUwsgi, as_env, legacy
from uwsgi_tasks import ConfigurationError, InvalidTask, SubmitError, marks
from uwsgi_tasks.codec import decode, encode
from uwsgi_tasks.crashes import REASON
from uwsgi_tasks.errors import NotKept, Unpicklable
from uwsgi_tasks.executors import spooler as module
from uwsgi_tasks.executors.spooler import SpoolerExecutor
from uwsgi_tasks.marks import Mark, Progress
from uwsgi_tasks.model import Job, State, Stop
from uwsgi_tasks.server import Server
from uwsgi_tasks.settings import Settings
from uwsgi_tasks.spool import TICKET
from uwsgi_tasks.spool_file import pack, unpack
from uwsgi_tasks.task import options

JOB = Job("1", "shop.send", (1,))
FILE = PREFIX + "web1_1_1_1_1_1"
OK, RETRY = -2, -1

pytestmark = pytest.mark.usefixtures("wakes", "home")


class Receiver:
    """Runs nothing, and keeps what it was given."""

    def __init__(self):
        self.ran, self.given, self.buried, self.rejected = [], [], [], []
        self.cancelled = []
        self.action = lambda _job: None

    def decode(self, payload):
        return decode(payload)

    def run(self, job, payload=None, index=0):
        self.given.append((payload, index))
        self.ran.append(job)
        return self.action(job)

    def cancel(self, job):
        self.cancelled.append(job)

    def bury(self, job, reason):
        self.buried.append((job, reason))

    def reject(self, payload, reason, variables=None):
        self.rejected.append((payload, reason, variables))


@pytest.fixture
def path(tmp_path):
    folder = tmp_path / "spool"
    folder.mkdir(mode=0o750)
    return folder


@pytest.fixture
def uwsgi(path):
    return FakeUwsgi(spoolers=(str(path),))


def executor_of(uwsgi, **settings):
    made = SpoolerExecutor(Server(uwsgi), lambda: Settings(**settings))
    made.listen(Receiver())
    if uwsgi:
        # A new process has what its master has placed, and nothing of another test's object.
        for hook in ("spooler", "mule_msg_hook", "post_fork_hook"):
            vars(uwsgi).pop(hook, None)
        with uwsgi.being("master"):
            made._server.install(made.receive, lambda *_: None, lambda: None)
    return made


@pytest.fixture
def spooler(uwsgi):
    return executor_of(uwsgi)


def started(made):
    """Let the process of the test be the spooler."""
    made._server._uwsgi.role = "spooler"
    made.start()
    return made


def place(path, name=FILE, jobs=(JOB,), due=0.0):
    """Put a spool file into the directory, as if it had been written long ago."""
    (path / name).write_bytes(pack({}, encode(jobs)))
    os.utime(path / name, (due, due))
    return path / name


def in_spool(path):
    """The jobs that wait in the directory."""
    return [
        job
        for file in sorted(path.rglob(f"*{PREFIX}*"))
        if file.name != TICKET and "dead" not in file.parts and not file.suffix
        for job in decode(unpack(file.read_bytes())[1])
    ]


# --- declaring


@pytest.mark.parametrize(
    ("inside", "settings", "expected"),
    [(True, {}, True), (False, {"spooler_dir": "/a"}, True), (False, {}, False)],
)
def test_it_is_ready_where_there_is_a_spooler_or_its_directory(uwsgi, inside, settings, expected):
    assert executor_of(uwsgi if inside else None, **settings).ready() is expected


def test_a_setting_does_not_make_a_spooler_of_a_server_without_one():
    assert executor_of(FakeUwsgi(), spooler_dir="/a").ready() is False


def test_a_priority_without_spooler_ordered_is_refused_with_the_remedy(spooler):
    with pytest.raises(InvalidTask, match="spooler-ordered = true"):
        spooler.check(options({"priority": 5}))


def test_a_spooler_that_this_server_lacks_is_refused_with_the_remedy(spooler):
    with pytest.raises(InvalidTask, match="add 'spooler = /other'"):
        spooler.check(options({"spooler": "/other"}))


def test_a_spooler_may_be_named_by_a_link(spooler, path, tmp_path):
    (tmp_path / "link").symlink_to(path)
    assert spooler.check(options({"spooler": tmp_path / "link"})) is None


def test_a_server_that_looks_into_priorities_takes_them(path):
    made = executor_of(FakeUwsgi(spoolers=(str(path),), ordered=True))
    assert made.check(options({"priority": 5})) is None


def test_outside_uwsgi_nothing_is_known_and_nothing_refused():
    assert executor_of(None).check(options({"priority": 5, "spooler": "/x"})) is None


def test_a_directory_that_everybody_may_write_to_is_refused(spooler, path):
    path.chmod(0o777)
    with pytest.raises(ConfigurationError, match="chmod o-w"):
        spooler.check_directories()


def test_directories_in_order_are_taken(spooler):
    assert spooler.check_directories() is None


# --- submitting


def test_a_job_is_one_file_that_is_called_after_it(spooler, path):
    spooler.submit([JOB])
    (file,) = path.glob("uwsgi*")
    assert (file.name, list(decode(unpack(file.read_bytes())[1]))) == (PREFIX + "1", [JOB])


def test_the_file_of_a_later_attempt_says_which_one_it_is(spooler, path):
    spooler.submit([JOB._replace(attempt=3)])
    assert [file.name for file in path.glob("uwsgi*")] == [PREFIX + "1_3"]


def test_the_file_of_many_calls_is_called_after_what_their_ids_have_in_common(spooler, path):
    spooler.submit([JOB._replace(id=f"3f-7.{number}") for number in range(3)])
    assert [file.name for file in path.glob("uwsgi*")] == [PREFIX + "3f-7"]


def test_an_attempt_that_was_submitted_twice_is_one_file(spooler, path):
    spooler.submit([JOB])
    spooler.submit([JOB])
    assert in_spool(path) == [JOB]


@pytest.mark.parametrize("due", [None, 9e9], ids=["now", "later"])
def test_what_is_to_be_durable_is_synced(spooler, path, monkeypatch, due):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(handle) or fsync(handle))
    spooler.submit([JOB._replace(at=due)])
    before = len(synced)
    spooler.submit([JOB._replace(id="2", at=due, durable=True)])
    assert before == 0
    assert len(synced) >= 2


def test_many_jobs_are_one_file(spooler, path):
    jobs = [JOB._replace(id=str(number)) for number in range(50)]
    spooler.submit(jobs)
    assert (len(list(path.glob(PREFIX + "*"))), in_spool(path)) == (1, jobs)


def test_outside_uwsgi_the_file_is_written_into_the_directory_that_is_set(path):
    executor_of(None, spooler_dir=str(path)).submit([JOB])
    assert in_spool(path) == [JOB]


def test_outside_uwsgi_a_job_may_name_its_directory(path):
    executor_of(None).submit([JOB._replace(spooler=str(path))])
    assert len(in_spool(path)) == 1


@pytest.mark.parametrize("inside", [True, False])
def test_a_job_of_the_future_waits_beside_the_others(uwsgi, path, inside):
    made = executor_of(uwsgi if inside else None, spooler_dir=str(path))
    made.submit([JOB._replace(at=time.time() + 60)])
    (file,) = [file for file in path.rglob(f"*{PREFIX}*") if file.name != TICKET]
    assert file.parent.parent == path / "later"


def test_a_job_whose_time_has_come_does_not_wait(spooler, path):
    spooler.submit([JOB._replace(at=time.time() - 1)])
    assert [file.name for file in path.glob(PREFIX + "*")] == [PREFIX + "1"]


def test_a_job_goes_to_the_spooler_that_it_names(tmp_path, path):
    (tmp_path / "other").mkdir()
    made = executor_of(FakeUwsgi(spoolers=(str(path), str(tmp_path / "other"))))
    made.submit([JOB._replace(spooler=str(tmp_path / "other"))])
    assert (len(in_spool(path)), len(in_spool(tmp_path / "other"))) == (0, 1)


@pytest.mark.parametrize("inside", [True, False])
def test_a_priority_is_the_folder_of_the_file(path, inside):
    uwsgi = FakeUwsgi(spoolers=(str(path),), ordered=True) if inside else None
    executor_of(uwsgi, spooler_dir=str(path)).submit([JOB._replace(priority=5)])
    assert [file.parent.name for file in path.rglob(PREFIX + "*")] == ["5"]


def test_a_spooler_that_this_server_lacks_is_refused_at_the_call(spooler):
    with pytest.raises(SubmitError, match="this uWSGI serves"):
        spooler.submit([JOB._replace(spooler="/other")])


def test_without_any_directory_a_job_is_refused_with_the_remedy():
    with pytest.raises(SubmitError, match="set 'spooler_dir'"):
        executor_of(None).submit([JOB])


def test_a_server_without_a_spooler_is_refused_with_the_remedy():
    with pytest.raises(SubmitError, match="add 'spooler = "):
        executor_of(FakeUwsgi()).submit([JOB])


def test_a_directory_that_is_missing_is_refused_at_the_call(tmp_path):
    with pytest.raises(SubmitError, match="is not there"):
        executor_of(None, spooler_dir=str(tmp_path / "missing")).submit([JOB])


def test_a_priority_that_the_living_spoolers_would_ignore_is_refused(path, monkeypatch):
    made = executor_of(None, spooler_dir=str(path))
    monkeypatch.setattr(module.Peers, "ordered", lambda _self: False)
    with pytest.raises(SubmitError, match="spooler-ordered = true"):
        made.submit([JOB._replace(priority=5)])


def test_spoolers_that_do_not_know_us_are_complained_about_once(spooler, monkeypatch, caplog):
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    spooler.submit([JOB])
    early = caplog.text
    now += 6
    for _ in range(3):
        spooler.submit([JOB])
        now += 100
    assert early == ""
    assert caplog.text.count("call set_uwsgi_callbacks()") == 1


def test_spoolers_that_answer_are_not_complained_about(spooler, monkeypatch, caplog):
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    spooler.submit([JOB])
    monkeypatch.setattr(module.Peers, "wake", lambda _self: 1)
    now += 6
    spooler.submit([JOB])
    assert caplog.text == ""


def test_the_master_does_not_complain_before_it_has_forked(spooler, uwsgi, monkeypatch, caplog):
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with uwsgi.being("master"):
        spooler.submit([JOB])
        now += 6
        spooler.submit([JOB])
    assert caplog.text == ""


# --- waking


class Woken:
    """The processes that serve a directory; they only count what they are told."""

    def __init__(self, folder, expected=float("inf")):
        self.expected, self.asked = expected, 0

    def wake(self):
        self.asked += 1
        return 0


@pytest.fixture
def peers(monkeypatch):
    made = []
    monkeypatch.setattr(module, "Peers", lambda *args: made.append(Woken(*args)) or made[-1])
    return made


@pytest.mark.parametrize(
    ("setup", "expected"),
    [({}, 1), ({"spooler_external": b"/other"}, 1), (None, float("inf"))],
)
def test_those_who_serve_the_directory_are_woken_by_each_job(path, peers, setup, expected):
    uwsgi = None if setup is None else FakeUwsgi(spoolers=(str(path),), **setup)
    made = executor_of(uwsgi, spooler_dir=str(path))
    made.submit([JOB])
    made.submit([JOB])
    (found,) = peers
    assert (found.asked, found.expected) == (2, expected)


class Sleeper:
    """A process that ends when it is woken."""

    def __init__(self):
        ready, done = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            signal.signal(signal.SIGUSR1, lambda *_: os._exit(7))
            os.write(done, b"x")
            while True:
                signal.pause()
        os.read(ready, 1)
        os.close(ready)
        os.close(done)

    def end(self):
        os.kill(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.mark.parametrize(
    ("setup", "known", "end"),
    [({}, 0, 7), ({}, 1, -9), ({"spooler_external": b"/other"}, 0, -9)],
    ids=["not yet known", "known", "of another server"],
)
def test_a_spooler_that_has_not_loaded_us_is_woken_by_its_number(
    path, monkeypatch, setup, known, end
):
    uwsgi = FakeUwsgi(spoolers=(str(path),), **setup)
    monkeypatch.setattr(module.Peers, "wake", lambda _self: known)
    process = Sleeper()
    uwsgi.spooler_pids = lambda: [process.pid]
    executor_of(uwsgi).submit([JOB])
    if end == 7:
        assert os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1]) == 7
    else:
        assert process.end() == -9


@pytest.mark.parametrize("setup", [{"spooler_external": b"/other"}, None])
def test_the_spoolers_of_another_server_are_not_complained_about(
    path, peers, setup, monkeypatch, caplog
):
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    uwsgi = None if setup is None else FakeUwsgi(spoolers=(str(path),), **setup)
    made = executor_of(uwsgi, spooler_dir=str(path))
    made.submit([JOB])
    now += 6
    made.submit([JOB])
    assert caplog.text == ""


def test_a_job_is_submitted_even_if_nobody_could_be_woken(path, spooler, monkeypatch, caplog):
    def fails(*_args, **_kwargs):
        raise OSError("too many open files")

    monkeypatch.setattr(module.Peers, "wake", fails)
    assert spooler.submit([JOB]) == ()
    assert in_spool(path) == [JOB]
    assert f"the spoolers of {path} could not be woken: too many open files" in caplog.text


def test_nobody_is_woken_before_uwsgi_would_run_what_was_written(path, peers, monkeypatch):
    made = executor_of(FakeUwsgi(spoolers=(str(path),)))
    made.submit([JOB])
    (found,) = peers
    asked = []
    monkeypatch.setattr(module, "settle", lambda: asked.append((in_spool(path), found.asked)))
    made.submit([JOB._replace(id="2")])
    assert asked == [([JOB, JOB._replace(id="2")], 1)]
    assert found.asked == 2


def test_a_place_that_was_known_before_the_fork_counts_the_others_anew(path, peers):
    uwsgi = FakeUwsgi(spoolers=(str(path), str(path)))
    made = executor_of(uwsgi)
    with uwsgi.being("master"):
        made.submit([JOB])
    started(made)
    made.submit([JOB])
    assert [(found.expected, found.asked) for found in peers] == [(2, 1), (1, 1)]


# --- running


def test_a_file_that_was_run_is_done_with(spooler, uwsgi, path):
    place(path)
    assert (uwsgi.look(), spooler._receiver.ran, in_spool(path)) == (1, [JOB], [])
    assert spooler._receiver.given == [(encode([JOB]), 0)]


def test_the_next_attempt_is_written_before_the_last_is_done_with(spooler, uwsgi, path):
    place(path)
    spooler._receiver.action = lambda job: job.again(time.time() + 60)
    uwsgi.look()
    assert [job.attempt for job in in_spool(path)] == [2]


def test_a_job_that_can_be_kept_nowhere_stays_and_is_put_off(spooler, uwsgi, path, caplog):
    file = place(path)

    def nowhere(_job):
        raise NotKept("disk full")

    spooler._receiver.action = nowhere
    before = time.time()
    assert uwsgi.look() == 0
    assert before + 5 - 0.01 <= file.stat().st_mtime <= time.time() + 5 + 0.01
    assert f"{FILE} stays in the spooler" in caplog.text


def test_a_next_attempt_that_cannot_be_written_keeps_the_file(spooler, uwsgi, path, monkeypatch):
    def full(*_args, **_kwargs):
        raise SubmitError("no space left")

    place(path)
    monkeypatch.setattr(module.spool.SpoolDirectory, "write", full)
    spooler._receiver.action = lambda job: job.again(None)
    assert (uwsgi.look(), len(in_spool(path))) == (0, 1)


def test_a_next_attempt_that_cannot_be_pickled_is_a_dead_letter(spooler, uwsgi, path):
    place(path)
    spooler._receiver.action = lambda job: job.again(None, buffer={"f": lambda: 0})
    uwsgi.look()
    ((job, reason),) = spooler._receiver.buried
    assert (job.attempt, "the buffer" in reason, in_spool(path)) == (2, True, [])
    with pytest.raises(Unpicklable):
        encode([job])


def test_a_file_is_put_off_also_where_a_task_has_left_the_directory(spooler, uwsgi, path):
    file = place(path)

    def elsewhere(_job):
        os.chdir("/")
        raise NotKept

    spooler._receiver.action = elsewhere
    uwsgi.look()
    assert file.stat().st_mtime > time.time()


def test_a_file_that_is_gone_when_it_is_put_off_is_no_fault(spooler, path):
    started(spooler)
    spooler._receiver.action = lambda _job: 1 / 0
    assert spooler.receive({"spooler_task_name": FILE, "body": encode([JOB])}, None) == RETRY


def test_where_several_serve_a_directory_a_running_file_is_put_ahead(path):
    uwsgi = FakeUwsgi(spoolers=(str(path), str(path)))
    made = executor_of(uwsgi)
    file = place(path)
    seen = []
    made._receiver.action = lambda _job: seen.append(file.stat().st_mtime)
    before = time.time()
    uwsgi.look()
    assert before + 5 - 0.01 <= seen[0] <= time.time() + 5 + 0.01


def test_a_job_that_was_submitted_meanwhile_makes_one_more_pass(spooler, uwsgi, path, wakes):
    place(path)
    follow = iter([JOB])
    spooler._receiver.action = lambda job: job.again(None) if next(follow, None) else None
    uwsgi.look()
    assert wakes == [signal.SIGUSR1]


def test_a_job_that_submits_nothing_makes_no_more_passes(spooler, uwsgi, path, wakes):
    place(path)
    uwsgi.look()
    assert wakes == []


def test_what_is_due_is_moved_in_and_makes_one_more_pass(spooler, uwsgi, path, clock, wakes):
    spooler.submit([JOB._replace(at=time.time() + 60)])
    clock.advance(61)
    before = uwsgi.look()
    assert (before, wakes, uwsgi.look()) == (0, [signal.SIGUSR1], 1)


def test_a_ticket_that_comes_too_early_makes_no_more_passes(spooler, uwsgi, path, wakes):
    spooler.submit([JOB._replace(at=time.time() + 600)])
    os.utime(path / TICKET, (0, 0))
    uwsgi.look()
    assert wakes == []
    assert (path / TICKET).stat().st_mtime > time.time()


def test_the_ticket_stays_when_all_was_moved_in(spooler, uwsgi, path, clock):
    spooler.submit([JOB._replace(at=time.time() + 60)])
    clock.advance(61)
    uwsgi.look()
    assert (path / TICKET).exists()


def test_a_batch_runs_call_by_call(spooler, uwsgi, path):
    jobs = [JOB._replace(id=str(number)) for number in range(5)]
    file = place(path, jobs=jobs)
    payload = unpack(file.read_bytes())[1]
    assert (uwsgi.look(), spooler._receiver.ran) == (1, jobs)
    # And each comes with where it can be read again.
    assert spooler._receiver.given == [(payload, number) for number in range(5)]


def test_of_a_batch_each_call_is_tried_again_by_itself(spooler, uwsgi, path):
    place(path, jobs=[JOB._replace(id=str(number)) for number in range(5)])
    spooler._receiver.action = lambda job: job.again(None) if job.id == "3" else None
    uwsgi.look()
    assert [(job.id, job.attempt) for job in in_spool(path)] == [("3", 2)]


def test_of_a_batch_that_was_cut_off_only_the_rest_is_run(spooler, uwsgi, path):
    place(path, jobs=[JOB._replace(id=str(number)) for number in range(5)])
    fuse = iter(range(2))

    def fails_at_the_third(_job):
        if next(fuse, None) is None:
            raise NotKept

    spooler._receiver.action = fails_at_the_third
    uwsgi.look()
    os.utime(path / FILE, (0, 0))
    spooler._receiver.action = lambda _job: None
    uwsgi.look()
    assert [job.id for job in spooler._receiver.ran] == ["0", "1", "2", "2", "3", "4"]
    assert [index for _, index in spooler._receiver.given] == [0, 1, 2, 2, 3, 4]


def test_what_is_known_of_a_batch_stays_until_uwsgi_has_removed_its_file(spooler, uwsgi, path):
    place(path, jobs=[JOB._replace(id=str(number)) for number in range(3)])
    uwsgi.look()
    # Killed before that, its process would leave a file of which nothing was done.
    assert Progress.read(path / "running", FILE) == 3

    place(path, PREFIX + "other")
    uwsgi.look()
    assert list((path / "running").glob("*.done")) == []


@pytest.mark.parametrize(("index", "told"), [(0, ["0"]), (1, [])])
def test_of_a_batch_a_call_that_was_cancelled_is_left_out(spooler, uwsgi, path, index, told):
    jobs = [JOB._replace(id=str(number)) for number in range(3)]
    place(path, jobs=jobs)
    (path / "running").mkdir()
    # Of the first, who cancelled it cannot be sure that it has not begun, and notes no end.
    assert Progress(path / "running", FILE, 3).cancel(index) is (not told)
    assert uwsgi.look() == 1
    assert spooler._receiver.ran == [job for job in jobs if job.id != str(index)]
    assert [job.id for job in spooler._receiver.cancelled] == told


# --- what is not ours


def test_a_file_of_others_goes_to_the_callback_before_ours(spooler):
    started(spooler)
    got = []
    answer = spooler.receive(
        {"spooler_task_name": FILE, b"x": b"1"}, lambda env: got.append(env) or OK
    )
    assert (answer, len(got), spooler._receiver.rejected) == (OK, 1, [])


@pytest.mark.parametrize("answer", [RETRY, 0, None])
def test_a_file_of_others_that_stays_is_not_run_more_often_than_without_us(
    spooler, uwsgi, path, answer
):
    started(spooler)
    uwsgi.opt["spooler-frequency"] = b"20"
    file = place(path)
    os.chdir(path)
    before = time.time()
    assert spooler.receive({"spooler_task_name": FILE, b"x": b"1"}, lambda _env: answer) == answer
    assert before + 20 - 0.01 <= file.stat().st_mtime <= time.time() + 20 + 0.01


def test_a_file_of_nobody_is_a_dead_letter_with_all_that_was_in_it(spooler):
    started(spooler)
    env = {"spooler_task_name": FILE, "body": b"b", b"key": b"caf\xe9"}
    assert spooler.receive(env, None) == OK
    ((payload, reason, variables),) = spooler._receiver.rejected
    assert (payload, reason) == (b"b", "nobody knows what to do with this spool file")
    assert variables == {"key": b"caf\xe9"}


def decorators(function):
    function.__module__ = "uwsgidecorators"
    return function


@pytest.mark.parametrize(("key", "theirs"), [(b"ud_spool_func", 1), (b"other", 0)])
def test_uwsgidecorators_gets_what_it_wrote_and_no_more(spooler, key, theirs):
    started(spooler)
    got = []
    callback = decorators(lambda env: got.append(env) or OK)
    spooler.receive({"spooler_task_name": FILE, key: b"1"}, callback)
    assert (len(got), len(spooler._receiver.rejected)) == (theirs, 1 - theirs)


def test_a_file_of_0_7_is_run(spooler):
    started(spooler)
    env = as_env(legacy("shop.send", (1,), {"copy": True}), FILE)
    assert spooler.receive(env, lambda _env: pytest.fail("it is ours")) == OK
    (job,) = spooler._receiver.ran
    assert (job.task, job.args, job.kwargs) == ("shop.send", (1,), {"copy": True})


def test_a_file_of_0_7_that_asks_again_goes_on_as_one_of_ours(path):
    uwsgi = FakeUwsgi(spoolers=(str(path),), ordered=True)
    made = started(executor_of(uwsgi))
    made._receiver.action = lambda job: job.again(None)
    old = legacy("shop.send", (1,), priority="5", spooler=str(path))
    assert made.receive(as_env(old, FILE), None) == OK
    (file,) = path.glob(f"5/{PREFIX}*")
    (job,) = decode(unpack(file.read_bytes())[1])
    assert (job.attempt, job.priority, job.spooler) == (2, 5, str(path))


def test_a_file_of_0_7_that_cannot_be_read_is_a_dead_letter(spooler):
    started(spooler)
    env = {**as_env(legacy("shop.send"), FILE), b"args": b"nonsense"}
    assert spooler.receive(env, None) == OK
    assert spooler._receiver.rejected[0][1].startswith("a file of uwsgi_tasks 0.7: ")


def test_a_file_of_0_7_is_refused_where_the_settings_say_so(uwsgi):
    made = started(executor_of(uwsgi, accept_legacy=False))
    made.receive(as_env(legacy("shop.send"), FILE), None)
    assert "'accept_legacy' is set to refuse" in made._receiver.rejected[0][1]
    assert made._receiver.ran == []


# --- taking up work


def test_a_spooler_looks_each_second_for_what_is_due(spooler, uwsgi):
    started(spooler)
    assert uwsgi.frequency == 1


def test_the_frequency_of_uwsgi_can_be_left_alone(uwsgi):
    started(executor_of(uwsgi, spooler_frequency=None))
    assert uwsgi.frequency is None


def test_work_is_taken_up_once(spooler, monkeypatch):
    mark = started(spooler)._mark
    assert spooler.start() is mark


def test_what_nobody_needs_any_more_is_cleared_away(spooler, path):
    place(path)
    running = path / "running"
    running.mkdir()
    for name in (f"{FILE}.crashes", f"{PREFIX}gone.crashes", f"{PREFIX}gone.done"):
        (running / name).touch()
    started(spooler)
    assert {file.name for file in running.iterdir()} == {f"{FILE}.crashes", marks._own_name()}


def test_dead_letters_go_to_the_directory_that_this_process_serves(tmp_path, path):
    (tmp_path / "other").mkdir()
    uwsgi = FakeUwsgi(spoolers=(str(path), str(tmp_path / "other")))
    made = executor_of(uwsgi)
    before = made.dead_letters()
    uwsgi.serving = 1
    started(made)
    assert (before, made.dead_letters()) == (path / "dead", tmp_path / "other" / "dead")


def test_where_there_is_no_spooler_it_keeps_no_dead_letters():
    assert executor_of(None).dead_letters() is None


@pytest.mark.parametrize(
    ("nice", "settings", "expected"),
    [(19, {}, [0]), (5, {}, []), (19, {"renice": False}, [])],
)
def test_the_niceness_that_uwsgi_gives_is_undone_at_the_first_job(
    uwsgi, path, monkeypatch, nice, settings, expected
):
    executor_of(uwsgi, **settings)
    given = []
    monkeypatch.setattr(os, "getpriority", lambda *_: nice)
    monkeypatch.setattr(os, "setpriority", lambda *args: given.append(args[2]))
    for number in range(3):
        place(path, f"{FILE}{number}")
    uwsgi.look()
    assert given == expected


def test_a_niceness_that_may_not_be_undone_is_said_with_the_remedy(
    spooler, uwsgi, path, monkeypatch, caplog
):
    def refuse(*_args):
        raise PermissionError

    monkeypatch.setattr(os, "getpriority", lambda *_: 19)
    monkeypatch.setattr(os, "setpriority", refuse)
    place(path)
    assert uwsgi.look() == 1
    assert "give it CAP_SYS_NICE" in caplog.text


# --- what waits and runs


@pytest.fixture
def outside(path):
    return executor_of(None, spooler_dir=str(path))


def test_what_waits_is_found_listed_counted_and_read(outside):
    outside.submit([JOB])
    assert outside.find("1").state is State.QUEUED
    assert [one.id for one in outside.standings()] == ["1"]
    assert (outside.count(), outside.read("1")) == (1, JOB)


def test_what_is_not_here_is_not_found(outside):
    assert (outside.find("2"), outside.read("2"), outside.cancel("2", Stop.ASKED)) == (None,) * 3


def test_without_a_directory_nothing_waits():
    made = executor_of(None)
    assert (made.standings(), made.count(), made.find("1")) == ([], 0, None)


def test_all_directories_of_a_server_are_looked_at(tmp_path, path):
    (tmp_path / "other").mkdir()
    made = executor_of(FakeUwsgi(spoolers=(str(path), str(tmp_path / "other"))))
    made.submit([JOB])
    made.submit([JOB._replace(id="2", spooler=str(tmp_path / "other"))])
    assert [one.id for one in made.standings()] == ["1", "2"]
    assert [one.id for one in made.standings(1)] == ["1"]
    assert (made.count(), made.find("2").place) == (2, str(tmp_path / "other"))


def test_a_job_that_waits_can_be_taken_away(outside, path):
    outside.submit([JOB])
    assert outside.cancel("1", Stop.ASKED) == (State.CANCELLED, JOB)
    assert in_spool(path) == []


def test_how_far_a_job_has_come_is_seen_by_others(spooler, uwsgi, path):
    place(path, PREFIX + "1")
    seen = []

    def halfway(job):
        spooler.show_progress(job, 1, 2)
        seen.append(spooler._mark._map[:])

    spooler._receiver.action = halfway
    uwsgi.look()
    one = marks._running(path / "running" / "1.1", seen[0])
    assert (one.name, one.done, one.total) == (PREFIX + "1", 1, 2)


def test_a_process_that_is_no_spooler_shows_nothing_and_is_asked_nothing(outside):
    assert (outside.show_progress(JOB, 1, 2), outside.asked(JOB)) == (None, Stop.NOT)


def test_a_job_of_others_is_put_back_as_it_was(outside, path):
    outside.submit_raw(pack({"key": "value"}, b"body"))
    (file,) = path.glob("uwsgi*")
    assert unpack(file.read_bytes()) == ({"key": "value"}, b"body")


def test_the_question_of_a_doctor_is_answered_and_is_no_job(spooler, uwsgi, path):
    started(spooler)
    asked = []
    spooler.answer = lambda env, place: asked.append((env["key"], place))
    env = {"spooler_task_name": FILE, b"uwsgi_tasks": b"probe", "key": 1}
    assert spooler.receive(env, None) == OK
    assert (asked, spooler._receiver.rejected) == ([(1, path)], [])


# --- crashes


def died(path, name=FILE, incarnation=None, uwsgi=None, stop=None):
    """Let a spooler process die over the file of this name."""
    child = os.fork()
    if child == 0:
        incarnation = incarnation or Server(uwsgi).incarnation
        mark = Mark(path / "running", incarnation, ordered=False)
        mark.begin(name)
        if stop is not None:
            killed(mark, stop)
        os._exit(1)
    os.waitpid(child, 0)


def killed(mark, id_):
    """Let somebody have asked for the end of the job that runs."""
    marks._STOP.pack_into(mark._map, marks._STOP_AT, crc32(id_.encode()), Stop.KILL)


def restarted(uwsgi, **settings):
    """A new spooler process, which finds what the dead have left."""
    return started(executor_of(uwsgi, **settings))


def test_a_spooler_that_starts_counts_the_crashes_of_the_dead(uwsgi, path):
    file = place(path)
    for _ in range(3):
        died(path, uwsgi=uwsgi)
        made = restarted(uwsgi)
    ((payload, reason, variables),) = made._receiver.rejected
    assert (payload, reason) == (encode([JOB]), f"{REASON} (3)")
    assert variables == {}
    assert (file.exists(), list((path / "running").glob("uwsgi*"))) == (False, [])


def test_a_spooler_goes_by_the_limit_of_crashes_that_is_set(uwsgi, path):
    place(path)
    died(path, uwsgi=uwsgi)
    assert len(restarted(uwsgi, crash_limit=1)._receiver.rejected) == 1


def test_a_spooler_tells_a_stop_of_the_server_from_a_crash(uwsgi, path):
    place(path)
    for _ in range(5):
        died(path, incarnation=b"4711.1")
        made = restarted(uwsgi)
    assert (made._receiver.rejected, uwsgi.look()) == ([], 1)


def test_a_directory_that_cannot_be_tidied_does_not_keep_a_spooler_from_starting(
    uwsgi, monkeypatch, caplog
):
    def fails(*_args, **_kwargs):
        raise OSError("no such host")

    monkeypatch.setattr(module.spool.SpoolDirectory, "tidy", fails)
    assert started(executor_of(uwsgi))._mark is not None
    assert "could not be tidied" in caplog.text


def test_of_a_batch_the_call_that_was_running_goes_and_the_others_stay(uwsgi, path):
    jobs = [JOB._replace(id=str(number)) for number in range(3)]
    file = place(path, jobs=jobs)
    (path / "running").mkdir()
    Progress(path / "running", FILE).note(1)
    for _ in range(3):
        died(path, uwsgi=uwsgi)
        made = restarted(uwsgi)
    uwsgi.look()
    assert [(job.id, reason) for job, reason in made._receiver.buried] == [("1", REASON)]
    assert [job.id for job in made._receiver.ran] == ["2"]
    assert not file.exists()


def test_a_batch_that_was_done_when_its_process_died_is_done_with(uwsgi, path):
    file = place(path, jobs=[JOB, JOB._replace(id="2")])
    (path / "running").mkdir()
    Progress(path / "running", FILE).note(2)
    died(path, uwsgi=uwsgi)
    made = restarted(uwsgi, crash_limit=1)
    uwsgi.look()
    assert (file.exists(), made._receiver.ran, made._receiver.buried) == (False, [], [])


# Where the hook that runs after the fork was taken from us, the first file is there already.


def handed(uwsgi, path, name=FILE, **settings):
    made = executor_of(uwsgi, **settings)
    uwsgi.role = "spooler"
    env = {"spooler_task_name": name, "body": unpack((path / name).read_bytes())[1]}
    os.chdir(path)
    assert made.receive(env, None) == OK
    return made._receiver


def test_a_crash_is_counted_also_when_its_file_has_been_handed_to_us_already(uwsgi, path):
    place(path)
    died(path, uwsgi=uwsgi)
    handed(uwsgi, path)
    assert (path / "running" / f"{FILE}.crashes").read_text() == "0 1 0"


def test_a_file_that_has_been_handed_to_us_already_is_condemned_too(uwsgi, path):
    place(path)
    died(path, uwsgi=uwsgi)
    receiver = handed(uwsgi, path, crash_limit=1)
    assert receiver.ran == []
    assert receiver.rejected == [(encode([JOB]), f"{REASON} (1)", None)]


def test_the_crashes_of_a_condemned_file_are_forgotten(uwsgi, path):
    place(path)
    died(path, uwsgi=uwsgi)
    handed(uwsgi, path, crash_limit=1)
    assert not (path / "running" / f"{FILE}.crashes").exists()


def test_a_stop_of_the_server_is_no_crash_of_a_file_that_has_been_handed_to_us(uwsgi, path):
    place(path)
    died(path, incarnation=b"4711.1")
    assert len(handed(uwsgi, path, crash_limit=1).ran) == 1


def test_of_a_condemned_batch_only_the_call_that_was_running_goes(uwsgi, path):
    place(path, jobs=[JOB._replace(id=str(number)) for number in range(3)])
    (path / "running").mkdir()
    Progress(path / "running", FILE).note(1)
    died(path, uwsgi=uwsgi)
    receiver = handed(uwsgi, path, crash_limit=1)
    assert [job.id for job in receiver.ran] == ["2"]


def test_what_was_killed_on_purpose_is_cancelled_and_no_crash(uwsgi, path):
    file = place(path, PREFIX + "1")
    died(path, PREFIX + "1", uwsgi=uwsgi, stop="1")
    receiver = restarted(uwsgi)._receiver
    assert (receiver.cancelled, receiver.rejected, file.exists()) == ([JOB], [], False)


def test_what_was_killed_on_purpose_does_not_run_if_it_is_handed_to_us(uwsgi, path):
    place(path, PREFIX + "1")
    died(path, PREFIX + "1", uwsgi=uwsgi, stop="1")
    receiver = handed(uwsgi, path, name=PREFIX + "1")
    assert (receiver.cancelled, receiver.ran, receiver.rejected) == ([JOB], [], [])
