"""A spooler's directory as files."""

import errno
import fcntl
import os
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import by_version
from uwsgi_tasks import spool
from uwsgi_tasks.errors import ConfigurationError, DecodeError, SubmitError
from uwsgi_tasks.spool import TICKET, SpoolDirectory
from uwsgi_tasks.spool_file import PREFIX, bury, pack, unpack

NOW = 1_700_000_000.0
BUCKET = 16.0
PASSED = NOW - NOW % BUCKET
"""When the bucket that NOW is in begins."""


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "spool"
    path.mkdir(mode=0o750)
    return SpoolDirectory(path)


def bodies(folder):
    """The jobs in a folder that uWSGI reads."""
    return sorted(
        unpack(file.read_bytes())[1]
        for file in Path(folder).glob(PREFIX + "*")
        if file.name != TICKET
    )


def delayed(directory):
    return sorted(
        unpack(file.read_bytes())[1] for file in directory.path.glob(f"later/*/*{PREFIX}*")
    )


def ticket_of(directory):
    return (directory.path / TICKET).stat().st_mtime


# --- the format


def test_a_file_has_the_format_of_uwsgi():
    assert pack({"at": "12"}, b"body") == (
        struct.pack("<BHB", 17, 8, 0) + b"\x02\x00at" + b"\x02\x0012" + b"body"
    )


TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.dictionaries(TEXTS, TEXTS), st.binary())
def test_what_was_packed_comes_back(variables, body):
    assert unpack(pack(variables, body)) == (variables, body)


def test_bytes_that_are_no_text_come_back():
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert unpack(pack({"path": name}, b""))[0]["path"] == name


@given(st.binary())
def test_any_bytes_are_variables_or_a_decode_error(content):
    try:
        variables, body = unpack(content)
    except DecodeError:
        return
    assert content.endswith(body)
    assert all(isinstance(text, str) for pair in variables.items() for text in pair)


def test_variables_cut_anywhere_are_found():
    content = pack({"task": "shop.send", "error": "OSError"}, b"")
    for end in range(len(content)):
        with pytest.raises(DecodeError, match="cut"):
            unpack(content[:end])


@pytest.mark.parametrize(
    "head",
    [
        b"\x01\x00a",  # a key without a value
        b"\x05\x00a",  # longer than what is there
        b"\x01",  # half a length
    ],
)
def test_variables_that_do_not_add_up_are_found(head):
    with pytest.raises(DecodeError):
        unpack(struct.pack("<BHB", 17, len(head), 0) + head)


@pytest.mark.parametrize(
    "variables",
    [
        {"x" * 65_536: ""},
        {"x": "y" * 65_536},
        {"x": "ä" * 32_768},
        {"a": "x" * 40_000, "b": "x" * 40_000},
    ],
)
def test_what_does_not_fit_is_refused_and_never_cut(variables):
    with pytest.raises(ValueError, match="do not fit into 16 bits"):
        pack(variables, b"")


# --- check


def test_a_private_directory_is_in_order(directory):
    assert directory.check() is None


def test_a_directory_that_is_missing_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="is not there: create it"):
        SpoolDirectory(tmp_path / "missing").check()


def test_a_directory_that_cannot_be_reached_is_refused_with_the_reason(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"cannot be reached \(Not a directory\)"):
        SpoolDirectory(tmp_path / "file" / "spool").check()


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="is not a directory"):
        SpoolDirectory(tmp_path / "file").check()


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702])
def test_a_directory_that_everybody_may_write_to_is_refused(directory, mode):
    directory.path.chmod(mode)
    with pytest.raises(ConfigurationError, match=r"everybody may write .*chmod o-w"):
        directory.check()


def test_a_directory_that_we_may_not_write_to_is_refused(directory, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_args: False)
    with pytest.raises(ConfigurationError, match=r"not writable .*as the user that uWSGI runs as"):
        directory.check()


# --- writing


def test_a_job_lies_where_uwsgi_reads(directory):
    directory.write(b"job")
    assert bodies(directory.path) == [b"job"]


