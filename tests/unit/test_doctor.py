"""Each check of the doctor, and that it says nothing where nothing is wrong."""

import ast
import dataclasses
import fcntl
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from uwsgi_tasks import App, Retry, TaskExecutor, doctor, probe
from uwsgi_tasks.doctor import asking, directory, limits, looking, redis, serving, spelling
from uwsgi_tasks.doctor import case as case_module
from uwsgi_tasks.doctor.case import Case, Directory, Member, Memory, Redis
from uwsgi_tasks.errors import ConfigurationError, StoreError
from uwsgi_tasks.model import KnownWorker, Sizes
from uwsgi_tasks.probe import Facts, Silence
from uwsgi_tasks.server import Server
from uwsgi_tasks.settings import Settings
from uwsgi_tasks.spool import SpoolDirectory
from uwsgi_tasks.spool_file import PREFIX, pack

ROOT = Path(__file__).parent.parent.parent
WORDS = "correct horse battery"

WELL = """
[uwsgi]
master = true
module = site
need-app = true
die-on-term = true
single-interpreter = true
binary-path = .venv/bin/python
spooler = %dspool
spooler-ordered = true
"""


@dataclass
class Store:
    """A store that says what it is told to."""

    ahead: float = 0.0
    shared: bool = True
    trouble: Exception | None = None
    dead: int = 0

    def now(self):
        if self.trouble:
            raise self.trouble
        return time.time() + self.ahead

    def count(self):
        return self.dead


@dataclass
class Patient:
    """What the doctor asks of an app."""

    store: Store = field(default_factory=Store)
    settings: Settings = field(default_factory=lambda: Settings(secret=WORDS))
    declared: App = field(default_factory=lambda: App(Server(None)))

    @property
    def tasks(self):
        return self.declared.tasks

    @property
    def dead(self):
        return self.store

    def declares(self, name="one", **options):
        def function():
            pass

        function.__module__, function.__qualname__ = "mysite.tasks", name
        return self.declared.task(**options)(function)

    def set(self, **changes):
        self.settings = replace(self.settings, **changes)


@pytest.fixture
def patient():
    return Patient()


@pytest.fixture
def spool(tmp_path):
    path = tmp_path / "spool"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture(autouse=True)
def _a_quiet_disk(monkeypatch):
    """Let the disk of the machine that tests not decide."""
    monkeypatch.setattr(looking, "_room", lambda path: (0.5, 0.5))
    monkeypatch.setattr(looking, "filesystem", lambda path: "ext4")


@pytest.fixture
def examine(tmp_path, spool, patient):
    """Examine this text of a uwsgi.ini, and give the findings that are not ok."""

    def examine(text=WELL, *, without=(), **options):
        lines = text.splitlines()
        for name in without:
            lines = [line for line in lines if not line.startswith(f"{name} =")]
        file = tmp_path / "uwsgi.ini"
        file.write_text("\n".join(lines) + "\n")
        options.setdefault("probe", False)
        found = doctor.examine(file, options.pop("spooler", None), patient, **options)
        return {finding.code: finding for finding in found if finding.level != "ok"}

    return examine


HARMLESS = {"not-asked"}


def test_a_healthy_set_up_has_nothing_but_ok(examine, patient):
    patient.declares()

    assert set(examine()) == HARMLESS


def test_what_was_checked_is_said(tmp_path, spool, patient):
    file = tmp_path / "uwsgi.ini"
    file.write_text(WELL)
    found = doctor.examine(file, None, patient, probe=False)

    assert {finding.code for finding in found if finding.level == "ok"} == {
        "directory",
        "jobs",
        "limits",
        "loading",
        "processes",
        "secret",
        "spelling",
        "store",
    }


def test_the_worst_comes_first(tmp_path, spool, patient):
    file = tmp_path / "uwsgi.ini"
    file.write_text("[uwsgi]\nspooler = %dspool\nlazy-apps = true\nmodule = x\nmulez = 1\n")
    levels = [finding.level for finding in doctor.examine(file, None, patient, probe=False)]

    assert levels == sorted(levels, key=["error", "warning", "note", "ok"].index)
    assert levels[0] == "error"


def test_every_finding_that_is_no_ok_has_a_remedy(examine, patient):
    patient.declares(executor="mule", priority=None)
    found = examine("[uwsgi]\nspooler = spool\nlazy = true\nmulez = 1\nspooler-max-tasks = 3\n")

    assert {code for code, finding in found.items() if not finding.remedy} <= HARMLESS


# --- the configuration: a text, the options of a task, the codes

SPOOLER = {"executor": "spooler"}
MULE = {"executor": "mule"}


