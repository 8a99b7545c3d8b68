"""How often a spool file has killed the process that ran it."""

import fcntl
import os
import signal
import time
from pathlib import Path

import pytest

from tests.fakes import PREFIX
from uwsgi_tasks import crashes as module
from uwsgi_tasks.codec import encode
from uwsgi_tasks.crashes import CANCELLED, REASON, Crashes
from uwsgi_tasks.marks import Mark, Progress
from uwsgi_tasks.model import Job, Stop
from uwsgi_tasks.spool import SpoolDirectory
from uwsgi_tasks.spool_file import pack

JOB = Job("1", "shop.send", (1,))
FILE = PREFIX + "web1_1_1_1_1_1"
OURS = PREFIX + JOB.id
SERVER, BEFORE = b"4711.2", b"4711.1"
"""This run of the server, and the one before it."""


@pytest.fixture
def path(tmp_path):
    folder = tmp_path / "spool"
    (folder / "running").mkdir(parents=True)
    return folder


def place(path, name=FILE, jobs=(JOB,)):
    """Put a spool file into the directory, as if it had been written long ago."""
    (path / name).write_bytes(pack({}, encode(jobs)))
    os.utime(path / name, (0, 0))
    return path / name


def batch(count=3):
    return [JOB._replace(id=str(number)) for number in range(count)]


def die(path, name=FILE, incarnation=SERVER, killed=None):
    """Let a spooler process die over the file of this name; without one, at rest."""
    child = os.fork()
    if child == 0:
        mark = Mark(path / "running", incarnation, ordered=False)
        if name:
            mark.begin(name)
        if killed:
            mark.stop(killed, Stop.KILL)
        os._exit(1)
    os.waitpid(child, 0)


class Newcomer(Crashes):
    """A spooler that starts, and keeps the dead letters, and what was cancelled, in lists."""

    def __init__(self, path, limit=3, *, shared=False):
        self.rejected, self.cancelled = [], []
        super().__init__(
            SpoolDirectory(path),
            SERVER,
            limit,
            lambda *letter: self.rejected.append(letter),
            self.cancelled.append,
            shared=shared,
        )


def settle(path, limit=3, current=None, payload=b""):
    """Let a newcomer settle; return the dead letters, and why *current* must not run, if so."""
    newcomer = Newcomer(path, limit)
    condemned = newcomer.settle(current, payload)
    return newcomer.rejected, condemned


def times(path, count, limit=3, **death):
    """Let so many processes die over a file; return what the last newcomer made of it."""
    for _ in range(count):
        die(path, **death)
        found = settle(path, limit)
    return found


def note_of(path, name=FILE):
    return (path / "running" / f"{name}.crashes").read_text()


# --- one process


@pytest.mark.parametrize(("count", "wait"), [(1, 2), (2, 4), (3, 8)])
def test_a_file_whose_process_died_waits_longer_each_time(path, count, wait):
    file = place(path)
    before = time.time()
    times(path, count, limit=9)
    assert before + wait - 0.01 <= file.stat().st_mtime <= time.time() + wait + 0.01


def test_a_file_that_killed_its_process_too_often_is_a_dead_letter(path):
    file = place(path)
    assert times(path, 2) == ([], None)
    rejected, _ = times(path, 1)
    assert rejected == [(encode([JOB]), f"{REASON} (3)", {})]
    assert not file.exists()


def test_what_is_put_back_is_tried_as_often_as_before(path):
    place(path)
    times(path, 3)
    place(path)
    assert times(path, 2) == ([], None)


def test_what_is_known_of_a_dead_letter_goes_with_its_file(path):
    place(path)
    die(path)
    newcomer = Newcomer(path, limit=1)
    newcomer.settle(None, b"")
    newcomer.forget_finished()
    assert list((path / "running").iterdir()) == []


def test_only_what_is_known_of_files_that_are_gone_is_forgotten(path):
    place(path)
    names = [f"{FILE}.crashes", f"{FILE}.done", f"{PREFIX}gone.crashes", f"{PREFIX}gone.done"]
    for name in names:
        (path / "running" / name).touch()
    Newcomer(path).forget_finished()
    assert {note.name for note in (path / "running").iterdir()} == set(names[:2])


@pytest.mark.parametrize("limit", [1, 5])
def test_the_limit_of_crashes_can_be_set(path, limit):
    place(path)
    before, _ = times(path, limit - 1, limit) if limit > 1 else ([], None)
    after, _ = times(path, 1, limit)
    assert (before, [reason for _, reason, _ in after]) == ([], [f"{REASON} ({limit})"])


def test_a_file_that_was_done_when_its_process_died_is_no_fault(path):
    die(path)
    assert settle(path, limit=1) == ([], None)
    assert list((path / "running").iterdir()) == []


def test_a_process_that_died_at_rest_is_nobodys_fault(path):
    file = place(path)
    die(path, name=None)
    assert settle(path, limit=1) == ([], None)
    assert (file.stat().st_mtime, list((path / "running").iterdir())) == (0, [])