def test_a_job_with_a_priority_lies_in_its_folder(directory):
    directory.write(b"job", priority=7)
    assert bodies(directory.path / "7") == [b"job"]


def test_what_is_written_is_for_its_owner_only(directory):
    directory.write(b"job", priority=7)
    found = [directory.path / "7", *(directory.path / "7").iterdir()]
    assert [stat.S_IMODE(path.stat().st_mode) for path in found] == [0o700, 0o600]


def test_the_jobs_of_one_process_keep_their_order_in_a_sorted_listing(directory):
    for number in range(30):
        directory.write(b"%d" % number)
    in_order = sorted(directory.path.iterdir(), key=lambda path: by_version(path.name))
    assert [unpack(path.read_bytes())[1] for path in in_order] == [b"%d" % n for n in range(30)]


def disk_full(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


class HalfAFile:
    """A disk that is full after the first byte."""

    def __init__(self, handle, *_args):
        self.handle = handle

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        os.close(self.handle)

    def fileno(self):
        return self.handle

    def write(self, content):
        os.write(self.handle, content[:1])
        disk_full()


@pytest.mark.parametrize(
    ("write", "given"),
    [("write", {}), ("write", {"durable": True}), ("write_later", {"due": NOW})],
)
def test_a_job_that_does_not_fit_on_the_disk_leaves_nothing(directory, monkeypatch, write, given):
    write_ = os.write
    monkeypatch.setattr(os, "fdopen", HalfAFile)
    monkeypatch.setattr(os, "write", lambda handle, content: write_(handle, content[:1]))
    with pytest.raises(SubmitError, match=r"could not write into .*: No space left on device"):
        getattr(directory, write)(b"job", **given)
    assert [path for path in directory.path.rglob("*uwsgi*") if path.is_file()] == []


def test_a_job_whose_file_cannot_be_put_in_place_leaves_nothing(directory, monkeypatch):
    monkeypatch.setattr(Path, "rename", disk_full)
    with pytest.raises(SubmitError, match="could not write"):
        directory.write(b"x" * 100_000, durable=True)
    assert list(directory.path.iterdir()) == []


def test_a_delayed_job_whose_ticket_cannot_be_written_leaves_nothing(directory, monkeypatch):
    write_whole = spool.write_whole

    def full_for_the_ticket(path, *args, **kwargs):
        (disk_full if path.name == TICKET else write_whole)(path, *args, **kwargs)

    monkeypatch.setattr(spool, "write_whole", full_for_the_ticket)
    with pytest.raises(SubmitError):
        directory.write_later(b"job", NOW)
    assert delayed(directory) == []


def test_a_writer_that_was_killed_over_the_ticket_stops_nobody(directory):
    # A later process may have its number.
    (directory.path / f".{TICKET}.{os.getpid()}").touch()
    (directory.path / f".{TICKET}_{PREFIX}half").touch()
    directory.write_later(b"job", NOW)
    assert ticket_of(directory) == NOW


# --- what is delayed


def test_a_delayed_job_does_not_lie_where_uwsgi_reads(directory):
    directory.write_later(b"job", NOW)
    assert (bodies(directory.path), delayed(directory)) == ([], [b"job"])


def test_the_ticket_is_a_spool_file_without_a_job(directory):
    directory.write_later(b"job", NOW)
    variables, body = unpack((directory.path / TICKET).read_bytes())
    assert (variables, body) == ({"uwsgi_tasks": "moves in what is due"}, b"")


@pytest.mark.parametrize("order", [(10.7, 99.0, 30.0), (99.0, 30.0, 10.7), (10.7, 10.7, 99.0)])
def test_the_ticket_is_due_with_the_first_job(directory, order):
    for after in order:
        directory.write_later(b"job", NOW + after)
    assert ticket_of(directory) == NOW + 10


def test_a_job_is_not_moved_in_before_its_time(directory):
    directory.write_later(b"job", NOW)
    assert directory.move_in(NOW - 0.001) == 0
    assert (bodies(directory.path), delayed(directory)) == ([], [b"job"])


def test_a_job_is_moved_in_at_its_time(directory):
    directory.write_later(b"job", NOW)
    assert directory.move_in(NOW) == 1
    assert (bodies(directory.path), delayed(directory)) == ([b"job"], [])


def test_a_time_between_two_milliseconds_is_rounded_up(directory):
    directory.write_later(b"job", NOW + 0.0004)
    assert directory.move_in(NOW + 0.0004) == 0


def test_a_job_with_a_priority_is_moved_into_its_folder(directory):
    directory.write_later(b"job", NOW, priority=3)
    directory.move_in(NOW)
    assert bodies(directory.path / "3") == [b"job"]


def test_only_what_is_due_is_moved_in(directory):
    for after in (0, 1, 2, 63, 64, 1000):
        directory.write_later(b"%d" % after, PASSED + after)
    assert directory.move_in(PASSED + 63) == 4
    assert bodies(directory.path) == [b"0", b"1", b"2", b"63"]
    assert delayed(directory) == [b"1000", b"64"]


@pytest.mark.parametrize(
    ("waiting", "expected"),
    [
        ([12], 12),  # in the folder that is being emptied: to the second
        ([640 + 12], 640),  # in a later one: when that one begins
        ([12, 640], 12),
    ],
)
def test_the_ticket_is_put_to_the_next_job(directory, waiting, expected):
    for after in (0, *waiting):
        directory.write_later(b"job", PASSED + after)
    directory.move_in(PASSED)
    assert ticket_of(directory) == PASSED + expected


def test_the_ticket_rests_when_nothing_waits(directory):
    directory.write_later(b"job", NOW)
    directory.move_in(NOW)
    assert ticket_of(directory) == 2**31 - 1


def test_a_new_job_sets_a_resting_ticket_again(directory):
    directory.write_later(b"one", NOW)
    directory.move_in(NOW)
    directory.write_later(b"two", NOW + 5)
    assert ticket_of(directory) == NOW + 5


def test_folders_that_are_empty_go(directory):
    directory.write_later(b"job", NOW)
    directory.move_in(NOW)
    assert [path.name for path in directory.path.glob("later/[0-9]*")] == []


def test_a_job_that_is_just_being_written_keeps_its_folder(directory):
    directory.write_later(b"job", NOW)
    (folder,) = directory.path.glob("later/[0-9]*")
    (folder / f".{int(NOW * 1000)}_-_{PREFIX}x").touch()
    directory.move_in(NOW)
    assert len(list(folder.iterdir())) == 1


def test_a_folder_that_the_mover_takes_away_is_made_again(directory, monkeypatch):
    directory.write_later(b"one", NOW)
    directory.move_in(NOW)
    directory.write_later(b"two", NOW)
    assert delayed(directory) == [b"two"]


def test_a_stray_file_among_delayed_jobs_does_not_hold_them_up(directory):
    directory.write_later(b"job", NOW)
    (folder,) = directory.path.glob("later/[0-9]*")
    (folder / "0-notes.txt").write_text("mine")
    directory.move_in(NOW)
    assert bodies(directory.path) == [b"job"]


def test_moving_in_works_without_a_ticket(directory):
    directory.write_later(b"job", NOW)
    (directory.path / TICKET).unlink()
    assert directory.move_in(NOW) == 1


def test_hundreds_of_delayed_jobs_are_moved_in_once_each(directory):
    expected = sorted(b"%d" % number for number in range(500))
    for number in range(500):
        directory.write_later(b"%d" % number, PASSED + number)
    moved = sum(directory.move_in(PASSED + second) for second in range(0, 501, 50))
    assert (moved, bodies(directory.path), delayed(directory)) == (500, expected, [])


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("last", range(1, 8))
def test_a_mover_killed_between_two_renames_loses_and_doubles_nothing(directory, monkeypatch, last):
    names = [b"%d" % number for number in range(6)]
    for number, name in enumerate(names):
        directory.write_later(name, PASSED + 40 * number, priority=number % 2 or None)
    left = iter(range(last))
    rename = Path.rename

    def killed(path, target):
        if next(left, None) is None:
            raise Killed
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        patch.setattr(SpoolDirectory, "_set_ticket", lambda _self, _due: None)
        try:
            directory.move_in(PASSED + 1000)
        except Killed:
            found = bodies(directory.path) + bodies(directory.path / "1") + delayed(directory)
            assert sorted(found) == names
    directory.move_in(PASSED + 1000)

    assert sorted(bodies(directory.path) + bodies(directory.path / "1")) == names
    assert delayed(directory) == []


def test_what_a_killed_mover_has_left_is_tried_again_soon(directory, monkeypatch):
    directory.write_later(b"job", NOW)

    def killed(*_args):
        raise Killed

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(Killed):
        directory.move_in(NOW)
    assert ticket_of(directory) == NOW + 5


MOVER = """
import os, sys
from pathlib import Path
from uwsgi_tasks.spool import SpoolDirectory
rename, left = Path.rename, iter(range(int(sys.argv[2])))
def killed(path, target):
    if next(left, None) is None:
        os.kill(os.getpid(), 9)
    return rename(path, target)
Path.rename = killed
SpoolDirectory(sys.argv[1]).move_in(float(sys.argv[3]))
"""


def test_a_mover_that_is_really_killed_leaves_its_lock_to_the_next_one(directory):
    for number in range(4):
        directory.write_later(b"%d" % number, PASSED + number)
    mover = [sys.executable, "-c", MOVER, str(directory.path), "2", str(PASSED + 9)]
    code = subprocess.run(mover, check=False, cwd=Path(spool.__file__).parent.parent).returncode

    assert (code, directory.move_in(PASSED + 9)) == (-9, 2)
    assert bodies(directory.path) == [b"0", b"1", b"2", b"3"]


def test_the_mover_does_not_open_the_ticket(directory, monkeypatch):
    # uWSGI holds a lock on it, which closing any other handle of this process would drop.
    directory.write_later(b"job", NOW)
    opened = []
    open_ = os.open
    monkeypatch.setattr(os, "open", lambda path, *args: opened.append(path) or open_(path, *args))
    directory.move_in(NOW)
    assert [Path(path).name for path in opened] == [".lock"]


# --- dead letters


def test_a_dead_letter_is_a_spool_file_with_what_is_known_of_it(directory):
    path = bury(directory.dead, {"task": "shop.send", "error": "OSError: no"}, b"job")
    assert unpack(path.read_bytes()) == ({"task": "shop.send", "error": "OSError: no"}, b"job")


def test_a_dead_letter_moved_back_is_a_job_again(directory):
    path = bury(directory.dead, {"task": "shop.send"}, b"job")
    path.rename(directory.path / path.name)
    assert bodies(directory.path) == [b"job"]


def test_of_a_long_traceback_the_end_is_kept(directory):
    path = bury(directory.dead, {"traceback": "x" * 100_000 + "OSError: no"}, b"job")
    text = unpack(path.read_bytes())[0]["traceback"]
    assert (len(text), text[-11:]) == (16_000, "OSError: no")


@pytest.mark.parametrize(
    "variables",
    [
        {f"traceback{number}": "😀" * 100_000 for number in range(4)},
        {f"variable{number}": "x" * 7_000 for number in range(12)},
        {"error": "half of a pair: \ud83d"},
    ],
    ids=["wide", "many", "surrogate"],
)
def test_whatever_is_known_of_a_dead_letter_it_is_kept(directory, variables):
    path = bury(directory.dead, variables, b"job")
    assert unpack(path.read_bytes())[1] == b"job"


def test_what_is_part_of_the_job_is_kept_whole_and_what_is_said_of_it_gives_way(directory):
    part = bytes(range(256)) * 255
    path = bury(directory.dead, {"error": "x" * 9_000, "args": part}, b"")
    variables, _ = unpack(path.read_bytes())
    assert variables["args"].encode("utf-8", "surrogateescape") == part
    assert 0 < len(variables["error"]) < 300


def test_what_is_said_of_a_job_that_leaves_no_room_is_left_out(directory):
    path = bury(directory.dead, {"error": "x", "args": b"x" * 65_520}, b"")
    assert list(unpack(path.read_bytes())[0]) == ["args"]


def test_a_dead_letter_that_cannot_be_written_is_an_error(directory, monkeypatch):
    monkeypatch.setattr(os, "fdopen", HalfAFile)
    with pytest.raises(SubmitError, match="No space left"):
        bury(directory.dead, {}, b"job")


# --- at the start of a spooler


@pytest.mark.parametrize("priority", [None, 5])
def test_a_file_is_found_by_its_name(directory, priority):
    directory.write(b"job", priority=priority)
    (path,) = directory.path.rglob(PREFIX + "*")
    assert directory.find(path.name) == path


def test_a_file_that_is_gone_is_not_found(directory):
    assert directory.find(PREFIX + "gone") is None


def test_the_jobs_of_priorities_are_rescued_where_uwsgi_would_never_read_them(directory, caplog):
    directory.write(b"one", priority=1)
    directory.write(b"two", priority=2)
    directory.tidy(ordered=False)
    assert bodies(directory.path) == [b"one", b"two"]
    assert caplog.text.count("'spooler-ordered' is off") == 2


def test_the_jobs_of_priorities_stay_where_uwsgi_reads_them(directory):
    directory.write(b"one", priority=1)
    directory.tidy(ordered=True)
    assert bodies(directory.path / "1") == [b"one"]


def test_the_rescue_leaves_the_files_of_others_alone(directory):
    (directory.path / "3").mkdir()
    (directory.path / "3" / "mine").touch()
    directory.tidy(ordered=False)
    assert (directory.path / "3" / "mine").exists()


def test_a_job_that_somebody_else_rescues_is_no_fault(directory, monkeypatch):
    directory.write(b"one", priority=1)

    def gone(*_args):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "rename", gone)
    assert directory.tidy(ordered=False) is None