@pytest.mark.parametrize(
    ("added", "without", "task", "code", "level"),
    [
        # processes
        ("master = false", ["master"], {}, "no-master", "error"),
        ("mules = 1", ["master", "spooler"], {}, "no-master", "error"),
        ("", ["spooler"], SPOOLER, "no-spooler", "error"),
        ("", ["spooler"], {}, "no-spooler", "error"),
        ("mules = 1", ["spooler"], {"at": timedelta(1)}, "no-spooler", "error"),
        ("spooler-external = %dspool", ["spooler"], SPOOLER, "spooler-external", "note"),
        ("spooler = spool", ["spooler"], {}, "relative-directory", "note"),
        ("", ["spooler-ordered"], {"priority": 1}, "not-ordered", "error"),
        ("spooler-ordered = off", [], {"priority": 1}, "not-ordered", "error"),
        ("", [], MULE, "no-mules", "error"),
        ("mules = 2", [], {**MULE, "mule": 3}, "no-such-mule", "error"),
        ("mules = 2\nfarm = a:1", [], {**MULE, "mule": "b"}, "no-such-farm", "error"),
        ("mule = loop.py", [], MULE, "mule-program", "error"),
        ("mules = 1\nmule-msg-size = 4096", [], {}, "mule-buffer", "warning"),
        ("mules = 1", [], MULE, "mule-size", "note"),
        ("mules = 1\nmule-harakiri = 9", [], MULE, "mule-harakiri", "note"),
        # loading
        ("lazy-apps = true", [], {}, "lazy-apps", "error"),
        ("lazy = true", [], {}, "lazy-apps", "error"),
        (
            "lazy-apps = true\nspooler-import = x\nmules = 1",
            [],
            MULE,
            "lazy-mules",
            "error",
        ),
        ("", ["module"], {}, "nothing-loaded", "error"),
        ("import = x", ["module"], {}, "nothing-loaded", "error"),
        ("", ["need-app"], {}, "need-app", "note"),
        ("mount = /b=b.py", ["single-interpreter"], {}, "interpreters", "warning"),
        ("", ["die-on-term"], {}, "die-on-term", "note"),
        # limits
        ("spooler-max-tasks = 5", [], {}, "spooler-max-tasks", "warning"),
        ("spooler-max-tasks = 5000", [], {}, "spooler-max-tasks", "note"),
        ("spooler-chdir = /srv", [], {}, "spooler-chdir", "note"),
        ("touch-spoolers-reload = x", [], {}, "touch-spoolers-reload", "note"),
        # spelling
        ("spooler-ordred = true", [], {}, "unknown-option", "error"),
        ("mule-msg-recv-size = 100000", [], {}, "unknown-option", "error"),
        ("lazy-app = true", [], {}, "unknown-option", "error"),
    ],
)
def test_an_ini_is_found_wrong(examine, patient, added, without, task, code, level):
    patient.declares(**task)
    lines = [line for line in WELL.splitlines() if line.partition(" =")[0] not in without]
    found = examine("\n".join([*lines, added]))

    assert code in found, found
    assert found[code].level == level


@pytest.mark.parametrize(
    ("added", "without", "task", "code"),
    [
        ("", ["master"], {}, "no-master"),  # a spooler brings it along
        ("mules = 1", ["spooler"], MULE, "no-spooler"),
        ("spooler-external = %dspool", ["spooler"], SPOOLER, "no-spooler"),
        ("", [], {}, "relative-directory"),
        ("", [], {"priority": 1}, "not-ordered"),
        ("", ["spooler-ordered"], {}, "not-ordered"),
        ("mules = 1", [], MULE, "no-mules"),
        ("mule = true\nmule = true", [], {**MULE, "mule": 2}, "no-such-mule"),
        ("mules = 1\nfarm = a:1", [], {**MULE, "mule": "a"}, "no-such-farm"),
        ("mule = loop.py\nmules = 1", [], MULE, "mule-program"),
        ("mule", [], MULE, "mule-program"),
        ("mule\nmule = loop.py", [], MULE, "mule-program"),
        ("mules = 1\nmule-msg-size = 1000000", [], {}, "mule-buffer"),
        ("mules = 1", [], {}, "mule-size"),
        ("mules = 1\nmule-harakiri = 9", [], {}, "mule-harakiri"),
        ("lazy-apps = false", [], {}, "lazy-apps"),
        ("lazy-apps = true\nspooler-import = x", [], {}, "lazy-apps"),
        ("lazy-apps = true\nshared-import = x", [], {}, "lazy-apps"),
        ("lazy-apps = true\nshared-import = x\nmules = 1", [], MULE, "lazy-mules"),
        ("lazy-apps = true\nspooler-import = x\nmules = 1", [], {}, "lazy-mules"),
        ("spooler-import = x", ["module"], {}, "nothing-loaded"),
        ("", [], {}, "need-app"),
        ("mount = /b=b.py", [], {}, "interpreters"),
        ("", ["single-interpreter"], {}, "interpreters"),
        ("", [], {}, "die-on-term"),
        ("", [], {}, "spooler-max-tasks"),
        ("", [], {}, "spooler-chdir"),
        ("", [], {}, "touch-spoolers-reload"),
        ("spooler-quiet = true\nmy-own = 1\nset = a=b", [], {}, "unknown-option"),
    ],
)
def test_an_ini_is_found_right(examine, patient, added, without, task, code):
    patient.declares(**task)
    lines = [line for line in WELL.splitlines() if line.partition(" =")[0] not in without]

    assert code not in examine("\n".join([*lines, added]))


