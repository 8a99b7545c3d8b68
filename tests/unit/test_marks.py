"""Which spooler processes live, and what each of them is running."""

import contextlib
import fcntl
import os
import signal
import time
from pathlib import Path

import pytest

from uwsgi_tasks import marks
from uwsgi_tasks.marks import Dead, Mark, Peers, Progress, Running, bereave
from uwsgi_tasks.model import Stop

FILE = "uwsgi_spoolfile_on_web1_1_2_3"
ID = "3f2c-17"
OURS = f"uwsgi_spoolfile_on_{ID}"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "running"


class Child:
    """Another process; it does *first*, then what it is told, one callable's name at a time."""

    def __init__(self, first, **actions):
        ours, self._pipe = os.pipe()
        self._answers, theirs = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            # Nothing of the test's own process may run in here.
            with contextlib.suppress(BaseException):
                self.state = first()
                os.write(theirs, b"ready   ")
                while word := os.read(ours, 8):
                    answer = str(actions[word.decode().strip()](self.state))
                    os.write(theirs, answer.encode().ljust(8))
            os._exit(0)
        os.close(ours)
        os.close(theirs)
        assert self._answer() == "ready"

    def _answer(self):
        return os.read(self._answers, 8).decode().strip()

    def do(self, word):
        os.write(self._pipe, word.encode().ljust(8))
        return self._answer()

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._pipe)
        os.close(self._answers)


@pytest.fixture
def child(folder):
    """Start a spooler process with a mark; a signal that it gets is counted."""
    started = []

    def start(running=None, *, ordered=False, incarnation=b"4711.1"):
        def first():
            woken = []
            signal.signal(signal.SIGUSR1, lambda number, _frame: woken.append(number))
            mark = Mark(folder, incarnation, ordered=ordered)
            if running:
                mark.begin(running)
            return mark, woken

        actions = {
            "bereave": lambda _state: len(left_by_the_dead(folder, has_mark=True)),
            "begin": lambda state: state[0].begin(FILE),
            "end": lambda state: state[0].end(),
            "wake": lambda state: state[0].wake(),
            "signals": lambda state: len(state[1]),
            "half": lambda state: state[0].advance(1, 2),
            "some": lambda state: state[0].advance(7, None),
            "asked": lambda state: int(state[0].asked_to_stop(ID)),
            "other": lambda state: int(state[0].asked_to_stop("another")),
        }
        started.append(Child(first, **actions))
        return started[-1]

    yield start
    for one in started:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            one.kill()


def name_of(pid):
    """What the mark of a process of this container is called."""
    return f"{pid}.{Path('/proc/self/ns/pid').stat().st_ino}"


def left_by_the_dead(folder, *, settled=True, has_mark=False):
    found = []
    bereave(folder, lambda dead: found.append(dead) or settled, has_mark=has_mark)
    return found


# --- who died, and of what


def test_a_process_that_died_over_a_file_has_left_its_name(folder, child):
    child(FILE).kill()
    assert left_by_the_dead(folder) == [Dead(running=FILE, incarnation=b"4711.1")]


def test_a_process_that_died_at_rest_was_running_nothing(folder, child):
    process = child(FILE)
    process.do("end")
    process.kill()
    assert [dead.running for dead in left_by_the_dead(folder)] == [None]


def test_who_has_a_mark_may_ask_for_the_dead_and_lives_on_for_the_others(folder, child):
    process = child(f"{FILE}_other")
    child(FILE).kill()
    assert process.do("bereave") == "1"
    # To open its own file and close it again would have dropped its lock.
    assert left_by_the_dead(folder) == []


def test_the_dead_are_mourned_once(folder, child):
    child(FILE).kill()
    left_by_the_dead(folder)
    assert left_by_the_dead(folder) == []


def test_the_living_are_left_alone(folder, child):
    process = child(FILE)
    assert left_by_the_dead(folder) == []
    assert (folder / name_of(process.pid)).exists()


def test_each_of_several_dead_has_left_its_own(folder, child):
    for number in range(3):
        child(f"{FILE}_{number}").kill()
    assert {dead.running for dead in left_by_the_dead(folder)} == {
        f"{FILE}_{number}" for number in range(3)
    }


def test_a_shorter_name_leaves_nothing_of_the_longer_one_before_it(folder):
    mark = Mark(folder, b"", ordered=False)
    mark.begin(FILE + "_long")
    mark.begin(FILE)
    assert marks._dead(bytes(mark._map)).running == FILE


def test_no_folder_means_that_nobody_died(tmp_path):
    assert left_by_the_dead(tmp_path / "missing") == []


