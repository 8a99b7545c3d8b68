"""Spool files."""

import contextlib
import errno
import fcntl
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from uwsgi_tasks import spool_file as module
from uwsgi_tasks.errors import DecodeError, SubmitError
from uwsgi_tasks.spool_file import (
    PREFIX,
    batch_id,
    bury,
    delayed_name,
    file_name,
    job_id,
    locked,
    make_private,
    new_id,
    new_name,
    pack,
    pack_raw,
    pack_variables,
    settle,
    unpack,
    write,
    write_whole,
)

ID = "3f2c9ab01d2e4f56-17"
LARGE = 65_537
NOBODY = 65_534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


def full(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@contextlib.contextmanager
def run_by_another(file):
    """Let another process hold the lock, as uWSGI does while it runs a file."""
    ready, done = os.pipe()
    child = os.fork()
    if child == 0:
        with file.open("r+b") as held:
            fcntl.lockf(held, fcntl.LOCK_EX)
            os.write(done, b"x")
            signal.pause()
    os.read(ready, 1)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(done)


# --- what they are called


@pytest.mark.parametrize(
    ("given", "expected"),
    [((ID,), PREFIX + ID), ((ID, 1), PREFIX + ID), ((ID, 3), f"{PREFIX}{ID}_3")],
)
def test_a_file_is_called_after_its_job_and_its_attempt(given, expected):
    assert file_name(*given) == expected


@pytest.mark.parametrize("attempt", [1, 2, 40])
def test_the_name_of_a_file_leads_to_its_job(attempt):
    assert job_id(file_name(ID, attempt)) == ID


@pytest.mark.parametrize("id_", [ID, f"{ID}.0", f"{ID}.41"])
def test_the_calls_of_a_batch_have_an_id_in_common(id_):
    assert batch_id(id_) == ID


def test_no_two_names_are_equal():
    assert len({new_name() for _ in range(1000)} | {new_id() for _ in range(1000)}) == 2000


def test_a_new_name_is_that_of_a_spool_file_and_a_new_id_is_not():
    assert new_name().startswith(PREFIX)
    assert not new_id().startswith(PREFIX)


# --- what is in them


def test_variables_that_are_packed_already_make_the_same_file():
    variables = {"a": "1", "b": b"\xff"}
    assert pack_raw(pack_variables(variables), b"body") == pack(variables, b"body")


def test_a_file_without_variables_has_a_body_alone():
    assert unpack(pack({}, b"body")) == ({}, b"body")


@pytest.mark.parametrize(
    "variables",
    [{"x": "y" * 65_536}, {"x" * 65_536: "y"}, {str(n): "y" * 1000 for n in range(100)}],
    ids=["value", "key", "all"],
)
def test_what_does_not_fit_into_sixteen_bits_is_refused(variables):
    with pytest.raises(ValueError, match="16 bits of length"):
        pack(variables, b"")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x11",
        b"\x11\x05\x00\x00ab",
        b"\x11\x01\x00\x00a",
        pack({"a": "b"}, b"")[:4] + b"\x01\x00ab\x00\x00",
    ],
)
def test_what_is_no_spool_file_is_refused(content):
    with pytest.raises(DecodeError):
        unpack(content)


# --- uWSGI's clock


@pytest.fixture
def uwsgis_clock(monkeypatch):
    """The seconds that uWSGI sees, one a look, and then for ever the last; for us it is 100.005."""
    seen = [100]
    monkeypatch.setattr(module.time, "time", lambda: 100.005)
    monkeypatch.setattr(
        module.time, "clock_gettime", lambda _: seen.pop(0) if len(seen) > 1 else seen[0]
    )
    return seen


linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has that clock")


@linux
def test_the_clock_that_uwsgi_looks_at_is_never_ahead_and_hardly_behind():
    # In this order: what takes long between the looks must not put it ahead.
    seen = time.clock_gettime(module._COARSE_CLOCK)
    behind = time.time() - seen
    assert -0.001 < behind < 10


@linux
def test_who_has_written_as_a_second_began_waits_for_uwsgis_clock(uwsgis_clock):
    uwsgis_clock[:] = [99.99, 99.99, 99.99, 100.0, 100.1]
    settle()
    assert uwsgis_clock == [100.1]


@linux
@pytest.mark.parametrize(("now", "seen"), [(100.005, 100.004), (100.03, 99.99)])
def test_at_any_other_time_nobody_waits(uwsgis_clock, monkeypatch, now, seen):
    uwsgis_clock[:] = [seen]
    monkeypatch.setattr(module.time, "time", lambda: now)
    monkeypatch.setattr(module.time, "sleep", pytest.fail)
    assert settle() is None