def test_a_lost_ticket_is_written_again_where_jobs_wait(directory):
    directory.write_later(b"job", NOW)
    (directory.path / TICKET).unlink()
    directory.tidy(ordered=True)
    assert ticket_of(directory) <= time.time()


def test_a_directory_without_delayed_jobs_needs_no_ticket(directory):
    directory.tidy(ordered=True)
    assert list(directory.path.iterdir()) == []


def aged(path, hours):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.touch()
    moment = time.time() - hours * 3600
    os.utime(path, (moment, moment))
    return path


@pytest.mark.parametrize(
    "name",
    [
        f".{PREFIX}half",
        f"dead/.{PREFIX}half",
        f"later/27/.1_-_{PREFIX}half",
        f"3/.{PREFIX}half",
    ],
)
def test_half_a_file_of_a_killed_writer_goes_after_an_hour(directory, name):
    path = aged(directory.path / name, hours=2)
    directory.tidy(ordered=True)
    assert not path.exists()


PROBES = [
    f"{PREFIX}probe_0f",
    f".{PREFIX}probe_0f.1a",
    "running/0f.probe",
    "running/.0f.probe.1a",
]


@pytest.mark.parametrize("name", PROBES)
def test_a_question_of_a_killed_doctor_goes_after_an_hour(directory, name):
    path = aged(directory.path / name, hours=2)
    path.write_bytes(b"question")
    aged(path, hours=2)
    directory.tidy(ordered=True)
    assert not path.exists()