def test_other_files_are_no_marks(folder):
    folder.mkdir()
    (folder / f"{FILE}.crashes").write_text("2")
    assert left_by_the_dead(folder) == []


def test_an_empty_mark_is_of_a_process_that_ran_nothing(folder):
    # It died between the creation of its file and the first word in it.
    folder.mkdir()
    (folder / name_of(99999)).touch()
    assert left_by_the_dead(folder) == [Dead(running=None, incarnation=b"")]


def test_two_newcomers_do_not_mourn_one_process_twice(folder, child, monkeypatch):
    child(FILE).kill()
    lockf = fcntl.lockf

    def late(handle, *args):
        lockf(handle, *args)
        for path in folder.iterdir():
            path.unlink()

    monkeypatch.setattr(fcntl, "lockf", late)
    assert left_by_the_dead(folder) == []


def test_who_looks_at_the_marks_does_not_hide_a_dead_process_from_a_newcomer(
    folder, child, monkeypatch
):
    newcomer, mourned = child(), []
    child(FILE).kill()

    def meanwhile(call):
        def called(*args):
            call(*args)
            # In the moment before the file is closed, with which a lock would go.
            mourned.append(newcomer.do("bereave"))

        return called

    monkeypatch.setattr(fcntl, "lockf", meanwhile(fcntl.lockf))
    monkeypatch.setattr(os, "lockf", meanwhile(os.lockf))
    assert Peers(folder).running() == []
    assert mourned == ["1"]


def test_a_newcomer_waits_until_another_one_has_settled_a_death(folder, child, tmp_path):
    child(FILE).kill()
    settled = tmp_path / "settled"
    ready, settling = os.pipe()

    def settle(_dead):
        os.write(settling, b"x")
        time.sleep(0.3)
        settled.touch()
        return True

    other = os.fork()
    if other == 0:
        try:
            bereave(folder, settle)
        finally:
            os._exit(0)
    os.close(settling)
    assert os.read(ready, 1) == b"x"
    found, was_settled = left_by_the_dead(folder), settled.exists()
    os.waitpid(other, 0)
    os.close(ready)
    assert (found, was_settled) == ([], True)


def test_a_death_that_is_left_to_another_is_told_again(folder, child):
    child(FILE).kill()
    found = [left_by_the_dead(folder, settled=settled) for settled in (False, True, True)]
    assert found == [[Dead(running=FILE, incarnation=b"4711.1")]] * 2 + [[]]


def test_a_new_process_with_the_number_of_a_dead_one_begins_afresh(folder):
    folder.mkdir()
    (folder / name_of(os.getpid())).write_bytes(b"\x01" * 2048)
    mark = Mark(folder, b"4711.2", ordered=False)
    assert marks._dead(bytes(mark._map)) == Dead(running=None, incarnation=b"4711.2")


def test_a_newcomer_whose_file_is_taken_for_a_dead_ones_makes_another(folder, monkeypatch):
    folder.mkdir()
    lockf, calls = fcntl.lockf, []

    def taken_once(handle, *args):
        if not calls:
            (folder / name_of(os.getpid())).unlink()
        calls.append(handle)
        lockf(handle, *args)

    monkeypatch.setattr(fcntl, "lockf", taken_once)
    Mark(folder, b"", ordered=False)
    assert (len(calls), (folder / name_of(os.getpid())).exists()) == (2, True)


def test_a_fork_of_a_spooler_does_not_keep_its_mark_alive(folder):
    reading, writing = os.pipe()

    def spooler():
        Mark(folder, b"", ordered=False).begin(FILE)
        grandchild = os.fork()
        if grandchild == 0:
            os.read(reading, 1)
            os._exit(0)

    process = Child(spooler)
    process.kill()
    found = [dead.running for dead in left_by_the_dead(folder)]
    os.write(writing, b"x")
    assert found == [FILE]


# --- waking


def test_a_process_at_rest_is_woken_by_a_signal(folder, child):
    process = child()
    assert Peers(folder).wake() == 1
    assert process.do("signals") == "1"


def test_a_busy_process_is_not_signalled(folder, child):
    process = child(FILE)
    Peers(folder).wake()
    assert process.do("signals") == "0"


def test_a_busy_process_learns_at_the_end_of_its_job_that_there_is_more(folder, child):
    process = child(FILE)
    Peers(folder).wake()
    assert process.do("end") == "True"


def test_a_process_that_nobody_woke_has_nothing_more_to_do(child):
    assert child(FILE).do("end") == "False"