def test_the_remedy_of_lazy_apps_names_the_module(examine, patient):
    patient.declares()

    assert examine(WELL + "lazy-apps = true")["lazy-apps"].remedy == "shared-import = mysite.tasks"


def test_the_remedy_of_a_misspelt_option_is_what_was_meant(examine):
    found = examine(WELL + "spooler-procesess = 4")["unknown-option"]

    assert found.remedy.startswith("spooler-processes = 4")


@pytest.mark.parametrize(
    ("in_venv", "line", "wrong"),
    [(True, "", True), (False, "", False), (True, "binary-path = x", False)],
)
def test_pyuwsgi_needs_to_be_told_where_python_is(examine, monkeypatch, in_venv, line, wrong):
    monkeypatch.setattr(doctor, "find_spec", lambda name: name == "pyuwsgi")
    monkeypatch.setattr(sys, "prefix", "/venv" if in_venv else sys.base_prefix)
    lines = [text for text in WELL.splitlines() if not text.startswith("binary-path")]

    assert ("binary-path" in examine("\n".join([*lines, line]))) is wrong


@pytest.mark.parametrize(("chosen", "wrong"), [("spool", False), ("other", True)])
def test_a_directory_of_the_settings_that_the_server_does_not_serve(
    examine, patient, tmp_path, chosen, wrong
):
    patient.set(spooler_dir=tmp_path / chosen)

    assert ("spooler-elsewhere" in examine()) is wrong


@pytest.mark.parametrize(
    ("setting", "added", "wait", "code"),
    [
        (None, "", 5, "frequency-slow"),
        (20, "", 5, "frequency-slow"),
        (None, "spooler-frequency = 10", 5, "frequency-slow"),
        (None, "spooler-freq = 10", 5, "frequency-slow"),
        (None, "spooler-frequency = 0", 0, "frequency-zero"),
        (None, "spooler-frequency = -1", 0, "frequency-never"),
        (1, "", 5, None),
        (1, "", 0.2, None),
        (1, "spooler-frequency = 0", 5, None),
        (None, "", 60, None),
        (None, "", 0, None),
        (None, "spooler-frequency = 1", 5, None),
    ],
)
def test_how_often_the_spooler_looks_goes_with_the_retries(
    examine, patient, setting, added, wait, code
):
    patient.set(spooler_frequency=setting)
    patient.declares(retry=Retry(delay=wait))
    found = [name for name in examine(WELL + added) if name.startswith("frequency")]

    assert found == ([code] if code else [])


def test_the_running_server_knows_best_how_often_it_looks(asked, patient):
    patient.declares("two", retry=Retry(delay=5))

    assert "frequency-slow" in asked(facts(frequency=30))


def test_a_retry_timeout_is_a_retry_too(examine, patient):
    patient.set(spooler_frequency=None)
    patient.declares(retry_count=3, retry_timeout=4)

    assert "after 4 s" in examine()["frequency-slow"].what


@pytest.mark.parametrize(
    ("limit", "timeout", "wrong"),
    [(10, 10, True), (10, 60, True), (10, 9, False), (10, None, False), (0, 60, False)],
)
def test_harakiri_leaves_a_task_its_timeout(limit, timeout, wrong):
    task = SimpleNamespace(
        name="a.b", options=SimpleNamespace(timeout=timeout, executor=TaskExecutor.SPOOLER)
    )
    options = {"spooler": ["/s"], "spooler-harakiri": [str(limit)]}
    found = list(limits._harakiri(Case(options=options, settings=Settings(), tasks=[task])))

    assert bool(found) is wrong
    assert all(finding.remedy == f"spooler-harakiri = {timeout + 10}" for finding in found)


def test_a_file_that_cannot_be_read_is_an_error(patient, tmp_path):
    (found,) = doctor.examine(tmp_path / "none.ini", None, patient, probe=False)

    assert (found.level, found.code) == ("error", "configuration")


def test_a_setting_that_cannot_be_is_an_error(tmp_path):
    class Refusing:
        @property
        def settings(self):
            raise ConfigurationError("no such setting")

    (found,) = doctor.examine(None, tmp_path, Refusing(), probe=False)

    assert (found.code, found.what) == ("configuration", "no such setting")


# --- spelling


def real_options():
    program = Path(sys.executable).with_name("pyuwsgi")
    command = shutil.which(program) or shutil.which("uwsgi")
    if command is None:
        pytest.skip("needs uWSGI: pip install pyuwsgi")
    text = subprocess.run([command, "--help"], capture_output=True, text=True, check=False).stdout
    return set(re.findall(r"^ +(?:-.\|)?--([\w-]+)", text, re.MULTILINE))