@pytest.mark.parametrize("name", PROBES)
def test_a_question_that_waits_for_its_answer_stays(directory, name):
    path = aged(directory.path / name, hours=0.5)
    directory.tidy(ordered=True)
    assert path.exists()


@pytest.mark.parametrize("name", ["running/4711.402", f"running/{PREFIX}batch.done"])
def test_what_belongs_to_the_spoolers_is_not_tidied_away(directory, name):
    path = aged(directory.path / name, hours=2)
    directory.tidy(ordered=True)
    assert path.exists()


def test_half_a_file_of_a_living_writer_stays(directory):
    path = aged(directory.path / f".{PREFIX}half", hours=0.5)
    directory.tidy(ordered=True)
    assert path.exists()


@pytest.mark.parametrize("name", [".gitignore", ".gitkeep", "notes.txt"])
def test_tidying_leaves_the_files_of_others_alone(directory, name):
    path = aged(directory.path / name, hours=2)
    directory.tidy(ordered=True)
    assert path.exists()


def test_waiting_jobs_are_not_tidied_away_however_old(directory):
    directory.write(b"job")
    (path,) = directory.path.iterdir()
    aged(path, hours=1000)
    directory.tidy(ordered=True)
    assert bodies(directory.path) == [b"job"]


# --- who it belongs to

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
WWW = 33


