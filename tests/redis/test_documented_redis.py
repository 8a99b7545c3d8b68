"""The page about Redis does what it says, on a real one, with workers of their own."""

import configparser
import re
import shlex
import subprocess
import time
from dataclasses import fields

import pytest

import uwsgi_tasks
from tests.redis.crew import ROOT, Crew
from tests.servers import Redis, serve
from tests.test_docs import blocks_of, command_line_takes, module_of, of
from uwsgi_tasks import App
from uwsgi_tasks.cli import given
from uwsgi_tasks.cli.work import worker as command
from uwsgi_tasks.errors import LeaseLost
from uwsgi_tasks.redis.client import Client
from uwsgi_tasks.server import Server
from uwsgi_tasks.settings import Settings
from uwsgi_tasks.stores import connect
from uwsgi_tasks.stores.redis import RedisStore

PAGE = ROOT / "docs" / "redis.md"
TEXT = PAGE.read_text()
BLOCKS = list(blocks_of(PAGE))
HERE = "redis://localhost:6379/0"
QUEUES = "default,mail,bulk"


def rows(heading, after):
    """Return the cells of the table headed so, that comes next after a heading of the page."""
    text = TEXT[TEXT.index(f"\n{after}\n") :]
    lines = text[text.index(f"| {heading} |") :].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def block(language):
    (found,) = (one.text for one in BLOCKS if one.language == language)
    return found


@pytest.fixture(params=["redis_server", "redis_62", "redis_cluster", "redis_sentinel", "redis_tls"])
def anywhere(request):
    """Each kind of Redis."""
    server = request.getfixturevalue(request.param)
    server.flush()
    yield server
    server.flush()


@pytest.fixture
def server(redis_server):
    redis_server.flush()
    yield redis_server
    redis_server.flush()


def source(url, folder):
    """Write the page as a module of somebody whose Redis is at *url*."""
    path = folder / "page.py"
    path.write_text(module_of(PAGE).replace(HERE, url))
    return path


def crew_at(url, folder):
    return Crew(folder, url, source(url, folder))


@pytest.fixture
def crew(server, tmp_path):
    crew = crew_at(server.url, tmp_path)
    yield crew
    crew.end()


def page_at(url, monkeypatch):
    """Return what the page defines, as the application of the workers, with an app of its own."""
    app = App(Server(None))
    for name in ("configure", "task"):
        monkeypatch.setattr(uwsgi_tasks, name, getattr(app, name))
    monkeypatch.setattr(uwsgi_tasks, "default_app", app)
    found = {"__name__": "app"}
    exec(compile(module_of(PAGE).replace(HERE, url), str(PAGE), "exec"), found)
    return found


@pytest.fixture
def page(server, monkeypatch):
    return page_at(server.url, monkeypatch)


@pytest.fixture
def worker(crew):
    return crew.start("-c", "2", queues=QUEUES)


# --- the examples


def test_a_job_runs_in_a_worker_on_each_kind_of_redis(anywhere, tmp_path, monkeypatch):
    page, crew = page_at(anywhere.url, monkeypatch), crew_at(anywhere.url, tmp_path)
    try:
        crew.start()
        assert page["resize"]("cat.jpg").result(timeout=30) == "cat.jpg at 200"
    finally:
        crew.end()


def test_the_first_example_gives_what_its_comment_says(page, worker):
    assert page["submit"]() == "cat.jpg at 200"


def test_one_setting_sends_what_names_no_executor_to_redis(crew, server):
    export = next(one.text for one in BLOCKS if "UWSGI_TASKS_EXECUTOR" in one.text)
    (name, value) = export.split()[1].split("=")
    (crew.folder / "app.py").write_text(
        "from uwsgi_tasks import task\n\n@task(result_ttl=60)\ndef add(a, b):\n    return a + b\n"
    )
    crew.start(**{name: value})
    source = "print(app.add(1, 2).result(timeout=30))"
    crew._env[name] = value
    assert crew.program(source, stdout=subprocess.PIPE).communicate()[0] == "3\n"


def test_some_are_submitted_to_their_queues(page, server):
    page["submit_some"]()
    sizes = page["default_app"].executor("redis").sizes()
    assert sizes == {"bulk": (1, 0, 0), "mail": (2, 1, 0)}