def test_no_option_that_uwsgi_has_is_suspect():
    assert [name for name in real_options() if spelling.suspect(name) is not None] == []


def test_every_option_of_spoolers_and_mules_is_known():
    ours = {name for name in real_options() if "spool" in name or "mule" in name or name == "farm"}

    assert ours == spelling.KNOWN


# --- the directory


def job(spool, name="1", age=0.0, content=None):
    path = spool / f"{PREFIX}{name}"
    path.write_bytes(pack({}, b"x") if content is None else content)
    when = time.time() - age
    os.utime(path, (when, when))
    return path


def missing(spool):
    spool.rmdir()


def a_file(spool):
    spool.rmdir()
    spool.touch()


def open_to_all(spool):
    spool.chmod(0o777)


def open_to_a_group(spool):
    os.chown(spool, -1, 12345)
    spool.chmod(0o770)


def old_job(spool):
    job(spool, age=3600)


def cut_job(spool):
    job(spool, age=100, content=b"\x11")


def half_a_job(spool):
    path = job(spool, age=100)
    path.rename(spool / f".{path.name}.abcd")


def a_priority(spool):
    (spool / "3").mkdir()
    job(spool / "3")


def a_crash(spool):
    (spool / "running").mkdir()
    path = job(spool)
    (spool / "running" / f"{path.name}.crashes").write_text("0 2 1")


def overdue(spool):
    SpoolDirectory(spool).write_later(b"x", time.time() - 600)


def lost_ticket(spool):
    SpoolDirectory(spool).write_later(b"x", time.time() + 600)
    (spool / f"{PREFIX}later").unlink()


def dead_file(spool):
    (spool / "dead").mkdir()
    job(spool / "dead")


ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")


@pytest.mark.parametrize(
    ("state", "code", "level"),
    [
        (missing, "directory-missing", "error"),
        (a_file, "directory-missing", "error"),
        (open_to_all, "directory-open", "error"),
        pytest.param(open_to_a_group, "directory-open", "error", marks=ROOT_ONLY),
        (old_job, "jobs-wait", "warning"),
        (cut_job, "cut", "warning"),
        (half_a_job, "half-written", "note"),
        (a_crash, "crashes", "warning"),
        (overdue, "overdue", "warning"),
        (lost_ticket, "no-ticket", "warning"),
        (dead_file, "dead-files", "note"),
    ],
)
def test_a_directory_is_found_wrong(examine, spool, state, code, level):
    state(spool)
    found = examine()

    assert found[code].level == level
    assert set(found) == {code} | (HARMLESS if spool.is_dir() and level != "error" else set())


def test_jobs_of_a_priority_are_stranded_where_uwsgi_does_not_look(examine, spool):
    a_priority(spool)

    assert "stranded" not in examine()
    lines = [line for line in WELL.splitlines() if not line.startswith("spooler-ordered")]
    assert "1 jobs" in examine("\n".join(lines))["stranded"].what


def test_a_directory_that_cannot_be_written_names_its_user(examine, spool, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *args: False)

    found = examine()["directory-unwritable"]
    assert "sudo -u" in found.remedy


def test_a_busy_directory_is_well(examine, spool):
    for number in range(300):
        job(spool, name=str(number))
    SpoolDirectory(spool).write_later(b"x", time.time() + 600)

    assert set(examine()) == HARMLESS


def test_an_old_job_that_somebody_runs_is_well(examine, spool):
    path = job(spool, age=3600)
    pid = os.fork()
    if not pid:
        with path.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            (spool / ".held").touch()
            time.sleep(60)
        os._exit(1)
    try:
        deadline = time.monotonic() + 20
        while not (spool / ".held").exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert "jobs-wait" not in examine()
        assert looking.look(spool, time.time()).held == 1
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("nfs4", "network-filesystem"),
        ("cifs", "network-filesystem"),
        ("fuse.sshfs", "network-filesystem"),
        ("tmpfs", "memory-filesystem"),
        ("ext4", None),
        ("xfs", None),
        ("overlay", None),
    ],
)
def test_where_the_directory_lies(examine, monkeypatch, kind, code):
    monkeypatch.setattr(looking, "filesystem", lambda path: kind)

    assert set(examine()) - HARMLESS == ({code} if code else set())


def test_the_kind_of_a_file_system_is_that_of_the_nearest_mount(tmp_path):
    mounts = tmp_path / "mountinfo"
    place = str(tmp_path).replace("-", r"\055")
    mounts.write_text(
        "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        f"23 22 0:5 / {place} rw,relatime shared:1 - nfs4 server:/x rw\n"
        "24 22 0:6 / /elsewhere rw - tmpfs tmpfs rw\n"
    )

    # The fixture has put another one in its place.
    assert FILESYSTEM(tmp_path / "spool", mounts) == "nfs4"
    assert FILESYSTEM(Path("/srv"), mounts) == "ext4"
    assert FILESYSTEM(Path("/srv"), tmp_path / "none") == ""