def test_a_burst_of_submits_makes_one_more_pass(folder, child):
    process, peers = child(FILE), Peers(folder)
    for _ in range(100):
        peers.wake()
    ends = [process.do("end")]
    process.do("begin")
    assert [*ends, process.do("end")] == ["True", "False"]


def test_a_process_that_submits_itself_makes_one_more_pass(child):
    process = child(FILE)
    process.do("wake")
    assert process.do("end") == "True"


def test_a_process_at_rest_is_signalled_at_each_submit(folder, child):
    # It may have looked into the directory, and in vain, since the last one.
    process, peers = child(), Peers(folder)
    seen = []
    for _ in range(3):
        peers.wake()
        seen.append(process.do("signals"))
    assert seen == ["1", "2", "3"]


def test_several_processes_are_all_woken(folder, child):
    processes = [child(), child(), child(FILE)]
    assert Peers(folder).wake() == 3
    assert [process.do("signals") for process in processes] == ["1", "1", "0"]
    assert processes[2].do("end") == "True"


def test_the_dead_are_not_woken(folder, child):
    child().kill()
    assert Peers(folder).wake() == 0


def test_a_process_does_not_wake_itself(folder):
    mark = Mark(folder, b"", ordered=False)
    assert Peers(folder).wake() == 0
    assert mark.end() is False


@pytest.mark.parametrize("error", [ProcessLookupError, PermissionError])
def test_a_process_that_cannot_be_signalled_is_no_fault(folder, child, monkeypatch, error):
    child()

    def refuse(*_args):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", refuse)
        assert Peers(folder).wake() == 1


def test_without_a_folder_nobody_is_woken(tmp_path):
    assert Peers(tmp_path / "missing").wake() == 0


def test_a_newcomer_is_known_at_once_where_one_is_expected(folder, child, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    child()
    peers = Peers(folder, expected=2)
    found = [peers.wake()]
    child()
    assert [*found, peers.wake()] == [1, 2]


def test_a_newcomer_that_takes_the_place_of_another_is_known_a_second_later(
    folder, child, monkeypatch
):
    child()
    peers, now = Peers(folder, expected=1), time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    found = [peers.wake()]
    child()
    found.append(peers.wake())
    now += 1.5
    assert [*found, peers.wake()] == [1, 1, 2]


def test_looking_at_the_living_does_not_drop_the_lock_of_the_looking_process(folder):
    def spooler():
        mark = Mark(folder, b"", ordered=False)
        mark.begin(FILE)
        Peers(folder).wake()
        return mark

    process = Child(spooler)
    found = left_by_the_dead(folder)
    process.kill()
    assert found == []


def test_a_mark_that_is_not_yet_whole_is_passed_over(folder, child):
    # Its process lives, and has not yet given it its size.
    process = child()
    os.truncate(folder / name_of(process.pid), 0)
    assert Peers(folder).wake() == 0


def test_a_mark_that_goes_between_the_listing_and_the_look_is_no_fault(folder, monkeypatch):
    folder.mkdir()
    monkeypatch.setattr(marks, "_files", lambda _folder: [folder / name_of(99999)])
    assert Peers(folder).wake() == 0


@pytest.mark.parametrize("ordered", [True, False])
def test_the_living_tell_whether_they_look_into_the_folders_of_priorities(folder, child, ordered):
    child(ordered=ordered)
    assert Peers(folder).ordered() is ordered


def test_where_nobody_lives_nobody_can_tell(folder, child):
    child(ordered=True).kill()
    assert Peers(folder).ordered() is None


# --- progress


def test_progress_begins_at_none(tmp_path):
    assert Progress(tmp_path, FILE).done == 0


def test_progress_outlives_the_process_that_made_it(tmp_path):
    process = Child(lambda: Progress(tmp_path, FILE), note=lambda progress: progress.note(3))
    process.do("note")
    process.kill()
    assert Progress(tmp_path, FILE).done == 3


def test_progress_that_is_forgotten_leaves_no_file(tmp_path):
    Progress(tmp_path, FILE).forget()
    assert list(Path(tmp_path).iterdir()) == []


def test_a_call_that_must_not_run_again_is_noted_once(tmp_path):
    progress = Progress(tmp_path, FILE)
    before = progress.condemned
    assert (before, progress.condemn(), progress.condemned, progress.condemn()) == (
        *(False, True),
        *(True, False),
    )


def test_the_next_call_has_its_own_chance(tmp_path):
    progress = Progress(tmp_path, FILE)
    progress.condemn()
    progress.note(1)
    assert (progress.condemned, progress.done) == (False, 1)


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_mark_stays_away_from_the_numbers_of_the_standard_streams(folder, closed):
    # uWSGI opens /dev/null over number 0 after the fork, which would drop the lock.
    child = os.fork()
    if child == 0:
        os.close(closed)
        mark = Mark(folder, b"", ordered=False)
        os._exit(mark._file)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) > 2