@linux
def test_nobody_waits_for_a_clock_that_there_is_not(monkeypatch):
    monkeypatch.setattr(module.time, "time", lambda: 100.005)

    def has_none(_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(module.time, "clock_gettime", has_none)
    assert settle() is None


@linux
def test_nobody_waits_for_long_for_a_clock_that_was_put_back(uwsgis_clock, sleeping_here):
    uwsgis_clock[:] = [3.0]
    pauses = []
    sleeping_here(pauses.append)
    settle()
    assert 0.01 < sum(pauses) < 0.1


# --- writing


@pytest.mark.parametrize("size", [1, LARGE])
@pytest.mark.parametrize("durable", [False, True])
def test_what_was_written_is_there_for_its_owner_alone(tmp_path, size, durable):
    write(tmp_path, "name", b"x" * size, durable=durable)
    (file,) = tmp_path.iterdir()
    assert (file.name, file.read_bytes()) == ("name", b"x" * size)
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_file_of_an_earlier_try_is_replaced(tmp_path):
    (tmp_path / "name").write_bytes(b"")
    write(tmp_path, "name", b"content")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"content"]


@pytest.mark.parametrize("size", [1, LARGE])
def test_a_file_that_is_being_run_is_left_to_its_end(tmp_path, size):
    (tmp_path / "name").write_bytes(b"runs")
    with run_by_another(tmp_path / "name"):
        write(tmp_path, "name", b"x" * size)
    first, second = sorted(tmp_path.iterdir(), key=lambda file: len(file.name))
    assert (first.name, first.read_bytes()) == ("name", b"runs")
    assert (second.name.startswith("name_"), second.read_bytes()) == (True, b"x" * size)


@pytest.mark.parametrize("size", [1, LARGE])
def test_a_name_that_cannot_be_asked_for_is_not_taken(tmp_path, size):
    (tmp_path / "name").mkdir()
    write(tmp_path, "name", b"x" * size)
    assert [file.name[:5] for file in tmp_path.iterdir() if file.is_file()] == ["name_"]


def test_a_delayed_file_has_the_name_that_it_will_have_in_its_own():
    path = Path("/spool/later/7") / f"1700000000000_5_{PREFIX}{ID}_2"
    assert delayed_name(path) == file_name(ID, 2)


def test_a_folder_that_is_missing_is_a_submit_error(tmp_path):
    with pytest.raises(SubmitError, match=r"could not write into .*: No such file"):
        write(tmp_path / "missing", "name", b"content")


@pytest.mark.parametrize("part", [0, 3])
def test_a_file_that_was_not_written_whole_does_not_stay(tmp_path, monkeypatch, part):
    written = os.write
    monkeypatch.setattr(os, "write", lambda handle, content: written(handle, content[:part]))
    with pytest.raises(SubmitError, match="No space left on device"):
        write(tmp_path, "name", b"content")
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_is_interrupted_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, "name", b"content")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_locked_while_it_is_written(tmp_path, monkeypatch):
    written, seen = os.write, []

    def look(handle, content):
        child = os.fork()
        if child == 0:
            with locked(tmp_path / "name") as file:
                os._exit(0 if file is None else 1)
        seen.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        return written(handle, content)

    monkeypatch.setattr(os, "write", look)
    write(tmp_path, "name", b"content")
    assert seen == [0]


def test_folders_are_made_if_need_be(tmp_path):
    folder = tmp_path / "later" / "1"
    write_whole(folder / "name", b"content", [folder.parent, folder])
    assert (folder / "name").read_bytes() == b"content"
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("times", "written"), [(1, True), (4, True), (5, False)])
def test_a_folder_that_is_taken_away_just_now_is_made_again(tmp_path, monkeypatch, times, written):
    folder, left, real = tmp_path / "later", [times], module._write_private

    def write_private(*args, **kwargs):
        if left[0]:
            left[0] -= 1
            folder.exists() and folder.rmdir()
        real(*args, **kwargs)

    monkeypatch.setattr(module, "_write_private", write_private)
    with contextlib.nullcontext() if written else pytest.raises(SubmitError):
        write_whole(folder / "name", b"content", [folder])
    assert (folder / "name").exists() is written


def test_a_file_is_dated_before_it_has_its_name(tmp_path):
    write_whole(tmp_path / "name", b"content", due=5)
    assert (tmp_path / "name").stat().st_mtime == 5