FILESYSTEM, ROOM = looking.filesystem, looking._room


def test_the_room_on_a_disk_is_a_share(tmp_path):
    assert all(0 <= share <= 1 for share in ROOM(tmp_path))


@pytest.mark.parametrize(
    ("room", "found"),
    [
        ((0.05, 0.5), {"disk-full": "warning"}),
        ((0.001, 0.5), {"disk-full": "error"}),
        ((0.5, 0.05), {"inodes": "warning"}),
        ((0.5, 0.0), {"inodes": "error"}),
        ((0.5, 0.5), {}),
    ],
)
def test_a_disk_that_is_nearly_full(examine, monkeypatch, room, found):
    monkeypatch.setattr(looking, "_room", lambda path: room)
    seen = {code: finding.level for code, finding in examine().items()}

    assert seen == found | {"not-asked": "note"}


def test_what_vanishes_while_it_is_looked_at_is_passed_over(spool):
    (spool / f"{PREFIX}link").symlink_to(spool / "nowhere")
    (spool / "running").mkdir()
    (spool / "running" / f"{PREFIX}1.crashes").write_text("half a li")

    found = looking.look(spool, time.time())
    assert (found.waiting, found.crashes) == (1, {})


@pytest.mark.parametrize(("uid", "wrong"), [(os.geteuid(), False), (os.geteuid() + 7, True)])
def test_the_directory_belongs_to_who_uwsgi_becomes(examine, uid, wrong):
    assert ("directory-owner" in examine(WELL + f"uid = {uid}")) is wrong


def test_a_uid_that_nobody_has_is_passed_over(examine):
    assert "directory-owner" not in examine(WELL + "uid = nobody-has-this-name")


def test_without_any_directory_that_is_said(patient):
    found = doctor.examine(None, None, patient, probe=False)

    assert "no-directory" in {finding.code for finding in found}


def test_the_directory_of_the_settings_is_looked_at(patient, spool):
    patient.set(spooler_dir=spool)
    old_job(spool)
    found = doctor.examine(None, None, patient, probe=False)

    assert "jobs-wait" in {finding.code for finding in found}


# --- the running server


def facts(**changes):
    return Facts(
        **{
            "pid": 4711,
            "role": "spooler",
            "loaded_in": "master",
            "python": platform.python_version(),
            "uwsgi": "2.0.30",
            "is_pyuwsgi": False,
            "has_threads": True,
            "options": {"spooler-ordered": "true", "single-interpreter": "true"},
            "callbacks": {
                name: ["uwsgi_tasks"] for name in ("spooler", "mule_msg_hook", "post_fork_hook")
            },
            "nice": 0,
            "renice": True,
            "frequency": 1,
            "declared": 3,
            "imports": {"mysite.tasks.one": ""},
            "has_secret": True,
            "accepts": True,
            "same_store": True,
            **changes,
        }
    )


@pytest.fixture
def asked(examine, patient, monkeypatch):
    """Examine a server that answers so."""

    def asked(answer, **options):
        monkeypatch.setattr(probe, "ask", lambda *args: answer)
        return examine(probe=True, **options)

    patient.declares()
    return asked


def test_a_server_that_is_well_says_who_it_is(asked):
    found = asked(facts())

    assert set(found) == {"answered"}
    assert "spooler 4711: uWSGI 2.0.30" in found["answered"].what


@pytest.mark.parametrize(
    ("answer", "code", "level"),
    [
        (Silence.NOBODY, "no-server", "error"),
        (Silence.TAKEN, "callbacks", "error"),
        (Silence.LEFT, "callbacks", "error"),
        (Silence.HELD, "slow-answer", "warning"),
        (facts(callbacks={}), "callbacks", "error"),
        (
            facts(callbacks={"spooler": ["other.hook"]}),
            "callbacks",
            "error",
        ),
        (facts(imports={"a.b": "no module"}), "task-import", "error"),
        (facts(nice=19), "nice", "warning"),
        (facts(nice=19, renice=False), "nice", "note"),
        (facts(has_threads=False), "threads", "error"),
        (facts(python="2.7.18"), "python", "warning"),
        (facts(options={"single-interpreter": "true"}), "restart", "warning"),
        (facts(accepts=False), "secret-differs", "error"),
        (facts(has_secret=False), "no-secret", "warning"),
        (facts(same_store=False), "store-differs", "error"),
    ],
)
def test_a_server_is_found_wrong(asked, answer, code, level):
    found = asked(answer)

    assert found[code].level == level
    assert set(found) <= {code, "answered"}


