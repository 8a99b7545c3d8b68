"""The command line, with a real spooler directory and a real store, and no uWSGI."""

import io
import json
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from rich.console import Console

from tests.uwsgi_coverage import environment
from uwsgi_tasks import App, Retry, State, default_app
from uwsgi_tasks.cli.program import program
from uwsgi_tasks.cli.watch import Snapshot, drawn
from uwsgi_tasks.codec import encode
from uwsgi_tasks.errors import StoreError
from uwsgi_tasks.model import Count, DeadLetter, Job, Record, Standing
from uwsgi_tasks.server import Server

pytestmark = pytest.mark.usefixtures("home", "no_changes")


@pytest.fixture
def no_changes(monkeypatch):
    """Let what a command line does to its process end with the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE", raising=False)
    yield
    for module in ("tasks_of_home", "tasks_of_a_site", "broken_tasks"):
        sys.modules.pop(module, None)
    default_app.tasks.pop("tasks_of_home.sweep", None)


@pytest.fixture
def spool(tmp_path):
    path = tmp_path / "spool"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture
def app(spool):
    return App(Server(None), spooler_dir=spool)


@pytest.fixture
def run(app):
    """Run a command line, and give its exit code, its output and its complaints."""

    def run(*words, answer=None, app=app):
        result = CliRunner().invoke(program, list(words), obj=app, input=answer)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert len(result.stderr.splitlines()) <= 1, result.stderr
        return SimpleNamespace(code=result.exit_code, out=result.stdout, error=result.stderr)

    return run


@pytest.fixture
def ask(run):
    """Run a command line with --json, and give what it says."""

    def ask(*words, code=0):
        result = run("--json", *words)
        assert result.code == code, result.error
        return json.loads(result.out)

    return ask


def files(spool):
    return [
        path
        for path in spool.rglob("uwsgi_spoolfile_on_*")
        if path.name != "uwsgi_spoolfile_on_later"
    ]


def send(to, times=1):
    return [to] * times


def fail():
    raise ValueError("no such\ncustomer")


# --- the program


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["ls", "--help"], ["dead", "rm", "--help"]])
def test_help_is_there(run, words):
    result = run(*words)

    assert (result.code, result.error) == (0, "")
    assert "Usage:" in result.out


def test_help_lists_the_exit_codes(run):
    assert "4  the spooler's directory, the store or Redis" in run("--help").out


def test_the_version_is_that_of_the_package(run):
    assert run("--version").out == f"uwsgi-tasks {version('uwsgi_tasks')}\n"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "Missing command (see '"),
        (["nothing"], "No such command 'nothing' (see '"),
        (["ls", "--nothing"], "--nothing"),
        (["show"], "Missing argument 'ID'"),
        (["-m", "nothing.there", "tasks"], "importing nothing.there failed"),
        (["--ini", "nothing.ini", "tasks"], "cannot be read"),
        (["stats", "--since", "soon"], "no length of time"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(run, words, complaint):
    result = run(*words)

    assert result.code == 2
    assert result.error.startswith("uwsgi-tasks: ")
    assert complaint in result.error
    assert result.out == ""


def test_a_setting_that_cannot_be_is_code_2(run, monkeypatch):
    monkeypatch.setenv("UWSGI_TASKS_CRASH_LIMIT", "many")

    assert run("tasks").code == 2


def test_without_a_spooler_the_remedy_is_named(run):
    result = run("ls", app=App(Server(None)))

    assert result.code == 4
    assert "--spooler DIR" in result.error


def test_a_spooler_that_is_not_there_cannot_be_reached(run, tmp_path):
    result = run("--spooler", str(tmp_path / "none"), "ls")

    assert (result.code, result.out) == (4, "")
    assert "is not there" in result.error


def test_a_spooler_that_is_not_ours_is_refused(run, spool):
    spool.chmod(0o777)

    result = run("ls")

    assert result.code == 4
    assert "chmod o-w" in result.error


def test_what_may_not_be_read_is_no_traceback(run, monkeypatch, app):
    def refuse(*_args, **_options):
        raise PermissionError(13, "Permission denied", "/srv/spool/x")

    monkeypatch.setattr(app, "waiting", refuse)

    result = run("ls")

    assert result.code == 4
    assert "/srv/spool/x: Permission denied; run this as the user" in result.error


# --- where it looks


def test_the_spooler_comes_from_the_servers_file(run, tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "jobs").mkdir(mode=0o700)
    (tmp_path / "site" / "tasks_of_a_site.py").write_text(
        "import os\nassert os.environ['SITE'] == 'blue'\n"
    )
    (tmp_path / "uwsgi.ini").write_text(
        "[uwsgi]\nspooler = %djobs\npythonpath = %dsite\nenv = SITE=blue\nenv = NOTHING\n"
    )
    monkeypatch.setenv("SITE", "")
    monkeypatch.delenv("SITE")
    app = App(Server(None))

    result = run("--ini", str(tmp_path / "uwsgi.ini"), "-m", "tasks_of_a_site", "ls", app=app)

    assert (result.code, result.error) == (0, "")
    assert app.settings.spooler_dir == str(tmp_path / "jobs")


def test_a_file_without_a_spooler_says_so(run, tmp_path):
    (tmp_path / "uwsgi.ini").write_text("[uwsgi]\nmaster = true\n")

    result = run("--ini", str(tmp_path / "uwsgi.ini"), "ls", app=App(Server(None)))

    assert result.code == 4
    assert "'spooler = DIRECTORY'" in result.error


def test_options_win_over_the_file(run, app, spool, tmp_path):
    (tmp_path / "uwsgi.ini").write_text("[uwsgi]\nspooler = /srv/other\n")

    run("--ini", str(tmp_path / "uwsgi.ini"), "--spooler", str(spool), "tasks")

    assert app.settings.spooler_dir == str(spool)


# --- tasks


def test_tasks_are_listed_with_what_is_not_the_default(run, ask, app):
    app.task(executor="spooler", retry=Retry(attempts=3), name="shop.send")(send)
    app.task(name="shop.fail")(fail)

    lines = run("tasks").out.splitlines()
    found = ask("tasks")["tasks"]

    assert lines[1].split()[0] == "shop.fail"
    assert "executor='spooler'" in lines[2]
    assert "Retry(attempts=3" in lines[2]
    assert [task["name"] for task in found] == ["shop.fail", "shop.send"]
    assert found[0]["options"] == {"name": "shop.fail"}


def test_modules_are_found_in_the_current_directory(run, home):
    (home / "tasks_of_home.py").write_text(
        "from uwsgi_tasks import task\n@task\ndef sweep():\n    pass\n"
    )

    assert "tasks_of_home.sweep" in run("-m", "tasks_of_home", "tasks", app=None).out


def test_a_module_that_fails_is_one_line(run, home):
    (home / "broken_tasks.py").write_text("raise RuntimeError('no\\ndatabase')\n")

    result = run("-m", "broken_tasks", "tasks")

    assert result.code == 2
    assert "RuntimeError: no database" in result.error


def test_that_no_task_is_declared_names_the_remedy(run):
    assert "-m MODULE" in run("tasks").error


# --- submit


@pytest.fixture
def shop(app, monkeypatch):
    """A module with tasks, as the user would have one."""
    module = SimpleNamespace(
        send=app.task(name="shop.send")(send),
        fail=app.task(name="shop.fail")(fail),
        fast=app.task(name="shop.fast", executor="mule")(send),
        plain=send,
    )
    monkeypatch.setitem(sys.modules, "shop", module)
    return module


def test_a_submitted_job_lies_in_the_spooler(run, ask, shop, spool):
    result = run("submit", "shop:send", '"ada"', "times=2")

    assert result.code == 0, result.error
    (file,) = files(spool)
    assert result.out.strip() in file.name
    assert ask("show", result.out.strip())["arguments"] == {"args": ["ada"], "kwargs": {"times": 2}}


def test_a_task_can_be_called_by_its_name(run, shop, spool):
    assert run("submit", "shop.send", "--text", "ada").code == 0
    assert len(files(spool)) == 1


def test_the_options_of_a_call_go_with_it(ask, shop):
    one = ask("submit", "shop:send", "1", "--delay", "1h", "--priority", "3")["id"]

    job = ask("show", one)

    assert (job["state"], job["priority"]) == ("queued", 3)
    assert job["due_at"] > job["submitted_at"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["shop:send", "ada"], "quote a text twice"),
        (["shop:nothing"], "is no task"),
        (["shop:plain"], "is no task"),
        (["shop.nothing"], "no task shop.nothing"),
        (["nothing:there"], "importing nothing failed"),
        (["shop:fast", "1"], "--executor spooler"),
        (["shop:send", "1", "--at", "2030-01-01", "--delay", "1s"], "exclude"),
        (["shop:send", "1", "--executor", "pigeon"], "pigeon"),
    ],
)
def test_a_call_that_cannot_be_is_refused(run, shop, spool, words, complaint):
    result = run("submit", *words)

    assert result.code in {2, 4}
    assert complaint in result.error
    assert files(spool) == []


def test_nothing_runs_here_because_there_is_no_spooler(run):
    app = App(Server(None))
    app.task(name="shop.fail")(fail)

    assert run("submit", "shop.fail", app=app).code == 4


def test_it_runs_here_if_that_is_asked_for(run, ask, shop):
    words = ["submit", "shop:send", "--executor", "runtime", "--wait", '"ada"', "2"]

    assert run(*words).out == '["ada", "ada"]\n'
    assert ask(*words)["result"] == ["ada", "ada"]


def test_what_a_task_raises_is_one_line_and_code_1(run, shop):
    result = run("submit", "shop:fail", "--executor", "runtime")

    assert result.code == 1
    assert "shop.fail failed: ValueError: no such customer" in result.error


def test_who_waits_in_vain_is_told(run, shop):
    result = run("submit", "shop:send", "1", "--wait", "--timeout", "10ms")

    assert result.code == 3
    assert "has not ended in time" in result.error


# --- jobs


def test_ls_shows_where_each_job_stands(run, ask, shop, spool):
    first = shop.send("ada").id
    second = shop.send.using(at=time.time() + 7200)("bob").id
    third = shop.send.using(priority=4)("eve").id

    lines = run("ls").out.splitlines()
    found = ask("ls")

    assert {line.split()[0] for line in lines[1:]} == {first, second, third}
    assert found["count"] == 3
    jobs = {job["id"]: job for job in found["jobs"]}
    assert [jobs[one]["state"] for one in (first, second, third)] == ["queued", "delayed", "queued"]
    assert jobs[second]["due_at"] is not None
    assert jobs[third]["priority"] == 4
    assert jobs[first]["place"] == str(spool)
    (line,) = [line for line in lines if second in line]
    assert "in 1h59m" in line or "in 2h00m" in line


def test_ls_lists_the_first_and_says_how_many_there_are(run, shop):
    for number in range(5):
        shop.send(number)

    result = run("ls", "-n", "2")

    assert len(result.out.splitlines()) == 3
    assert result.error == "2 of 5; -n 0 lists all\n"
    assert len(run("ls", "-n", "0").out.splitlines()) == 6


def test_ls_lists_some(ask, shop):
    late = shop.send.using(at=time.time() + 7200)("bob").id
    shop.send("ada")
    other = shop.fail().id

    def ids(*words):
        return [job["id"] for job in ask("ls", *words)["jobs"]]

    assert ids("--state", "delayed") == [late]
    assert ids("--task", "shop.fail") == [other]
    assert ids("--state", "running") == []


def test_ls_of_nothing_is_an_empty_list(run, ask):
    assert ask("ls") == {"jobs": [], "count": 0}
    assert run("ls").out.split()[0] == "ID"


def test_json_may_stand_behind_the_command(run):
    assert json.loads(run("ls", "--json").out)["jobs"] == []


def test_a_waiting_job_is_shown_with_its_arguments(run, shop):
    one = shop.send("ada", times=3).id

    out = run("show", one).out

    assert "('ada', times=3)" in out
    assert "queued" in out


def test_one_call_of_many_is_shown(ask, shop):
    handles = shop.send.map(["ada", "bob"])

    assert ask("show", handles[1].id)["arguments"]["args"] == ["bob"]


def test_the_arguments_of_others_are_not_built(ask, app, shop):
    one = shop.send(Path("/etc")).id

    assert "Path" in ask("show", one)["arguments"]["args"][0]


def test_a_waiting_job_can_be_cancelled(run, ask, shop, spool):
    one, two = shop.send(1).id, shop.send.using(at=time.time() + 7200)(2).id

    result = run("cancel", one, two)

    assert (result.code, files(spool)) == (0, [])
    assert ask("ls")["jobs"] == []


@pytest.mark.parametrize(
    "words", [["show"], ["wait"], ["cancel"], ["dead", "show"], ["dead", "rm"]]
)
def test_a_job_that_nobody_knows_is_code_1(run, words):
    result = run(*words, "0123456789abcdef-1")

    assert result.code == 1
    assert "0123456789abcdef-1" in result.error


def test_what_could_not_be_cancelled_says_why(ask, shop):
    one = shop.send(1).id

    answer = ask("cancel", one, "0123456789abcdef-1", code=1)

    assert answer["cancelled"] == [one]
    assert "not cancelled" in answer["failed"]["0123456789abcdef-1"]


def test_waiting_for_what_does_not_end_is_code_3(run, shop):
    result = run("wait", shop.send(1).id, "--timeout", "10ms")

    assert result.code == 3
    assert "0.01 seconds" in result.error


# --- jobs that have ended


def remember(app, **given):
    """Let the store know of a job that has run."""
    now = time.time()
    whole = {
        "id": "0123456789abcdef-7",
        "task": "shop.send",
        "executor": "spooler",
        "state": State.FAILED,
        "started_at": now - 2,
        "ended_at": now - 1,
        "submitted_at": now - 3,
        "worker": "web1 spooler 4",
        "error": "OSError: no",
        **given,
    }
    app.store.save(Record(**whole), 60)
    return whole["id"]


def test_a_job_that_failed_is_shown_with_its_error(run, ask, app):
    one = remember(app, traceback="Traceback:\n  line 1\nOSError: no")

    found = ask("show", one)
    out = run("show", one).out

    assert (found["state"], found["error"], found["worker"]) == (
        "failed",
        "OSError: no",
        "web1 spooler 4",
    )
    assert found["submitted_at"] < found["started_at"] < found["ended_at"]
    assert found["dead"] is False
    assert "    OSError: no" in out.splitlines()


def test_waiting_for_a_job_that_failed_is_code_1(run, app):
    result = run("wait", remember(app))

    assert result.code == 1
    assert result.out == "0123456789abcdef-7 failed\n"
    assert "OSError: no" in result.error


def test_a_job_that_has_ended_cannot_be_cancelled(run, app):
    result = run("cancel", remember(app))

    assert result.code == 1
    assert "it has failed" in result.error


# --- dead letters


def bury(app, number, **given):
    """Keep a dead letter; the larger its number, the newer it is."""
    job = Job(f"0123456789abcdef-{number}", "shop.send", ("ada",), {"times": 2})
    whole = {
        "id": job.id,
        "task": "shop.send",
        "executor": "spooler",
        "attempt": 3,
        "failed_at": time.time() - 1000 + number,
        "error": "OSError: no",
        "traceback": "Traceback:\n  line 1",
        "worker": "web1 spooler 4",
        "payload": encode([job], app.settings.signer),
        **given,
    }
    app.store.bury(DeadLetter(**whole))
    return whole["id"]


def test_dead_letters_are_listed_the_newest_first(run, ask, app):
    old, new = bury(app, 1), bury(app, 2, task="shop.pay")

    lines = run("dead", "ls").out.splitlines()
    found = ask("dead", "ls")

    assert [line.split()[0] for line in lines] == ["ID", new, old]
    assert "OSError: no" in lines[1]
    assert [letter["id"] for letter in found["dead"]] == [new, old]
    assert found["count"] == 2
    assert ask("dead", "ls", "--task", "shop.pay")["count"] == 1


def test_the_first_of_many_dead_letters_are_listed(run, app):
    for number in range(4):
        bury(app, number)

    result = run("dead", "ls", "-n", "3")

    assert len(result.out.splitlines()) == 4
    assert result.error == "3 of 4; -n 0 lists all\n"


def test_more_dead_letters_than_a_page_are_listed(ask, app):
    for number in range(450):
        bury(app, number)

    found = ask("dead", "ls", "-n", "0")["dead"]

    assert len({letter["id"] for letter in found}) == 450
    assert len(ask("dead", "ls", "-n", "300")["dead"]) == 300


def test_a_dead_letter_is_shown_with_its_arguments(run, ask, app):
    one = bury(app, 1)

    found = ask("dead", "show", one)
    lines = run("dead", "show", one).out.splitlines()

    assert found["arguments"] == {"args": ["ada"], "kwargs": {"times": 2}}
    assert found["traceback"] == "Traceback:\n  line 1"
    assert any("('ada', times=2)" in line for line in lines)
    assert "      line 1" in lines


def test_bytes_that_never_were_a_job_are_shown_too(run, ask, app):
    one = bury(app, 1, task="", payload=b"\x80nonsense")

    assert ask("dead", "show", one)["arguments"] is None
    assert "(unreadable" in run("dead", "show", one).out


def test_show_finds_a_dead_letter_and_says_how_it_runs_again(run, ask, app):
    one = bury(app, 1)

    found = ask("show", one)

    assert (found["state"], found["dead"], found["attempt"]) == ("failed", True, 3)
    assert found["failed_at"] is not None
    assert f"uwsgi-tasks dead requeue {one}" in run("show", one).out


def test_a_dead_letter_is_queued_again(ask, app, shop, spool):
    one = bury(app, 1)

    assert ask("dead", "requeue", one) == {"requeued": [one], "failed": {}}
    assert ask("dead", "ls")["count"] == 0
    assert len(files(spool)) == 1


def test_a_dead_letter_is_queued_again_with_other_options(ask, app, shop):
    bury(app, 1)

    ask("dead", "requeue", "--all", "--delay", "1h", "--priority", "2")

    (job,) = ask("ls")["jobs"]
    assert (job["state"], job["priority"], job["attempt"]) == ("delayed", 2, 1)


def test_what_cannot_be_queued_again_is_named(ask, app, shop, spool):
    known = bury(app, 1)

    answer = ask("dead", "requeue", known, "0123456789abcdef-9", code=1)

    assert answer["requeued"] == [known]
    assert list(answer["failed"]) == ["0123456789abcdef-9"]


def test_dead_letters_are_removed(run, ask, app):
    one, two, three = (bury(app, number) for number in range(3))

    assert run("dead", "rm", one, two).out == f"{one} removed\n{two} removed\n"
    assert [letter["id"] for letter in ask("dead", "ls")["dead"]] == [three]


@pytest.mark.parametrize("words", [["--all"], ["--task", "shop.send"]])
def test_before_many_are_removed_it_asks(run, ask, app, words):
    bury(app, 1)

    assert run("dead", "rm", *words, answer="n\n").code == 1
    assert ask("dead", "ls")["count"] == 1
    assert run("dead", "rm", *words, answer="y\n").code == 0
    assert ask("dead", "ls")["count"] == 0


def test_where_nobody_answers_it_wants_to_be_told(run, ask, app):
    bury(app, 1)

    assert run("dead", "rm", "--all", answer="").code == 2
    assert ask("dead", "ls")["count"] == 1
    assert run("dead", "rm", "--all", "--yes").code == 0


@pytest.mark.parametrize("verb", ["requeue", "rm"])
@pytest.mark.parametrize("words", [[], ["0123456789abcdef-1", "--all"]])
def test_either_ids_or_all_are_named(run, verb, words):
    result = run("dead", verb, *words)

    assert result.code == 2
    assert "--all or --task" in result.error


def test_of_nothing_nothing_can_be_queued_again(run):
    assert run("dead", "requeue", "--all").code == 1


# --- counts


def counted(app, runs=4, outcome="succeeded"):
    minute = int(time.time()) // 60 * 60
    app.store.count(
        [
            Count(
                minute=minute - 60 * ago,
                task="shop.send",
                outcome=outcome,
                runs=runs,
                seconds=2,
                slowest=1.5,
            )
            for ago in (0, 1)
        ]
    )


def test_runs_are_shown_by_task_and_outcome(run, ask, app):
    counted(app)
    counted(app, runs=1, outcome="failed")

    lines = run("stats").out.splitlines()
    found = ask("stats", "--since", "10m")

    assert lines[1].split()[:3] == ["shop.send", "failed", "2"]
    assert lines[2].split()[:7] == ["shop.send", "succeeded", "8", "500", "ms", "1.5", "s"]
    assert [(one["outcome"], one["runs"], one["mean"]) for one in found["stats"]] == [
        ("failed", 2, 2.0),
        ("succeeded", 8, 0.5),
    ]
    assert len(found["stats"][0]["minutes"]) == 2
    assert found["since"] < found["until"]
    assert ask("stats", "--task", "shop.pay")["stats"] == []


def test_what_has_expired_is_deleted(run, ask):
    assert ask("purge") == {"purged": 0}
    assert run("purge").out == "0 deleted\n"


# --- watch


def test_a_look_says_what_there_is(run, ask, app, shop):
    shop.send("ada")
    one = bury(app, 1)
    counted(app, runs=10)
    counted(app, runs=5, outcome="failed")

    look = ask("watch", "--count", "1")
    out = run("watch", "-n", "2", "--interval", "10ms").out

    assert (look["waiting"], look["running"], look["dead"]) == (1, [], 1)
    assert [letter["id"] for letter in look["latest_dead"]] == [one]
    assert (look["runs_a_minute"], look["failures_a_minute"]) == (6, 2)
    assert len(out.splitlines()) == 2
    assert "1 waiting  0 running  1 dead  6 a minute, 2 failing" in out


def test_a_store_that_went_away_does_not_end_the_view(ask, app, monkeypatch):
    def away(*_args, **_options):
        raise StoreError("the disk\nis full")

    monkeypatch.setattr(app.store, "count_dead", away)

    assert ask("watch", "-n", "1")["trouble"] == "the disk\nis full"


def test_the_live_view_draws_progress_and_dead_letters():
    job = Standing(
        id="0123456789abcdef-1",
        task="shop.send[red]",
        executor="spooler",
        state=State.RUNNING,
        started_at=940.0,
        done=3.0,
        total=4.0,
        worker="web1",
    )
    letter = DeadLetter(
        id="0123456789abcdef-2",
        task="shop.pay",
        executor="spooler",
        attempt=1,
        failed_at=940.0,
        error="OSError: no",
    )
    look = Snapshot(
        at=1000.0,
        waiting=12000,
        running=[job] * 25,
        letters=[letter],
        dead=1,
        rate=2.0,
        failures=0.5,
    )
    console = Console(width=120, file=io.StringIO(), force_terminal=True)

    console.print(drawn(look))

    out = console.file.getvalue()
    for text in ("12,000 waiting", "0123456789abcdef-1", "shop.send[red]", "1m00s", "3/4", "━"):
        assert text in out
    for text in ("and 5 more", "0123456789abcdef-2", "OSError: no", "2 a minute, 0.5 failing"):
        assert text in out


# --- doctor


def test_what_is_wrong_with_a_server_is_said(run, ask, tmp_path):
    (tmp_path / "uwsgi.ini").write_text("[uwsgi]\nlazy-apps = true\n")
    words = ["--ini", str(tmp_path / "uwsgi.ini"), "doctor", "--no-probe"]

    found = ask(*words, code=1)
    result = run(*words)

    assert result.code == 1
    assert found["errors"] == len([one for one in found["findings"] if one["level"] == "error"]) > 0
    assert found["findings"][0].keys() == {"level", "code", "what", "remedy"}
    assert found["findings"][0]["what"] in result.out
    assert found["findings"][0]["remedy"] in result.out


# --- a store that is away


@pytest.mark.parametrize("words", [["dead", "ls"], ["stats"], ["purge"], ["show", "a-1"]])
def test_a_store_that_cannot_be_reached_is_code_4(run, tmp_path, words):
    result = run("--store", f"sqlite:///{tmp_path}/none/tasks.sqlite3", *words)

    assert (result.code, result.out) == (4, "")


@pytest.mark.parametrize("words", [["dead", "ls"], ["stats"]])
def test_a_store_that_does_not_exist_names_those_that_do(run, words):
    result = run("--store", "pigeon://coop", *words)

    assert result.code == 4
    assert "pigeon" in result.error


def test_jobs_are_listed_though_the_store_is_away(run, shop, tmp_path):
    one = shop.send("ada").id

    assert one in run("--store", f"sqlite:///{tmp_path}/none/tasks.sqlite3", "ls").out


# --- the extra


def python(source, **env):
    return subprocess.run(
        [sys.executable, "-c", source],
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_the_remedy_is_named(missing):
    ran = python(
        f"import runpy, sys; sys.modules[{missing!r}] = None\n"
        "runpy.run_module('uwsgi_tasks', run_name='__main__')"
    )

    assert ran.returncode == 2
    assert ran.stderr == (
        "uwsgi-tasks: the command line needs two packages: pip install 'uwsgi_tasks[cli]'\n"
    )


def test_the_package_imports_none_of_it():
    assert python("import uwsgi_tasks, sys; print({'click', 'rich'} & {*sys.modules})").stdout == (
        "set()\n"
    )


def test_it_runs_as_a_module():
    ran = subprocess.run(
        [sys.executable, "-m", "uwsgi_tasks", "--version"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (ran.returncode, ran.stdout.split()[0]) == (0, "uwsgi-tasks")