@pytest.fixture
def of_www(directory):
    """A directory of a user that root writes into."""
    os.chown(directory.path, WWW, WWW)
    return directory


def owners(folder):
    return {(path.lstat().st_uid, path.lstat().st_gid) for path in folder.rglob("*")}


@root_only
@pytest.mark.parametrize(
    "write",
    [
        lambda found: found.write(b"job"),
        lambda found: found.write(b"job", 7),
        lambda found: found.write_later(b"job", NOW, 7),
        lambda found: found.write_later(b"job", NOW) or found.move_in(NOW),
        lambda found: found.write_later(b"job", NOW, 7) or found.move_in(NOW),
        lambda found: bury(found.dead, {}, b"job"),
    ],
    ids=["now", "priority", "later", "moved", "moved with priority", "dead"],
)
def test_what_root_writes_belongs_to_whom_the_directory_belongs(of_www, write):
    write(of_www)
    assert owners(of_www.path) == {(WWW, WWW)}


@root_only
def test_what_root_writes_into_its_own_directory_stays_its_own(directory):
    directory.write_later(b"job", NOW, 7)
    directory.move_in(NOW)
    assert {uid for uid, _ in owners(directory.path)} == {0}


@root_only
def test_the_directory_itself_is_not_given_away(directory):
    os.chown(directory.path.parent, WWW, WWW)
    directory.write_later(b"job", NOW)
    directory.move_in(NOW)
    assert directory.path.stat().st_uid == 0