def test_who_was_there_before_us_is_named(asked):
    calls = {**facts().callbacks, "spooler": ["uwsgi_tasks", "uwsgidecorators.manage"]}
    found = asked(facts(callbacks=calls))

    assert set(found) == {"answered", "callbacks-behind"}


def test_a_server_of_the_wheel_needs_binary_path(asked):
    text = "\n".join(line for line in WELL.splitlines() if not line.startswith("binary-path"))

    assert "binary-path" in asked(facts(is_pyuwsgi=True), text=text)
    assert "binary-path" not in asked(facts(is_pyuwsgi=False), text=text)


def test_a_uwsgi_that_has_not_loaded_us_is_told_from_none(asked, monkeypatch):
    monkeypatch.setattr(looking, "_standing_in", lambda path: [42])
    found = asked(Silence.NOBODY)

    assert set(found) == {"not-loaded"}
    assert "42" in found["not-loaded"].what


def test_busy_spoolers_are_told_from_overridden_ones(asked, monkeypatch):
    monkeypatch.setattr(looking, "_oldest", lambda files: (2, ()))

    assert set(asked(Silence.LEFT)) == {"busy"}


def test_without_a_declared_task_that_is_said(examine, monkeypatch):
    monkeypatch.setattr(probe, "ask", lambda *args: facts())

    assert "no-tasks" in examine(probe=True)


def test_only_tasks_of_the_spooler_are_asked_for(examine, patient, monkeypatch):
    asked_for = []
    monkeypatch.setattr(probe, "ask", lambda path, tasks, *args: asked_for.extend(tasks))
    patient.declares("one")
    patient.declares("two", executor="runtime")
    examine(probe=True)

    assert asked_for == ["mysite.tasks.one"]


def test_without_an_ini_the_running_server_tells_its_options(patient, spool, monkeypatch):
    running = {"spooler": str(spool), "lazy-apps": "true", "module": "x"}
    monkeypatch.setattr(probe, "ask", lambda *args: facts(options=running))
    found = {finding.code for finding in doctor.examine(None, spool, patient)}

    assert {"lazy-apps", "need-app"} <= found
    assert "restart" not in found