# --- other containers


def elsewhere(folder, child, running=None):
    """A living process whose number counts in another container."""
    process = child(running)
    mark = folder / name_of(process.pid)
    mark.rename(mark.with_name(f"{process.pid}.1"))
    return process


def test_a_process_of_another_container_is_known_and_not_signalled(folder, child):
    process = elsewhere(folder, child)
    assert Peers(folder).wake() == 1
    assert process.do("signals") == "0"


def test_a_busy_process_of_another_container_learns_that_there_is_more(folder, child):
    process = elsewhere(folder, child, FILE)
    Peers(folder).wake()
    assert process.do("end") == "True"


def test_a_process_of_another_container_with_our_number_is_not_us(folder, child):
    process = child(FILE)
    (folder / name_of(process.pid)).rename(folder / f"{os.getpid()}.1")
    assert Peers(folder).wake() == 1
    assert process.do("end") == "True"


def test_where_namespaces_are_not_known_all_are_one(monkeypatch):
    def refuse(*_args):
        raise OSError

    monkeypatch.setattr(Path, "stat", refuse)
    assert marks._own_name() == f"{os.getpid()}.0"


def test_a_mark_without_a_namespace_is_none(folder):
    folder.mkdir()
    (folder / "99999").touch()
    assert left_by_the_dead(folder) == []


# --- a disk that is full


def disk_full(*_args):
    raise OSError(28, "No space left on device")