def test_a_durable_file_is_synced_and_so_are_the_folders_of_its_name(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda handle: synced.append(Path(f"/proc/self/fd/{handle}").readlink()) or fsync(handle),
    )
    folder = tmp_path / "later"
    write_whole(folder / "name", b"content", [folder], durable=True)
    assert synced[0].name.startswith(".name.")
    assert set(synced[1:]) == {folder, tmp_path}


def test_a_private_folder_that_is_durable_is_synced(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(module, "_sync", synced.append)
    make_private(tmp_path / "1", durable=True)
    assert synced == [tmp_path]


def test_a_temporary_file_does_not_stay_if_its_name_cannot_be_given(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(SubmitError, match="No space left"):
        write_whole(tmp_path / "name", b"content")
    assert list(tmp_path.iterdir()) == []


@as_root
@pytest.mark.parametrize("size", [1, LARGE])
def test_what_root_writes_belongs_to_the_owner_of_the_directory(tmp_path, size):
    os.chown(tmp_path, NOBODY, NOBODY)
    write(tmp_path, "name", b"x" * size)
    found = (tmp_path / "name").stat()
    assert (found.st_uid, found.st_gid) == (NOBODY, NOBODY)


@as_root
def test_a_folder_that_root_makes_belongs_to_the_owner_of_the_one_around_it(tmp_path):
    os.chown(tmp_path, NOBODY, NOBODY)
    make_private(tmp_path / "5")
    assert (tmp_path / "5").stat().st_uid == NOBODY


def test_who_is_not_root_gives_nothing_away(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "chown", lambda *_: pytest.fail("given away"))
    write(tmp_path, "name", b"content")
    write_whole(tmp_path / "other", b"content")
    make_private(tmp_path / "5")
    assert len(list(tmp_path.iterdir())) == 3


# --- the lock of uWSGI


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "name"
    path.write_bytes(b"content")
    return path


def test_who_has_the_lock_may_read(file):
    with locked(file) as held:
        assert held.read() == b"content"


def test_who_has_the_lock_keeps_others_from_it(file):
    with locked(file):
        child = os.fork()
        if child == 0:
            with locked(file) as held:
                os._exit(0 if held is None else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_a_file_that_is_being_run_is_not_to_be_had(file):
    with run_by_another(file), locked(file) as held:
        assert held is None


def test_a_file_that_is_gone_is_not_to_be_had(file, monkeypatch):
    lockf = fcntl.lockf
    # As it is if uWSGI has just run it.
    monkeypatch.setattr(fcntl, "lockf", lambda *args: file.unlink() or lockf(*args))
    with pytest.raises(FileNotFoundError), locked(file):
        pytest.fail("it was not there any more")


# --- dead letters


def kept(folder, **variables):
    return unpack(bury(folder, variables, b"body").read_bytes())


def test_a_dead_letter_holds_what_is_known_of_it(tmp_path):
    assert kept(tmp_path / "dead", task="f", error="no") == ({"task": "f", "error": "no"}, b"body")


def test_of_a_long_text_the_end_is_kept(tmp_path):
    variables, _ = kept(tmp_path, traceback="x" * 20_000 + "the end")
    assert len(variables["traceback"]) == 16_000
    assert variables["traceback"].endswith("the end")


def test_a_letter_is_not_cut_in_half(tmp_path):
    variables, _ = kept(tmp_path, error="ä" * 10_000 + "x")
    assert set(variables["error"]) == {"ä", "x"}


def test_bytes_are_part_of_the_job_and_kept_whole(tmp_path):
    args = bytes(range(256)) * 200
    variables, _ = kept(tmp_path, traceback="x" * 20_000, args=args)
    assert variables["args"].encode("utf-8", "surrogateescape") == args
    assert 10_000 < len(variables["traceback"]) < 16_000


def test_a_text_for_which_there_is_no_room_is_left_out(tmp_path):
    variables, _ = kept(tmp_path, error="no", args=b"x" * 65_527)
    assert list(variables) == ["args"]


def test_a_text_that_no_encoding_takes_is_shown(tmp_path):
    assert kept(tmp_path, error="half: \ud83d")[0]["error"] == "half: \\ud83d"


def test_bytes_that_do_not_fit_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="16 bits"):
        kept(tmp_path, args=b"x" * 65_536)


def test_a_dead_letter_that_cannot_be_written_is_a_submit_error(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(SubmitError, match="No space left"):
        kept(tmp_path, error="no")