def test_a_question_that_cannot_be_written_is_an_error(examine, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(probe, "ask", full)

    assert "No space left" in examine(probe=True)["directory-unwritable"].what


# --- secrets and stores


def test_without_a_secret_that_is_said(examine, patient):
    patient.set(secret=None)

    assert examine()["no-secret"].level == "warning"


def test_no_secret_is_ever_shown(asked):
    for answer in (facts(accepts=False), facts(has_secret=False), facts()):
        assert WORDS not in str(asked(answer))


@pytest.mark.parametrize(
    ("store", "code", "level"),
    [
        (Store(trouble=StoreError("refused")), "store-unreachable", "error"),
        (Store(trouble=ConfigurationError("no such store")), "store-unreachable", "error"),
        (Store(shared=False), "store-not-shared", "warning"),
        (Store(ahead=60), "clock-skew", "warning"),
        (Store(ahead=-60), "clock-skew", "warning"),
        (Store(dead=3), "dead-letters", "note"),
        (Store(ahead=0.5), None, None),
    ],
)
def test_the_store(examine, patient, store, code, level):
    patient.store = store
    found = examine()

    assert set(found) - HARMLESS == ({code} if code else set())
    assert code is None or found[code].level == level


# --- Redis

TOLD = {
    "redis_version": "7.2.4",
    "role": "master",
    "maxmemory_policy": "noeviction",
    "maxmemory": "1000",
    "used_memory": "100",
    "aof_enabled": "1",
    "appendfsync": "always",
}
NO_LOG = {"aof_enabled": "0"}
EVICTING = {"maxmemory_policy": "allkeys-lru"}
LIMITLESS = {"maxmemory": "0"}
REPLICA = "You can't write against a read only replica."
FULL = "command not allowed when used memory > 'maxmemory'."
STUCK = "Redis is configured to save RDB snapshots, but it's currently unable to persist to disk."


def member(skew=0.0, place="redis://one", **told):
    return Member(place=place, skew=skew, told={**TOLD, **told})


def worker(*tasks, queues=("default",)):
    return KnownWorker("a.1.b", "a", 1, list(queues), 4, 0.0, 0, 0, list(tasks))


@pytest.fixture
def judged(patient):
    """Judge such a Redis, and give the findings that are not ok."""

    def judged(*members, memory=None, **changes):
        seen = Redis(place="redis://one", members=members or [member()], **changes)
        case = Case(
            options={},
            has_options=False,
            settings=patient.settings,
            tasks=list(patient.tasks.values()),
            memory=memory,
            redis=seen,
        )
        found = [one for group in (redis.SERVER, redis.WORKERS) for one in group.judge(case)]
        return {finding.code: finding for finding in found if finding.level != "ok"}

    patient.declares(executor="redis")
    return judged


def test_a_redis_that_is_well_has_nothing_but_ok(judged):
    workers = [worker("mysite.tasks.one")]

    assert judged(workers=workers, sizes={"default": Sizes(3, 2, 1)}) == {}


@pytest.mark.parametrize(
    ("told", "code", "level"),
    [
        ({"redis_version": "6.0.16"}, "redis-old", "error"),
        ({"redis_version": "5.0"}, "redis-old", "error"),
        ({"redis_version": "6.2.0"}, None, None),
        ({"redis_version": "10.0.1"}, None, None),
        ({"redis_version": "of our own"}, None, None),
        ({"role": "slave"}, "redis-replica", "error"),
        (EVICTING, "redis-evicts", "error"),
        ({**EVICTING, **LIMITLESS}, "redis-evicts", "warning"),
        ({"maxmemory_policy": "volatile-ttl"}, "redis-evicts", "warning"),
        ({"used_memory": "901"}, "redis-full", "warning"),
        ({"used_memory": "900"}, None, None),
        ({"used_memory": "901", **LIMITLESS}, None, None),
        ({**NO_LOG, "save": ""}, "redis-forgets", "warning"),
        ({**NO_LOG, "save": "3600 1"}, "redis-snapshots", "note"),
        (NO_LOG, None, None),  # nobody knows of the snapshots
        ({"appendfsync": "everysec"}, "redis-fsync", "note"),
        ({"appendfsync": "no"}, "redis-fsync", "note"),
        ({"skew": 60.0}, "redis-clock", "warning"),
        ({"skew": -60.0}, "redis-clock", "warning"),
        ({"skew": 1.5}, None, None),
    ],
)
def test_what_a_redis_tells_of_itself(judged, told, code, level):
    found = judged(member(**told))

    assert {code: finding.level for code, finding in found.items()} == (
        {code: level} if code else {}
    )


def test_of_several_servers_the_one_is_named_with_which_something_is_wrong(judged):
    found = judged(member(), member(place="10.0.0.2:6379", **EVICTING))

    assert found["redis-evicts"].what.startswith("10.0.0.2:6379 ")


@pytest.mark.parametrize(
    ("changes", "code", "level"),
    [
        ({"trouble": "refused"}, "redis-unreachable", "error"),
        ({"unwritable": REPLICA}, "redis-replica", "error"),
        ({"unwritable": FULL}, "redis-full", "error"),
        ({"unwritable": STUCK}, "redis-unwritable", "error"),
        ({"refused": ["HSET", "ZADD"]}, "redis-refuses", "error"),
        ({"closed": ["uwsgi_tasks:*"]}, "redis-refuses", "error"),
        ({"hidden": ["INFO"]}, "redis-hides", "note"),
    ],
)
def test_what_a_redis_does_not_do(judged, changes, code, level):
    found = judged(**changes)

    assert {code: finding.level for code, finding in found.items()} == {code: level}


def test_all_commands_that_are_refused_are_named(judged):
    found = judged(refused=["HSET", "RPUSH", "SADD", "ZADD"])["redis-refuses"]

    assert found.what.endswith(": HSET, RPUSH, SADD, ZADD")
    assert found.remedy == "ACL SETUSER NAME +hset +rpush +sadd +zadd"


def test_what_a_redis_hides_is_not_judged(judged):
    seen = Member(place="redis://one")

    assert judged(seen) == {}


def test_without_a_secret_redis_has_json(judged, patient):
    patient.set(secret=None)

    assert judged()["redis-json"].level == "note"


def test_a_clock_that_the_store_has_told_of_is_not_told_of_again(judged, patient):
    late = {"memory": Memory(skew=60.0)}
    assert "redis-clock" in judged(member(skew=60.0), **late)
    patient.set(redis="redis://one")

    assert "redis-clock" not in judged(member(skew=60.0), **late)


NOBODY = {"workers": []}


@pytest.mark.parametrize(
    ("changes", "code", "level", "said"),
    [
        (NOBODY, "no-worker", "warning", "will wait"),
        ({**NOBODY, "sizes": {"mail": Sizes(0, 0, 0)}}, "no-worker", "warning", "will wait"),
        ({**NOBODY, "sizes": {"mail": Sizes(2, 1, 0)}}, "no-worker", "error", "3 jobs wait"),
        ({"sizes": {"mail": Sizes(2, 0, 0)}}, "queue-unserved", "error", "mail (2)"),
        ({"sizes": {"mail": Sizes(0, 1, 0)}}, "queue-unserved", "error", "mail (1)"),
        ({"sizes": {"mail": Sizes(0, 0, 1)}}, None, None, ""),
        ({"workers": [worker("other.task")]}, "task-unknown", "warning", "mysite.tasks.one:"),
        (
            {"workers": [worker("mysite.tasks.one", queues=["mail"])]},
            "queue-unserved",
            "warning",
            "default",
        ),
        (
            {"workers": [worker("mysite.tasks.one", queues=["mail"]), worker("other.task")]},
            "task-unknown",
            "warning",
            "mysite.tasks.one:",
        ),
        ({"workers": [worker("other.task"), worker("mysite.tasks.one")]}, None, None, ""),
    ],
)
def test_who_takes_the_jobs(judged, changes, code, level, said):
    found = judged(**{"workers": [worker("mysite.tasks.one")], **changes})

    assert {code: finding.level for code, finding in found.items()} == (
        {code: level} if code else {}
    )
    assert code is None or said in found[code].what


def test_the_remedy_of_a_queue_that_nobody_serves_is_a_worker_for_it(judged):
    sizes = {"mail": Sizes(1, 0, 0), "low": Sizes(1, 0, 0), "default": Sizes(1, 0, 0)}
    found = judged(workers=[worker("mysite.tasks.one")], sizes=sizes)["queue-unserved"]

    assert found.remedy == "uwsgi-tasks worker -m mysite.tasks -q low,mail"


def test_tasks_of_other_executors_need_no_worker(judged, patient):
    patient.declares("two", executor="spooler")

    assert judged(workers=[worker("mysite.tasks.one")]) == {}


@pytest.mark.parametrize(
    ("clock", "skew"),
    [
        ([b"1060", b"0"], 50.0),
        ([b"940", b"500000"], -59.5),
        ([b"1005", b"0"], 0.0),  # it was read at any time of the question
    ],
)
def test_a_clock_is_ahead_by_what_the_question_does_not_explain(clock, skew):
    assert asking._skew(clock, 1000.0, 1010.0) == skew


def test_each_command_that_we_send_is_tried():
    place = Path(doctor.__file__).parent.parent
    scripts = "".join(file.read_text() for file in (place / "redis").glob("*.lua"))
    source = "".join(file.read_text() for file in place.rglob("*.py"))
    sent = set(re.findall(r"redis\.p?call\(['\"](\w+)['\"]", scripts))
    sent |= set(re.findall(r"\.call\(\s*['\"](\w+)['\"]", source))
    sent |= set(re.findall(r"\.calls\(\s*\[\(['\"](\w+)['\"]", source))

    assert {"HSET", "SMEMBERS"} < sent
    assert sent - {name for names in asking.COMMANDS for name in names} == set()


# --- where Redis is used


@pytest.fixture
def codes(patient):
    """What is found where there is neither a file nor a directory."""
    return lambda: {one.code for one in doctor.examine(None, None, patient, probe=False)}


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"redis": "redis://one"}, {}),
        ({"executor": "redis"}, {}),
        ({}, {"executor": "redis"}),
    ],
)
def test_where_redis_has_the_jobs_no_directory_is_missing(codes, patient, settings, options):
    patient.set(**settings)
    patient.declares(**options)

    assert codes() == {"not-asked", "store"}


