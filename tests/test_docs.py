"""Every code block of the pages is run, started, parsed or looked up; none goes untested."""

import configparser
import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

import click
import pytest

from tests.servers import free_port
from tests.uwsgi_coverage import environment
from uwsgi_tasks.model import TaskExecutor
from uwsgi_tasks.settings import Settings
from uwsgi_tasks.task import Options

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
        *(ROOT / "docs").glob("*.md"),
    ]
)

LANGUAGES = {"python", "ini", "bash", "toml", "json", "mermaid", "redis", "systemd"}

BLOCK = re.compile(
    r"^(?:<!-- test: (?P<word>[\w-]+): (?P<reason>[^\n]+) -->\n)?"
    r"^(?P<indent> *)```(?P<language>[^\n]*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)

# What the examples of every page may take for granted.
SETTINGS = """
SECRET_KEY = "of the tests"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "mysite.urls"
EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
"""
WSGI = """
import os
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
from django.core.wsgi import get_wsgi_application
application = get_wsgi_application()
import mysite.tasks
"""
TASKS = """
from uwsgi_tasks import task

@task
def nothing():
    pass
"""


@dataclass(frozen=True)
class Block:
    """One fenced block: its *word* is a test's instruction in a comment above it."""

    page: Path
    line: int
    language: str
    text: str
    word: str | None = None

    def __str__(self):
        return f"{self.page.name}:{self.line}"


def blocks_of(page):
    content = page.read_text()
    for found in BLOCK.finditer(content):
        indent = len(found["indent"])
        text = "".join(line[indent:] for line in found["text"].splitlines(keepends=True))
        line = content.count("\n", 0, found.start("text")) + 1
        yield Block(page, line, found["language"].strip(), text, found["word"])


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def of(*languages):
    return [block for block in BLOCKS if block.language in languages]


def test_every_fence_is_found():
    for page in PAGES:
        fences = re.findall(r"^ *```", page.read_text(), re.MULTILINE)
        assert len(fences) == 2 * len(list(blocks_of(page))), page.name


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_the_language_of_a_block_has_a_test(block):
    assert block.language in LANGUAGES
    assert block.word in {None, "no-run"}, f"{block}: unknown instruction {block.word}"


# --- python: each page is one module


def project(tmp_path):
    """A small Django project named mysite, and an empty spool beside it."""
    site = tmp_path / "mysite"
    site.mkdir()
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool").chmod(0o700)
    files = {
        "__init__.py": "",
        "settings.py": SETTINGS,
        "urls.py": "urlpatterns = []",
        "wsgi.py": WSGI,
        "tasks.py": TASKS,
    }
    for name, text in files.items():
        (site / name).write_text(text)
    return tmp_path


def module_of(page):
    """The page's python blocks as one source, each on the line that it has in the page."""
    lines = []
    for block in blocks_of(page):
        if block.language == "python" and block.word != "no-run":
            lines += [""] * (block.line - 1 - len(lines))
            lines += block.text.splitlines()
    return "\n".join(lines) + "\n"


def with_python():
    return [page for page in PAGES if any(b.page == page for b in of("python"))]


def write_module(page, folder):
    name = f"page_{page.stem.lower().replace('-', '_')}"
    (folder / f"{name}.py").write_text(module_of(page))
    return name


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_an_example_compiles(block):
    compile(block.text, str(block), "exec")


@pytest.mark.parametrize("page", with_python(), ids=lambda page: page.name)
def test_the_examples_of_a_page_run_without_uwsgi(page, tmp_path):
    folder = project(tmp_path)
    name = write_module(page, folder)
    ran = subprocess.run(
        [sys.executable, "-c", f"import django; django.setup(); import {name}"],
        cwd=folder,
        env=environment(DJANGO_SETTINGS_MODULE="mysite.settings", PYTHONPATH=str(folder)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_the_functions_on_the_page_about_failures_do_what_it_says(tmp_path):
    from uwsgi_tasks.spool import SpoolDirectory

    page = {}
    exec(module_of(ROOT / "docs" / "failures.md"), page)
    spool = SpoolDirectory(tmp_path)
    spool.write(b"one")
    spool.write(b"two", priority=3)
    spool.write_later(b"three", due=time.time() + 3600)

    assert len(page["unfinished"](tmp_path)) == 2


def has_gevent():
    try:
        import gevent  # noqa: F401
    except ImportError:
        assert not os.environ.get("CI"), "CI must have gevent: pip install -e '.[test]'"
        return False
    return True


@pytest.mark.parametrize(
    "name",
    [
        "in_a_thread",
        "stopped_and_started_again",
        pytest.param(
            "among_green_threads",
            marks=pytest.mark.skipif(not has_gevent(), reason="gevent is not installed"),
        ),
    ],
)
def test_the_functions_on_the_page_about_the_heap_do_what_it_says(name, tmp_path):
    page = write_module(ROOT / "docs" / "task_heap.md", tmp_path)
    ran = subprocess.run(
        [sys.executable, "-c", f"import {page}; assert {page}.{name}()"],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


# --- uWSGI: the same modules, and every ini


def has_uwsgi():
    try:
        import pyuwsgi  # noqa: F401
    except ImportError:
        assert not os.environ.get("CI"), "CI must have pyuwsgi: pip install -e '.[test]'"
        return False
    return True


needs_uwsgi = pytest.mark.skipif(not has_uwsgi(), reason="pyuwsgi is not installed")
RUN = "import sys, pyuwsgi; pyuwsgi.run(sys.argv[1:])"


def log_of_uwsgi(folder, *options, until):
    """Start uWSGI, wait for the words *until* in its log, stop it, and give the log."""
    path = folder / "uwsgi.log"
    with path.open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-c", RUN, *options],
            cwd=folder,
            env=environment(DJANGO_SETTINGS_MODULE="mysite.settings", PYTHONPATH=str(folder)),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 30
        while until not in path.read_text() and server.poll() is None:
            assert time.monotonic() < deadline, path.read_text()
            time.sleep(0.05)
        # Long enough for a task that the page calls at its top to run, or to fail.
        time.sleep(0.5)
    finally:
        server.send_signal(signal.SIGINT)
        # How it stops is for others to test: what counts here is that it starts.
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(timeout=10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    return path.read_text()


@needs_uwsgi
@pytest.mark.parametrize("page", with_python(), ids=lambda page: page.name)
def test_the_examples_of_a_page_load_inside_uwsgi(page, tmp_path):
    folder = project(tmp_path)
    log = log_of_uwsgi(
        folder,
        "--master",
        "--socket=127.0.0.1:0",
        "--module=mysite.wsgi",
        f"--shared-import={write_module(page, folder)}",
        f"--spooler={folder / 'spool'}",
        "--spooler-ordered",
        "--mules=2",
        "--need-app",
        f"--binary-path={sys.executable}",
        until="spawned uWSGI mule 2",
    )
    assert "Traceback" not in log, log
    assert "spawned uWSGI worker 1" in log, log


@pytest.fixture(scope="session")
def options_of_uwsgi():
    shown = subprocess.run(
        [sys.executable, "-c", RUN, "--help"], capture_output=True, text=True, check=False
    )
    return set(re.findall(r"--([\w.-]+)", shown.stdout + shown.stderr))


OWN_INI = Block(ROOT / "uwsgi.ini", 1, "ini", (ROOT / "uwsgi.ini").read_text())


@needs_uwsgi
@pytest.mark.parametrize("block", [*of("ini"), OWN_INI], ids=str)
def test_uwsgi_knows_every_option_of_an_ini(block, options_of_uwsgi):
    parser = configparser.ConfigParser(strict=False, allow_no_value=True, interpolation=None)
    parser.read_string(block.text)

    assert parser.sections() == ["uwsgi"]
    assert set(parser["uwsgi"]) <= options_of_uwsgi


@needs_uwsgi
@pytest.mark.parametrize("block", [b for b in of("ini") if "http-socket" in b.text], ids=str)
def test_uwsgi_starts_with_an_ini_that_has_a_socket(block, tmp_path):
    folder = project(tmp_path)
    text = re.sub(r"(http-socket *= *\S+:)\d+", rf"\g<1>{free_port()}", block.text)
    # The pages write .venv/bin/python.
    text = re.sub(r"(binary-path *= *)\S+", rf"\g<1>{sys.executable}", text)
    (folder / "uwsgi.ini").write_text(text)

    log = log_of_uwsgi(folder, "--strict", "--ini=uwsgi.ini", until="spawned uWSGI worker 1")

    assert "Traceback" not in log, log
    assert "spawned uWSGI worker 1" in log, log
    assert "no python application found" not in log, log


@pytest.mark.parametrize("block", of("ini"), ids=str)
def test_an_ini_has_a_master_and_what_pyuwsgi_needs_to_reload(block):
    if "http-socket" in block.text:
        assert re.search(r"^master *= *true", block.text, re.MULTILINE)
        assert re.search(r"^binary-path *= *\S+", block.text, re.MULTILINE)


# --- shell: every command must be one that we can check


def make_exists(arguments):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return all(word in targets for word in arguments if "=" not in word)


def pip_installs(arguments):
    extras = project_table()["optional-dependencies"]
    wanted = [word for word in arguments[1:] if not word.startswith("-")]
    return arguments[0] == "install" and all(
        extra.strip() in extras
        for word in wanted
        if (found := re.fullmatch(r"(?:uwsgi_tasks|\.)(?:\[([\w, ]+)\])?", word))
        for extra in (found[1] or "test").split(",")
    )


def python_runs(arguments):
    if arguments[:2] == ["-m", "pytest"]:
        paths = [word.partition("::")[0] for word in arguments[2:] if word.startswith("tests")]
        return all((ROOT / path).exists() for path in paths)
    if arguments[0] == "-c":
        compile(arguments[1], "-c", "exec")
        return True
    if arguments[:2] in (["manage.py", "uwsgi_tasks"], ["-m", "uwsgi_tasks"]):
        return command_line_takes(arguments[2:])
    return arguments[:2] == ["-m", "venv"] or arguments[0] == "manage.py"


def command_line_takes(arguments):
    """Parse a command line of ours as it would be, down to the last option, and run nothing."""
    from uwsgi_tasks.cli.program import program

    command, context, words = program, None, list(arguments)
    while command:
        # Raises for what it does not know.
        context = command.make_context(command.name, words, parent=context)
        if not isinstance(command, click.Group):
            return True
        _, command, words = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
    return False


def redis_cli_calls(arguments):
    """Call a script of ours, which needs a Redis: the tests of the page do so."""
    return arguments[0] == "--eval" and (ROOT / arguments[1]).exists()


def shows_files(arguments):
    return bool(arguments)


COMMANDS = {
    "make": make_exists,
    "pip": pip_installs,
    "python": python_runs,
    "python3": python_runs,
    "git": lambda arguments: arguments[0] == "clone",
    "cd": shows_files,
    "ls": shows_files,
    "mv": lambda arguments: len(arguments) == 2,
    "mkdir": shows_files,
    "uwsgi-tasks": command_line_takes,
    "export": lambda arguments: "=" in arguments[0],
    "redis-cli": redis_cli_calls,
    "kill": lambda arguments: bool(re.fullmatch(r"-[A-Z]+", arguments[0])),
    # The name of the program is uwsgi from source, pyuwsgi from the wheel.
    "pyuwsgi": lambda arguments: arguments[0].startswith("--"),
    "uwsgi": lambda arguments: arguments[0].startswith("--"),
}


def commands_of(block):
    joined = block.text.replace("\\\n", " ")
    for line in joined.splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"\w+=.*", words[0]):
            words = words[1:]
        if words:
            yield words


@pytest.mark.parametrize("block", of("bash"), ids=str)
def test_a_shell_line_names_what_exists(block):
    for program, *arguments in commands_of(block):
        name = program.rpartition("/")[2]
        assert name in COMMANDS, f"{block}: no check for {program}; add one to COMMANDS"
        assert COMMANDS[name](arguments), f"{block}: {shlex.join([program, *arguments])}"


# --- the rest


def project_table():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


# What one types into redis-cli, tests/redis/test_documented_redis.py types there.
@pytest.mark.parametrize("block", of("redis"), ids=str)
def test_what_one_types_into_redis_are_commands(block):
    for line in block.text.splitlines():
        command, *_ = shlex.split(line)
        assert re.fullmatch("[A-Z]+", command), line


@pytest.mark.parametrize("block", of("systemd"), ids=str)
def test_a_unit_of_systemd_can_be_read(block):
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(block.text)
    assert parser.sections() == ["Unit", "Service", "Install"]


def test_what_is_data_parses():
    for block in of("toml", "json"):
        {"toml": tomllib.loads, "json": json.loads}[block.language](block.text)


@pytest.mark.parametrize("block", of("mermaid"), ids=str)
def test_a_state_diagram_uses_the_states_that_exist(block):
    from uwsgi_tasks import State

    assert block.text.startswith("stateDiagram-v2\n")
    drawn = set(re.findall(r"^\s*(\w+|\[\*\]) *-->", block.text, re.MULTILINE))
    drawn |= set(re.findall(r"--> *(\w+|\[\*\])", block.text))
    assert drawn - {"[*]"} <= {state.name for state in State} | {"DEAD"}


def first_column(page, heading):
    """Return the names in the first column of the table headed so."""
    text = page.read_text()
    lines = text[text.index(f"| {heading} |") :].partition("\n\n")[0].splitlines()[2:]
    return {name for line in lines for name in re.findall(r"`(\w+)`", line.split("|")[1])}


@pytest.mark.parametrize("kind", [Settings, Options], ids=["setting", "option"])
def test_the_readme_has_each_setting_and_each_option(kind):
    told = first_column(ROOT / "README.md", "setting" if kind is Settings else "option")
    assert told == {field.name for field in fields(kind) if field.init}


def test_the_readme_has_each_executor():
    told = first_column(ROOT / "README.md", "executor")
    assert told == set(TaskExecutor.__members__)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_to_a_file_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.parent.name == "docs"], ids=lambda page: page.name
)
def test_the_readme_links_to_the_page(page):
    assert f"(docs/{page.name})" in (ROOT / "README.md").read_text()
