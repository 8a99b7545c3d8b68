"""The command line on Redis, where there is no spooler."""

import pytest

from tests.redis.shop import Shop

SOURCE = """
    from stage import gate, record
    from uwsgi_tasks import Retry, get_current_task, task

    @task(executor="redis", result_ttl=600)
    def add(one, two):
        record("added")
        return one + two

    @task(executor="redis")
    def hold(name):
        get_current_task().progress(3, 4)
        record("begun", id=get_current_task().id)
        gate(name)

    @task(executor="redis", unique=True)
    def once():
        record("once")

    @task(executor="redis")
    def fail(name):
        raise LookupError(f"no {name}")

    @task
    def anywhere():
        record("anywhere")
"""


@pytest.fixture
def shop(tmp_path, redis_server):
    redis_server.flush()
    made = Shop(tmp_path, redis_server.url, SOURCE)
    yield made
    made.end()


def submit(shop, *words):
    """Return the id of a job that a person has submitted."""
    return shop.type("submit", *words).stdout.strip()


def test_it_submits_lists_and_shows_jobs(shop):
    one = submit(shop, "shop:add", "1", "two=2", "--priority", "0")
    two = submit(shop, "shop:add", "3", "4", "--queue", "later", "--delay", "1h")

    listed = shop.ask("ls")
    assert listed["count"] == 2
    assert [(job["id"], job["state"], job["place"]) for job in listed["jobs"]] == [
        (one, "queued", "default"),
        (two, "delayed", "later"),
    ]
    found = shop.ask("show", one)
    assert (found["state"], found["executor"], found["place"]) == ("queued", "redis", "default")
    assert found["priority"] == 0
    assert found["arguments"] == {"args": [1], "kwargs": {"two": 2}}
    assert [job["id"] for job in shop.ask("ls", "--state", "delayed")["jobs"]] == [two]


def test_it_shows_what_runs_and_how_far_that_is(shop):
    shop.work()
    job = submit(shop, "shop:hold", '"gate"')
    shop.wait_for_events("begun")
    # It says who it is beside that.
    shop.wait_until_ready()

    (listed,) = shop.ask("ls", "--state", "running")["jobs"]
    found = shop.ask("show", job)
    assert listed["progress"] == found["progress"] == {"done": 3, "total": 4}
    assert listed["worker"] == found["worker"] == shop.ask("workers")["workers"][0]["name"]
    assert "3/4" in shop.type("show", job).stdout


def test_it_counts_the_jobs_of_each_queue(shop):
    shop.work("-q", "slow")
    shop.submit("hold", "gate", queue="slow")
    shop.wait_for_events("begun")
    shop.submit_all("add", [[1, 2]] * 3, queue="slow")
    shop.submit("add", 1, 2, queue="default", at=2_000_000_000)

    assert shop.ask("queues")["queues"] == {
        "default": {"waiting": 0, "delayed": 1, "running": 0},
        "slow": {"waiting": 3, "delayed": 0, "running": 1},
    }
    assert shop.type("queues").stdout.splitlines()[2].split() == ["slow", "3", "0", "1"]


def test_it_lists_workers(shop):
    worker = shop.work("-q", "high,low", "-c", "3")
    shop.wait_until_ready()

    (found,) = shop.ask("workers")["workers"]
    assert (found["pid"], found["queues"], found["threads"]) == (worker.pid, ["high", "low"], 3)
    assert "shop.add" in found["tasks"]
    assert found["memory"] > 2**20
    assert found["name"] in shop.type("workers").stdout


def test_it_empties_a_queue_and_what_runs_goes_on(shop):
    shop.work()
    shop.submit("hold", "gate")
    shop.wait_for_events("begun")
    shop.submit_all("add", [[1, 2]] * 5)
    other = shop.submit("add", 1, 2, queue="other")

    refused = shop.type("empty", "default", code=2).stderr
    emptied = shop.ask("empty", "default", "--yes")
    shop.type("empty", "nowhere", "--yes", code=1)
    shop.open_gate("gate")

    assert "nobody answers here: say --yes" in refused
    assert emptied == {"taken_away": 5}
    shop.wait_for(lambda: [job["id"] for job in shop.ask("ls")["jobs"]] == [other])
    assert not shop.events("added")


def test_what_was_unique_and_taken_away_can_be_submitted_again(shop):
    submit(shop, "shop:once")
    shop.type("empty", "default", "--yes")
    again = submit(shop, "shop:once")

    assert [job["id"] for job in shop.ask("ls")["jobs"]] == [again]