def test_where_a_task_is_for_the_spooler_its_directory_is_missing(codes, patient):
    patient.set(redis="redis://one")
    patient.declares(executor="spooler")

    assert "no-directory" in codes()


def test_where_redis_is_not_used_nothing_is_said_of_it(codes):
    assert codes() == {"no-directory", "store"}


def test_a_server_whose_tasks_all_go_to_redis_needs_no_spooler(examine, patient):
    patient.set(redis="redis://one")
    patient.declares(executor="redis", priority=1, at=timedelta(1))

    assert "no-spooler" not in examine(without=["spooler"])
    patient.declares("two")
    assert "no-spooler" in examine(without=["spooler"])


def test_a_priority_on_redis_needs_no_folders(examine, patient):
    patient.declares(executor="redis", priority=1)

    assert "not-ordered" not in examine(without=["spooler-ordered"])


# --- the page


def codes_in_the_source():
    makers = {"error", "warning", "note", "make", "_scarce"}
    for file in Path(doctor.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            if getattr(node.func, "id", "") in makers and isinstance(node.args[0], ast.Constant):
                yield node.args[0].value
            if getattr(node.func, "id", "") == "Group":
                yield next(word.value.value for word in node.keywords if word.arg == "code")


def test_every_code_has_a_row_on_the_page_and_every_row_a_code():
    page = (ROOT / "docs" / "doctor.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE)

    assert sorted(rows) == sorted(set(codes_in_the_source()))


def test_a_finding_is_a_frozen_value():
    found = case_module.note("code", "what", "remedy")

    with pytest.raises(dataclasses.FrozenInstanceError):
        found.code = "other"


def test_the_modules_of_the_checks_go_with_any_case():
    bare = Case(options={}, has_options=False, settings=Settings())
    groups = (directory.PLACE, directory.JOBS, serving.SERVER, serving.SECRET, serving.STORES)

    assert {finding.level for group in groups for finding in group.judge(bare)} <= {
        "ok",
        "note",
        "warning",
    }
    assert Directory(path=Path()).crashes == {}