def test_a_mark_that_does_not_fit_on_the_disk_is_an_error_and_not_a_crash(folder, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", disk_full)
    with pytest.raises(OSError, match="No space left"):
        Mark(folder, b"", ordered=False)


def test_progress_that_does_not_fit_on_the_disk_is_an_error_and_not_a_crash(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", disk_full)
    with pytest.raises(OSError, match="No space left"):
        Progress(tmp_path, FILE)


@pytest.mark.parametrize("made", ["mark", "progress"])
def test_all_of_a_mapped_file_has_its_place_on_the_disk(folder, made):
    if made == "mark":
        file = folder / marks._own_name()
        kept = Mark(folder, b"", ordered=False)
    else:
        folder.mkdir()
        file = folder / f"{FILE}.done"
        kept = Progress(folder, FILE)
    assert kept is not None
    assert file.stat().st_blocks * 512 >= file.stat().st_size > 0


# --- newcomers


def test_newcomers_are_looked_for_at_each_call_by_default(folder, child, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    peers = Peers(folder)
    found = []
    for _ in range(3):
        child()
        found.append(peers.wake())
    assert found == [1, 2, 3]


def test_once_all_are_known_nobody_looks_for_a_second(folder, child, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    child()
    peers = Peers(folder, 1)
    looks = []
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: looks.append(path) or listdir(path))
    for _ in range(5):
        peers.wake()
    assert len(looks) == 1


def test_those_who_are_known_are_not_asked_again_whether_they_live(folder, child, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    child()
    peers = Peers(folder)
    asked = []
    lives = marks._lives
    monkeypatch.setattr(marks, "_lives", lambda path: asked.append(path) or lives(path))
    for _ in range(5):
        peers.wake()
    assert len(asked) == 1


# --- progress that is read


def test_progress_can_be_read_without_being_made(tmp_path):
    assert Progress.read(tmp_path, FILE) == 0
    assert list(tmp_path.iterdir()) == []
    Progress(tmp_path, FILE).note(7)
    assert Progress.read(tmp_path, FILE) == 7


def test_progress_that_is_not_whole_is_none(tmp_path):
    (tmp_path / f"{FILE}.done").write_bytes(b"123")
    assert Progress.read(tmp_path, FILE) == 0


# --- what runs, as others see it


def test_what_a_process_runs_is_seen(folder, child):
    before = time.time()
    process = child(FILE)
    (one,) = Peers(folder).running()
    assert (one.pid, one.name, one.done, one.total) == (process.pid, FILE, None, None)
    assert before <= one.started_at <= time.time()


def test_a_process_at_rest_runs_nothing(folder, child):
    child()
    assert Peers(folder).running() == []


def test_of_a_process_that_died_nothing_runs(folder, child):
    child(FILE).kill()
    assert Peers(folder).running() == []


@pytest.mark.parametrize(("word", "expected"), [("half", (1, 2)), ("some", (7, None))])
def test_how_far_a_job_has_come_is_seen(folder, child, word, expected):
    child(FILE).do(word)
    (one,) = Peers(folder).running()
    assert (one.done, one.total) == expected


def test_how_far_a_job_has_come_says_nothing_of_the_next_one(folder, child):
    process = child(FILE)
    process.do("half")
    process.do("end")
    process.do("begin")
    (one,) = Peers(folder).running()
    assert (one.done, one.total) == (None, None)


def test_a_process_sees_what_it_runs_itself(folder):
    mark = Mark(folder, b"", ordered=False)
    before = mark.running()
    mark.begin(FILE)
    assert (before, type(mark.running()), mark.running().name) == (None, Running, FILE)


# --- asked to stop


@pytest.mark.parametrize("how", [Stop.ASKED, Stop.KILL])
def test_a_job_that_runs_can_be_asked_to_stop(folder, child, how):
    process = child(OURS)
    assert Peers(folder).stop(OURS, ID, how) == process.pid
    assert (process.do("asked"), process.do("other")) == (str(int(how)), "0")


def test_a_job_that_nobody_runs_cannot_be_asked(folder, child):
    process = child(OURS)
    assert Peers(folder).stop(FILE, ID, Stop.KILL) is None
    assert process.do("asked") == "0"


def test_a_job_in_another_container_can_be_asked_and_not_reached(folder, child):
    process = elsewhere(folder, child, OURS)
    assert Peers(folder).stop(OURS, ID, Stop.ASKED) == 0
    assert process.do("asked") == "1"


def test_a_process_can_ask_its_own_job(folder):
    mark = Mark(folder, b"", ordered=False)
    before = mark.asked_to_stop(ID)
    mark.stop(ID, Stop.ASKED)
    assert (before, mark.asked_to_stop(ID), mark.asked_to_stop("2")) == (
        *(Stop.NOT, Stop.ASKED),
        Stop.NOT,
    )


@pytest.mark.parametrize(
    ("asked", "how", "killed"),
    [(ID, Stop.KILL, True), (ID, Stop.ASKED, False), ("another", Stop.KILL, False)],
)
def test_a_process_that_was_ended_for_its_job_says_so(folder, child, asked, how, killed):
    process = child(OURS)
    Peers(folder).stop(OURS, asked, how)
    process.kill()
    assert [dead.killed for dead in left_by_the_dead(folder)] == [killed]


# --- calls that are left out


def test_a_call_to_which_nobody_has_come_is_surely_left_out(tmp_path):
    progress = Progress(tmp_path, FILE, 3)
    assert progress.cancel(1) is True
    assert [progress.is_cancelled(index) for index in range(3)] == [False, True, False]
    assert [progress.is_cancelled(index, surely=True) for index in range(3)] == [
        *(False, True),
        False,
    ]


@pytest.mark.parametrize("index", [0, 1])
def test_a_call_that_may_have_begun_is_not_surely_left_out(tmp_path, index):
    progress = Progress(tmp_path, FILE, 3)
    progress.note(1)
    assert progress.cancel(index) is False
    assert (progress.is_cancelled(index), progress.is_cancelled(index, surely=True)) == (
        *(True, False),
    )


def test_the_next_call_is_surely_left_out_while_nobody_can_begin_it(tmp_path):
    progress = Progress(tmp_path, FILE, 3)
    assert progress.cancel(0, is_held=True) is True
    assert Progress.is_left_out(tmp_path, FILE, 0) is True


def test_what_is_left_out_is_seen_by_another_process(tmp_path):
    child = os.fork()
    if child == 0:
        Progress(tmp_path, FILE, 3).cancel(2)
        os._exit(0)
    os.waitpid(child, 0)
    assert Progress(tmp_path, FILE, 3).is_cancelled(2)


@pytest.mark.parametrize("index", [0, 1, 100])
def test_of_a_file_of_which_nothing_is_known_no_call_is_left_out(tmp_path, index):
    Progress(tmp_path, FILE, 2)
    assert Progress.is_left_out(tmp_path, FILE, index) is False
    assert Progress.is_left_out(tmp_path, "another", index) is False


def test_progress_leaves_alone_what_is_left_out(tmp_path):
    progress = Progress(tmp_path, FILE, 3)
    progress.cancel(2)
    progress.condemn()
    progress.note(1)
    assert progress.is_cancelled(2)