def test_who_is_not_root_gives_nothing_away(directory, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: WWW)
    monkeypatch.setattr(os, "chown", lambda *_args: pytest.fail("that is for root"))
    directory.write(b"job", 7)
    directory.write_later(b"job", NOW)
    assert directory.move_in(NOW) == 1


# --- a directory that cannot be trusted, or would not be read


def test_a_directory_that_a_strange_group_may_write_to_is_refused(directory, monkeypatch):
    directory.path.chmod(0o770)
    os.chown(directory.path, -1, os.getegid())
    assert directory.check() is None
    monkeypatch.setattr(os, "getegid", lambda: 12345)
    gid = directory.path.stat().st_gid
    if gid == 0:  # that of root, which may write anywhere
        assert directory.check() is None
        os.chown(directory.path, -1, WWW)
    with pytest.raises(ConfigurationError, match=r"a group that is not yours .*chmod g-w"):
        directory.check()
    directory.path.chmod(0o750)
    assert directory.check() is None


@pytest.mark.parametrize("folder", ["", "running", "later", "dead"])
def test_each_folder_that_we_may_not_write_to_is_refused(directory, monkeypatch, folder):
    for name in ("running", "later", "dead"):
        (directory.path / name).mkdir()
    refused = directory.path / folder
    monkeypatch.setattr(os, "access", lambda path, _mode: path != refused)
    with pytest.raises(ConfigurationError, match=f"{refused} is not writable .*chown -R"):
        directory.check()