def test_the_one_with_a_priority_is_first(page, server):
    page["submit_some"]()
    app = page["default_app"]
    first = next(one for one in app.jobs() if one.place == "mail")
    assert app.read(first.id).args == ("ben@example.com",)


def test_all_of_them_run(page, worker):
    assert [handle.wait(30) for handle in page["submit_some"]()] == [True] * 4


def test_a_task_extends_its_lease(page, worker):
    assert page["charge"].using(result_ttl=60)(7).result(timeout=30) == "charged 7"


def test_a_task_that_has_lost_its_lease_stops(page):
    class Late:
        def heartbeat(self):
            raise LeaseLost

    page["get_current_task"] = Late
    assert page["charge"].func(7) == "another worker has it by now"


def test_a_task_that_runs_once_at_most_runs(page, worker):
    assert page["ring"].using(result_ttl=60)("front").result(timeout=30) == "rang at front"


def test_a_task_is_tried_again(page, worker):
    handle = page["fetch"]("https://example.org/")
    assert handle.result(timeout=30) == "https://example.org/ is there"
    assert handle.record.attempt == 2


def test_a_job_that_begins_in_time_goes_on(page, worker):
    handle = page["resize"]("cat.jpg")
    assert page["within"](30, handle)
    assert handle.result(timeout=30) == "cat.jpg at 200"


def test_one_that_does_not_begin_in_time_does_not_run(page):
    handle = page["resize"]("cat.jpg")
    assert not page["within"](0.05, handle)
    assert page["how_many_wait"]() == {"default": 0}


def test_many_are_submitted_at_once(page, worker):
    assert page["resize_all"](["a", "b", "c"]) == ["a at 200", "b at 200", "c at 200"]


def test_rows_are_imported(page, worker):
    assert page["import_rows"].using(result_ttl=60)(["a", "b"]).result(timeout=30) == 2


def test_a_call_says_that_redis_is_away(page):
    page["configure"](redis="unix:///nowhere/redis.sock")
    assert "nowhere" in page["submit_or_say_why"]("cat.jpg")


def test_a_call_tries_again_for_as_long_as_the_setting_says(page):
    page["configure"](redis="unix:///nowhere/redis.sock", redis_retry=0.3)
    began = time.monotonic()
    assert "nowhere" in page["submit_or_say_why"]("cat.jpg")
    assert time.monotonic() - began >= 0.3


def test_a_call_that_can_be_made_gives_an_id(page):
    assert page["default_app"].executor("redis").find(page["submit_or_say_why"]("cat.jpg"))


def test_queues_and_workers_are_seen(page, crew, worker):
    crew.wait_for(page["known_tasks"])
    assert {"app.resize", "billing.tasks.send_invoice"} <= page["known_tasks"]()
    crew.wait_for(lambda: page["how_many_wait"]() == dict.fromkeys(QUEUES.split(","), 0))


def test_a_task_whose_code_is_elsewhere_is_called_by_its_name(page):
    id_ = page["send_invoice"](7).id
    standing = page["default_app"].executor("redis").find(id_)
    assert (standing.task, standing.place) == ("billing.tasks.send_invoice", "billing")


def test_another_application_has_keys_of_its_own(page, server):
    page["build_report"]("May")
    begin = "{uwsgi_tasks:reports:queue:default}:"
    keys = server.cli("KEYS", "*").split()
    assert keys
    assert all(key.startswith((begin, "uwsgi_tasks:reports:")) for key in keys)