def test_it_waits_for_a_result_and_for_a_job(shop):
    shop.work()

    assert shop.type("submit", "shop:add", "1", "2", "--wait").stdout == "3\n"
    job = submit(shop, "shop:add", "3", "4")
    assert shop.ask("wait", job)["state"] == "succeeded"
    assert shop.ask("show", job)["result"] == 7
    held = submit(shop, "shop:hold", '"gate"')
    shop.type("wait", held, "--until", "running")
    shop.type("wait", held, "--timeout", "10ms", code=3)


def test_it_cancels_what_waits_and_ends_what_runs(shop):
    waiting = submit(shop, "shop:add", "1", "2")
    assert shop.ask("cancel", waiting)["cancelled"] == [waiting]
    shop.work()
    running = submit(shop, "shop:hold", '"never"')
    shop.wait_for_events("begun")

    assert "was asked to stop" in shop.type("cancel", running, code=1).stderr
    assert shop.ask("cancel", running, "--kill")["cancelled"] == [running]
    assert not shop.events("added")


def test_it_lists_shows_and_requeues_dead_letters(shop):
    shop.work()
    job = submit(shop, "shop:fail", '"ada"')
    shop.wait_for(lambda: shop.ask("dead", "ls")["count"])

    found = shop.ask("dead", "show", job)
    requeued = shop.ask("dead", "requeue", job, "--queue", "quiet")
    assert found["error"] == "LookupError: no ada"
    assert found["arguments"]["args"] == ["ada"]
    assert requeued["requeued"] == [job]
    assert shop.ask("queues")["queues"]["quiet"]["waiting"] == 1
    assert shop.ask("dead", "ls")["count"] == 0


def test_it_watches(shop):
    submit(shop, "shop:add", "1", "2")

    assert shop.ask("watch", "-n", "1")["waiting"] == 1


def test_the_address_can_be_typed(shop):
    words = "--redis", shop.url
    shop.url = None
    job = shop.type(*words, "submit", "shop:add", "1", "2").stdout.strip()

    assert [one["id"] for one in shop.ask(*words, "ls")["jobs"]] == [job]
    assert list(shop.ask(*words, "queues")["queues"]) == ["default"]


@pytest.mark.parametrize(
    "words",
    [["ls"], ["show", "a-1"], ["wait", "a-1"], ["cancel", "a-1"], ["queues"], ["workers"],
     ["empty", "default", "--yes"], ["dead", "ls"], ["dead", "requeue", "a-1"],
     ["submit", "shop:add", "1", "2"]],
    ids=" ".join,
)  # fmt: skip
def test_while_redis_is_away_it_is_one_line_and_code_4(shop, words):
    url = f"unix://{shop.folder}/nobody"

    (line,) = shop.type(*words, code=4, UWSGI_TASKS_REDIS=url).stderr.splitlines()
    assert f"Redis at {url}" in line


def test_where_neither_a_spooler_nor_a_redis_is_known_both_remedies_are_named(shop):
    shop.url = None

    (line,) = shop.type("ls", code=4).stderr.splitlines()
    assert "--spooler DIR" in line
    assert "--redis URL" in line


def test_what_goes_to_a_spooler_is_not_sent_to_redis_unasked(shop):
    refused = shop.type("submit", "shop:anywhere", code=2).stderr
    sent = [
        submit(shop, "shop:anywhere", "--executor", "redis"),
        submit(shop, "shop:anywhere", "--queue", "some"),
    ]

    assert "choose --executor redis" in refused
    assert sorted(job["id"] for job in shop.ask("ls")["jobs"]) == sorted(sent)


def test_where_a_setting_says_that_auto_is_redis_nothing_else_need_be_said(shop):
    job = shop.type("submit", "shop:anywhere", UWSGI_TASKS_EXECUTOR="redis").stdout.strip()

    assert shop.ask("show", job)["executor"] == "redis"


def test_a_spooler_that_is_named_too_is_looked_at_too(shop):
    spool = shop.folder / "spool"
    spool.mkdir(mode=0o700)
    env = {"UWSGI_TASKS_SPOOLER_DIR": str(spool)}
    one = shop.type("submit", "shop:anywhere", **env).stdout.strip()
    two = submit(shop, "shop:add", "1", "2")

    assert [job["id"] for job in shop.ask("ls", **env)["jobs"]] == [one, two]
    assert shop.ask("ls", **env)["count"] == 2