@pytest.mark.parametrize(("ours", "allowed"), [(WWW, True), (0, True), (WWW + 1, False)])
def test_a_user_whose_files_the_spoolers_cannot_read_is_refused(
    directory, monkeypatch, ours, allowed
):
    (directory.path / "running").mkdir()
    stat_ = Path.stat
    theirs = os.stat_result((0o40700, *(0,) * 3, WWW, *(0,) * 5))
    monkeypatch.setattr(
        Path, "stat", lambda path, **kw: theirs if path.name == "running" else stat_(path, **kw)
    )
    monkeypatch.setattr(os, "geteuid", lambda: ours)
    if allowed:
        assert directory.check() is None
    else:
        with pytest.raises(ConfigurationError, match=f"run as user {WWW}, .* as that user"):
            directory.check()


def gone(directory):
    directory.path.rmdir()
    return directory


@pytest.mark.parametrize(
    "write",
    [
        lambda found: found.write(b"job"),
        lambda found: found.write(b"job", 7),
        lambda found: found.write_later(b"job", NOW),
        lambda found: bury(found.dead, {}, b"job"),
    ],
    ids=["now", "priority", "later", "dead"],
)
def test_a_directory_that_is_gone_is_an_error_and_never_made_again(directory, write):
    with pytest.raises(SubmitError, match="could not write"):
        write(gone(directory))
    assert not directory.path.exists()


def test_moving_in_does_not_make_the_directory_again(directory):
    with pytest.raises(FileNotFoundError):
        gone(directory).move_in(NOW)
    assert not directory.path.exists()


# --- folders of due times


@pytest.mark.parametrize(("after", "folders"), [((0, 15.9), 1), ((0, 16), 2), ((0, 8, 40), 2)])
def test_jobs_of_16_seconds_share_a_folder(directory, after, folders):
    for seconds in after:
        directory.write_later(b"job", PASSED + seconds)
    assert len(list(directory.path.glob("later/[0-9]*"))) == folders


def test_where_priorities_are_not_read_a_job_is_moved_beside_the_others(directory):
    directory.write_later(b"job", NOW, priority=3)
    assert directory.move_in(NOW, ordered=False) == 1
    assert bodies(directory.path) == [b"job"]
    assert not (directory.path / "3").exists()


def test_the_ticket_is_written_whole_or_not_at_all(directory, monkeypatch):
    # uWSGI may read it at any moment, and would not heed a time that comes later.
    seen = []
    rename = Path.rename

    def looking(path, target):
        if Path(target).name == TICKET:
            seen.append((unpack(path.read_bytes())[0], path.stat().st_mtime))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", looking)
    directory.write_later(b"job", NOW + 7)
    assert seen == [({"uwsgi_tasks": "moves in what is due"}, NOW + 7)]


@pytest.fixture
def held(directory):
    """A job that another process runs at present."""
    directory.write(b"first", name=f"{PREFIX}1")
    reader, writer = os.pipe()
    ended, end = os.pipe()
    child = os.fork()
    if not child:
        # Nothing of the test may go on here.
        try:
            file = (directory.path / f"{PREFIX}1").open("r+b")
            fcntl.lockf(file, fcntl.LOCK_EX)
            os.write(writer, b".")
            os.close(end)
            os.read(ended, 1)
        finally:
            os._exit(0)
    os.read(reader, 1)
    yield directory.path / f"{PREFIX}1"
    os.close(end)
    os.waitpid(child, 0)
    for handle in (reader, writer, ended):
        os.close(handle)


def contents(directory):
    return {unpack(path.read_bytes())[1] for path in directory.path.glob(f"{PREFIX}1*")}


def test_a_job_takes_the_place_of_one_of_the_same_name(directory):
    directory.write(b"first", name=f"{PREFIX}1")
    directory.write(b"second", name=f"{PREFIX}1")
    assert contents(directory) == {b"second"}


def test_a_job_does_not_take_the_place_of_one_that_is_run(directory, held):
    # Whoever runs that will remove what bears its name.
    directory.write(b"second", name=held.name)
    assert contents(directory) == {b"first", b"second"}


def test_what_is_moved_in_does_not_take_the_place_of_a_job_that_is_run(directory, held):
    directory.write_later(b"second", NOW - 1, name=held.name)
    directory.move_in(NOW)
    assert contents(directory) == {b"first", b"second"}