@pytest.mark.parametrize(
    "options",
    [
        {"durable": True},
        {"spooler": "/srv/spool"},
        {"mule": 1},
        {"working_dir": "/srv"},
        {"priority": 10},
        {"queue": "two words"},
        {"serializer": "pickle"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_an_option_that_the_page_rules_out_is_refused(page, options):
    with pytest.raises(uwsgi_tasks.InvalidTask, match=next(iter(options))):
        page["resize"].using(**options)


def test_an_argument_that_json_has_not_is_refused_by_its_name(page):
    with pytest.raises(uwsgi_tasks.SubmitError, match="argument 'width'"):
        page["resize"]("cat.jpg", width={200})


def test_a_tuple_comes_out_as_a_list(page, worker):
    assert page["resize"](("cat", "jpg")).result(timeout=30) == "['cat', 'jpg'] at 200"


def test_what_a_task_raises_arrives_with_its_text_and_its_traceback(page, worker):
    with pytest.raises(uwsgi_tasks.TaskFailed, match=r"TypeError: .*'colour'") as caught:
        page["resize"]("cat.jpg", colour="red").result(timeout=30)
    assert "TypeError" in caught.value.args[1]


def test_with_a_secret_an_exception_keeps_its_type(page, crew):
    secret = "of the tests alone"  # noqa: S105  it is
    crew.start(queues=QUEUES, UWSGI_TASKS_SECRET=secret)
    page["configure"](secret=secret)
    with pytest.raises(TypeError, match="'colour'"):
        page["resize"]("cat.jpg", colour="red").result(timeout=30)


def test_what_has_ended_without_a_result_to_keep_leaves_nothing_behind(page, server, worker, crew):
    page["ring"]("front").wait(30)
    page["send"]("ann@example.com").wait(30)
    crew.wait_until_empty()
    keys = server.cli("KEYS", "*").split()
    assert not [key for key in keys if "result" in key or ":jobs" in key or ":more" in key]


def test_a_task_of_a_queue_can_be_run_at_once(page):
    handle = page["send"].using(executor="runtime", queue=None)("ann@example.com")
    assert handle.result() == "Hello, ann@example.com"


# --- the tables


def test_the_settings_of_the_page_are_those_that_there_are():
    known = {field.name: field.default for field in fields(Settings) if field.init}
    told = {name.strip("`"): default for name, default, _ in rows("setting", "## Settings")}
    plain = {"queues", "threads", "redis_retry", "unknown_task_grace", "crash_limit", "namespace"}
    plain.add("executor")
    shown = {name: told.pop(name).strip("`").strip('"') for name in plain}
    assert shown == {name: str(known[name]) for name in plain}
    assert told.keys() <= known.keys()


def test_the_options_of_the_worker_are_those_that_there_are():
    told = {
        word.strip("`").split()[0].strip("`,")
        for cells in rows("option", "## The worker")
        for word in cells[0].split(", ")
    }
    known = {option for one in command.params for option in one.opts} - {"--json"}
    short = {option for one in command.params for option in one.opts if len(one.opts) > 1}
    assert told <= known
    assert known - told <= short


def test_the_defaults_of_the_workers_options_are_those_that_there_are():
    known = {option: one.default for one in command.params for option in one.opts}
    told = {
        cells[0].strip("`").split("`")[0].split()[0]: cells[1]
        for cells in rows("option", "## The worker")
    }
    shown = {name: value for name, value in told.items() if value[:1].isdigit()}
    assert shown == {name: str(known[name]) for name in ("-c", "-p", "--grace")}


def urls():
    for cells in rows("URL", "### The URL"):
        for word in cells[0].split(", "):
            yield word.strip("`").replace(
                "://...", "://host1/name" if "sentinel" in word else "://host1"
            )


@pytest.mark.parametrize("url", list(urls()))
def test_a_url_of_the_page_can_be_read(url):
    # Its files are not there.
    url = url.replace("?ssl_ca_certs=/etc/ssl/redis.pem", "")
    assert Client(url).shown.startswith(url.partition("://")[0])


@pytest.mark.parametrize("url", list(urls()))
def test_a_url_of_the_page_is_one_of_a_store_that_pickles_nothing_without_a_secret(url):
    assert isinstance(connect(url), RedisStore)
    assert not Settings(redis=url).pickles


@pytest.mark.parametrize("option", ["ssl_certfile", "ssl_keyfile", "sentinel_username"])
def test_an_option_that_the_page_names_can_be_read(option):
    kind = "redis+sentinel://host/name" if option.startswith("sentinel") else "rediss://host"
    assert Client(f"{kind}?{option}=x").shown


# --- the server, and the service


@pytest.fixture(scope="module")
def pliant():
    """A Redis whose settings may change."""
    with serve(Redis) as server:
        yield server


@pytest.mark.parametrize("block", of("redis"), ids=str)
def test_redis_takes_each_line_of_all_pages(pliant, block):
    said = pliant.ask(given=block.text)
    assert (said.returncode, said.stderr) == (0, b"")
    assert not re.search(rb"^(ERR|WRONGTYPE|EXECABORT|NOPERM|\(error\))", said.stdout, re.MULTILINE)


def test_redis_has_the_settings_of_the_page(pliant):
    text = next(one.text for one in BLOCKS if "CONFIG SET" in one.text)
    assert pliant.cli(input=text) == "OK\nOK\nOK"
    for line in text.splitlines():
        *_, name, value = line.split()
        assert pliant.cli("CONFIG", "GET", name) == f"{name}\n{value}"


def test_a_full_redis_refuses_calls_and_has_its_jobs_run(server, page, crew):
    pictures = [f"{number}.jpg" for number in range(200)]
    handles = page["resize"].map(pictures)
    used = int(server.info("memory")["used_memory"])
    server.cli("CONFIG", "SET", "maxmemory", used // 2)
    try:
        assert "maxmemory" in page["submit_or_say_why"]("cat.jpg")
        assert page["how_many_wait"]() == {"default": 200}
        crew.start(queues=QUEUES)
        crew.wait_for(lambda: page["how_many_wait"]()["default"] == 0)
    finally:
        server.cli("CONFIG", "SET", "maxmemory", 0)
    assert len(handles) == 200


@pytest.fixture
def accounts(server):
    """The accounts of the page."""
    server.cli(input=next(one.text for one in BLOCKS if "ACL SETUSER" in one.text))
    yield
    server.cli("ACL", "DELUSER", "mysite", "webhook")


def test_the_account_of_the_page_reaches_all_that_we_need(server, accounts, tmp_path, monkeypatch):
    url = server.url.replace("unix://", "unix://mysite:secret@")
    page, crew = page_at(url, monkeypatch), crew_at(url, tmp_path)
    try:
        crew.start()
        assert page["resize_all"](["a", "b"]) == ["a at 200", "b at 200"]
        assert page["fetch"]("x").result(timeout=30) == "x is there"
        handle = page["resize"].using(at=page["timedelta"](hours=1))("c")
        assert handle.cancel()
        page["default_app"].executor("redis").purge("default")
        assert page["known_tasks"]()
        assert page["default_app"].dead.list() == []
        assert "NOPERM" not in crew.workers[0].log
    finally:
        crew.end()


def test_the_account_of_the_page_reaches_nothing_else(server, accounts):
    client = Client(server.url.replace("unix://", "unix://mysite:secret@"))
    for words in (("GET", "theirs"), ("FLUSHALL", "ASYNC"), ("CONFIG", "GET", "save")):
        with pytest.raises(uwsgi_tasks.StoreError, match="permission"):
            client.call(*words)
    client.close()


def test_the_other_account_submits_to_its_queue_and_to_no_other(server, accounts):
    wire = ROOT / "docs" / "wire.md"
    texts = [one.text for one in blocks_of(wire) if one.language == "redis"]
    mail = next(text for text in texts if "queue:mail" in text)
    names = next(text for text in texts if text.startswith("SADD"))
    place = (
        "-s",
        f"{server.folder}/socket",
        "--user",
        "webhook",
        "--pass",
        "secret",
        "--no-auth-warning",
    )
    shown = server.cli(input=mail + names, place=place)
    assert "NOPERM" not in shown
    assert server.cli("HLEN", "{uwsgi_tasks:queue:mail}:jobs") == "1"
    refused = server.ask(given=mail.replace("mail", "default"), place=place)
    assert b"NOPERM" in refused.stdout + refused.stderr
    assert server.cli("HLEN", "{uwsgi_tasks:queue:default}:jobs") == "0"


@pytest.fixture
def unit():
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read_string(block("systemd"))
    return parser


def test_the_unit_runs_a_command_that_there_is(unit):
    program, *words = shlex.split(unit["Service"]["ExecStart"])
    assert program.endswith("/uwsgi-tasks")
    assert command_line_takes(words)


def test_the_unit_gives_a_worker_more_time_than_its_grace(unit):
    words = shlex.split(unit["Service"]["ExecStart"])
    grace = given.span(words[words.index("--grace") + 1])
    assert float(unit["Service"]["TimeoutStopSec"]) > grace + 5