def test_each_file_has_crashes_of_its_own(path):
    place(path)
    place(path, FILE + "2")
    times(path, 2)
    times(path, 1, name=FILE + "2")
    assert (note_of(path), note_of(path, FILE + "2")) == ("0 2 0", "0 1 0")


def test_a_file_with_a_priority_is_counted_too(path):
    (path / "7").mkdir()
    file = place(path / "7")
    rejected, _ = times(path, 1, limit=1)
    assert (len(rejected), file.exists()) == (1, False)


def test_a_crash_is_a_warning_that_says_how_many_there_may_be(path, caplog):
    place(path)
    times(path, 2)
    assert caplog.messages == [
        f"{FILE}: its process died while it ran ({number} of 3)" for number in (1, 2)
    ]


def test_a_file_of_others_that_killed_its_process_is_a_dead_letter_too(path):
    file = path / FILE
    file.write_bytes(pack({"function_name": "f"}, b"nonsense"))
    rejected, _ = times(path, 1, limit=1)
    assert rejected == [(b"nonsense", f"{REASON} (1)", {"function_name": "f"})]
    assert not file.exists()


def test_a_file_that_somebody_runs_again_is_left_to_them(path):
    file = place(path)
    die(path)
    ready, done = os.pipe()
    child = os.fork()
    if child == 0:
        with file.open("r+b") as held:
            fcntl.lockf(held, fcntl.LOCK_EX)
            os.write(done, b"x")
            signal.pause()
    os.read(ready, 1)
    found = settle(path, limit=1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (found, file.exists(), file.stat().st_mtime) == (([], None), True, 0)
    assert note_of(path) == "0 1 0"


@pytest.mark.parametrize(("killed", "reason"), [(None, f"{REASON} (1)"), (JOB.id, CANCELLED)])
def test_who_takes_a_file_while_another_settles_its_crash_knows_of_it(
    path, monkeypatch, killed, reason
):
    file = place(path, OURS)
    die(path, OURS, killed=killed)
    ready, settling = os.pipe()
    locked = module.locked

    def late(path):
        # Here the other one has begun to settle that death.
        os.write(settling, b"x")
        time.sleep(0.3)
        return locked(path)

    with file.open("r+b") as held:
        fcntl.lockf(held, fcntl.LOCK_EX)
        other = os.fork()
        if other == 0:
            try:
                monkeypatch.setattr(module, "locked", late)
                Newcomer(path, limit=1, shared=True).settle(None, b"")
            finally:
                os._exit(0)
        os.close(settling)
        assert os.read(ready, 1) == b"x"
        taker = Newcomer(path, limit=1, shared=True)
        condemned = taker.settle(OURS, encode([JOB]), has_mark=True)
        os.waitpid(other, 0)
        os.close(ready)
    assert (condemned, taker.rejected, file.exists()) == (reason, [], True)
    marks = [note for note in (path / "running").iterdir() if note.suffix != ".crashes"]
    assert marks == []


def test_a_file_that_cannot_be_judged_does_not_keep_the_others_from_it(path, caplog):
    (path / FILE).write_bytes(b"cut")
    place(path, FILE + "2")
    die(path)
    die(path, FILE + "2")
    rejected, _ = settle(path, limit=1)
    assert len(rejected) == 1
    assert "its process died, and that could not be counted" in caplog.text


def test_a_dead_letter_that_cannot_be_written_leaves_the_file(path, caplog):
    file = place(path)
    die(path)

    def full(*_args):
        raise OSError("No space left on device")

    assert Crashes(SpoolDirectory(path), SERVER, 1, full, full).settle(None, b"") is None
    assert file.exists()
    assert "could not be counted" in caplog.text


def test_a_file_whose_crash_cannot_be_counted_waits_all_the_same(path, monkeypatch):
    file = place(path)
    die(path)

    def full(*_args):
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    before = time.time()
    settle(path)
    assert before + 2 - 0.01 <= file.stat().st_mtime <= time.time() + 2 + 0.01


@pytest.mark.parametrize("content", ["", "1", "nonsense", "0 1", "0 1 x"])
def test_the_count_of_crashes_survives_a_writer_that_was_killed(path, content):
    place(path)
    (path / "running" / f"{FILE}.crashes").write_text(content)
    times(path, 1)
    assert note_of(path) == "0 1 0"


class Deadly:
    def __reduce__(self):
        return (os._exit, (9,))


def test_what_kills_whoever_decodes_it_is_judged_without_being_decoded(path):
    place(path, jobs=[JOB._replace(args=(Deadly(),))])
    die(path)
    child = os.fork()
    if child == 0:
        os._exit(0 if settle(path, limit=1)[0] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- the whole server


def test_the_end_of_the_whole_server_is_counted_apart_and_nothing_waits(path, caplog):
    caplog.set_level("INFO")
    file = place(path)
    times(path, 2)
    assert times(path, 4, incarnation=BEFORE) == ([], None)
    assert note_of(path) == "0 2 4"
    assert file.stat().st_mtime <= time.time()
    assert caplog.messages[-1] == f"{FILE}: its server died while it ran (4 of 10)"
    assert caplog.records[-1].levelname == "INFO"


def test_a_file_that_ended_the_whole_server_ten_times_is_a_dead_letter(path):
    file = place(path)
    assert times(path, 9, incarnation=BEFORE) == ([], None)
    rejected, _ = times(path, 1, incarnation=BEFORE)
    assert [reason for _, reason, _ in rejected] == [f"{REASON} (10)"]
    assert not file.exists()


def test_a_higher_limit_of_crashes_holds_for_the_server_too(path):
    place(path)
    rejected, _ = times(path, module._STOPS, limit=12, incarnation=BEFORE)
    assert rejected == []


# --- files with many calls


def test_of_a_batch_only_the_call_that_was_running_goes(path):
    file = place(path, jobs=batch())
    Progress(path / "running", FILE).note(1)
    assert times(path, 3) == ([], None)
    progress = Progress(path / "running", FILE)
    assert (progress.done, progress.condemned) == (1, True)
    # The others need not wait, and the next call has crashes of its own.
    assert file.stat().st_mtime <= time.time()
    assert not (path / "running" / f"{FILE}.crashes").exists()


def test_each_call_of_a_batch_has_crashes_of_its_own(path):
    place(path, jobs=batch())
    progress = Progress(path / "running", FILE)
    times(path, 2)
    progress.note(1)
    times(path, 2)
    assert (note_of(path), progress.condemned) == ("1 2 0", False)
    times(path, 1)
    assert (progress.done, progress.condemned) == (1, True)


def test_a_batch_that_kills_whoever_decodes_it_is_a_dead_letter_after_one_more_chance(path):
    file = place(path, jobs=[JOB._replace(args=(Deadly(),)), JOB])
    first, _ = times(path, 1, limit=1)
    second, _ = times(path, 1, limit=1)
    assert (first, [reason for _, reason, _ in second]) == ([], [f"{REASON} (1)"])
    assert not file.exists()


# --- the file that uWSGI has handed to the newcomer already


def test_a_crash_of_the_file_at_hand_is_counted(path):
    place(path)
    die(path)
    assert settle(path, current=FILE, payload=encode([JOB])) == ([], None)
    assert note_of(path) == "0 1 0"


def test_the_file_at_hand_must_not_run_after_too_many_crashes(path):
    file = place(path)
    die(path)
    # Whoever has it must bury it: opened and closed, it would lose the lock of uWSGI.
    assert settle(path, limit=1, current=FILE, payload=encode([JOB])) == ([], f"{REASON} (1)")
    assert file.exists()


def test_the_file_at_hand_is_not_opened(path, monkeypatch):
    place(path)
    die(path)
    opened = []
    open_ = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, *args, **kw: opened.append(path.name) or open_(path, *args, **kw)
    )
    settle(path, current=FILE, payload=encode([JOB]))
    assert FILE not in opened


def test_the_end_of_the_server_does_not_keep_the_file_at_hand_from_running(path):
    place(path)
    die(path, incarnation=BEFORE)
    assert settle(path, limit=1, current=FILE, payload=encode([JOB])) == ([], None)


def test_a_batch_at_hand_runs_without_the_call_that_was_running(path):
    place(path, jobs=batch())
    die(path)
    assert settle(path, limit=1, current=FILE, payload=encode(batch())) == ([], None)
    assert Progress(path / "running", FILE).condemned is True


def test_beside_the_file_at_hand_others_are_settled(path):
    place(path)
    other = place(path, FILE + "2")
    die(path, FILE + "2")
    rejected, condemned = settle(path, limit=1, current=FILE, payload=encode([JOB]))
    assert (len(rejected), condemned, other.exists()) == (1, None, False)


# --- what was killed on purpose


def test_what_was_killed_on_purpose_is_told_and_goes(path):
    file = place(path, OURS)
    die(path, OURS, killed=JOB.id)
    newcomer = Newcomer(path, limit=1)
    assert newcomer.settle(None, b"") is None
    assert (newcomer.cancelled, newcomer.rejected) == ([encode([JOB])], [])
    assert not file.exists()


def test_what_was_killed_on_purpose_must_not_run_if_it_is_at_hand(path):
    file = place(path, OURS)
    die(path, OURS, killed=JOB.id)
    newcomer = Newcomer(path, limit=1)
    assert newcomer.settle(OURS, encode([JOB])) == CANCELLED
    assert (newcomer.cancelled, newcomer.rejected, file.exists()) == ([], [], True)


def test_a_request_for_another_job_does_not_make_a_crash_a_cancel(path):
    place(path, OURS)
    die(path, OURS, killed="2")
    newcomer = Newcomer(path, limit=1)
    newcomer.settle(None, b"")
    assert (newcomer.cancelled, len(newcomer.rejected)) == ([], 1)


def test_what_is_known_of_a_file_of_the_future_is_not_forgotten(path):
    SpoolDirectory(path).write_later(encode(batch()), time.time() + 600, name=OURS)
    Progress(path / "running", OURS, 3).cancel(1)
    Newcomer(path).forget_finished()
    assert Progress(path / "running", OURS, 3).is_cancelled(1)
