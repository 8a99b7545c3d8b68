"""Each example of docs/data_queues.md does what the page says of it, on a real Redis."""

import re
import shlex
import time
import warnings
from pathlib import Path

import pytest

import uwsgi_tasks
from tests.test_docs import ROOT, blocks_of
from uwsgi_tasks import data_queue
from uwsgi_tasks.data_queue import DataQueue
from uwsgi_tasks.redis.client import Client

PAGE = ROOT / "docs" / "data_queues.md"
TEXT = PAGE.read_text()
TEN = 10
"""By how much time goes faster where a page waits for twenty seconds."""


def title_of(block):
    """Return the heading that *block* stands under."""
    above = "\n".join(TEXT.splitlines()[: block.line - 1])
    return ["", *re.findall(r"^## (.+)$", above, re.MULTILINE)][-1]


BLOCKS = [(title_of(block), block) for block in blocks_of(PAGE)]


@pytest.fixture
def declare(redis_server, monkeypatch):
    """What the page calls DataQueue."""
    client = Client(redis_server.url)

    def declare(name, **options):
        return DataQueue(name, client=lambda: client, namespace=str, **options)

    monkeypatch.setattr(uwsgi_tasks, "DataQueue", declare, raising=False)
    yield declare
    client.close()
    redis_server.flush()


@pytest.fixture
def run(declare):
    """Run the blocks under these headings, in one module; the first makes the items."""

    def run(*titles):
        names = {"__name__": "page_data_queues", "DataQueue": declare}
        for title in ("Each item once, or not at all", *titles):
            for its, block in BLOCKS:
                if its == title and block.language == "python":
                    exec(compile("\n" * (block.line - 1) + block.text, PAGE, "exec"), names)
        return names

    return run


@pytest.fixture
def faster(monkeypatch):
    """Let all times pass ten times as fast."""
    seconds, sleep = data_queue.seconds, time.sleep
    monkeypatch.setattr(data_queue, "seconds", lambda *given: seconds(*given) / TEN)
    monkeypatch.setattr(time, "sleep", lambda given: sleep(given / TEN))


def values(items):
    return list(items.values())


def test_without_a_lease_items_are_removed_as_they_are_read(run):
    names = run()
    assert values(names["items"]) == [names["item1"], names["item2"]]
    assert names["queue"].sizes() == (1, 0, 0, 0)


def test_with_a_lease_items_are_held_until_they_are_done(run):
    names = run("Each item until it is done")
    assert names["refreshed"] == set(names["items"])
    assert values(names["items"]) == [names["item1"], names["item2"]]
    assert values(names["items2"]) == [names["item3"]]
    assert names["queue"].sizes() == (0, 0, 0, 0)


def test_what_was_not_done_is_dead_and_read_like_any_other(run, faster):
    names = run("Dead items")
    assert names["dead_items"] == names["items2"]
    assert values(names["dead_items"]) == [names["item3"]]
    assert names["queue"].sizes() == (0, 0, 0, 0)


@pytest.fixture
def died(run, declare, faster):
    """The names of the page, and a queue of which three items have died."""
    names = run("Dead items")
    queue = declare("failing", attempts=1, lease=60, dead_letter=True)
    queue.put([names["item1"], names["item2"], names["item3"]])
    queue.give_back(queue.get(3), failed=True)
    return names, queue


def test_what_died_is_shown(died, capsys):
    names, queue = died
    names["what_died"](queue)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ", 1)[0] for line in lines] == [entry.id for entry in queue.dead]
    assert all(re.search(r"\} failing 20.* 1$", line) for line in lines)


def test_some_of_the_dead_are_tried_again(died):
    names, queue = died
    names["try_again"](queue)
    assert [entry.item for entry in queue] == [names["item2"], names["item3"]]
    assert [(entry.item, entry.state) for entry in queue.dead] == [(names["item1"], "waiting")]


def test_all_of_the_dead_are_tried_again(died):
    names, queue = died
    assert len(names["try_all_again"](queue)) == 3
    assert queue.sizes() == (3, 0, 0, 0)


def test_each_minute_a_hundred_are_taken_and_done(run, capsys):
    with warnings.catch_warnings():
        # Outside uWSGI no timer fires.
        warnings.simplefilter("ignore", RuntimeWarning)
        names = run("Every minute")
    names["aggregate_queue"].put(range(150))
    names["aggregate"].func(0)
    assert capsys.readouterr().out.split() == [str(number) for number in range(100)]
    assert names["aggregate_queue"].sizes() == (50, 0, 0, 0)


def test_a_loop_that_is_stopped_gives_back_what_it_has_not_begun(run, declare, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        names = run("Every minute")
    queue = declare("work", attempts=1, lease=60)
    queue.put(range(5))
    answers = iter([False, False, False, True, True])
    names["work"](queue, lambda: next(answers))
    assert capsys.readouterr().out.split() == ["0", "1"]
    assert [(entry.item, entry.state) for entry in queue] == [
        (2, "waiting"), (3, "waiting"), (4, "waiting"),
    ]  # fmt: skip


def test_what_is_delayed_is_counted_and_looked_at(run, capsys):
    names = run("Later", "Looking, and counting")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["2", "Sizes(waiting=0, held=0, delayed=2, dead=0)"]
    for line in lines[:2]:
        assert f"# {line}" in TEXT
    assert sorted(lines[4:]) == ["the first", "the second"]
    assert all("delayed 0 20" in line for line in lines[2:4])
    assert len(names["queue"]) == 0


def test_another_program_puts_an_item_with_one_command(run, redis_server):
    queue = run()["queue"]
    queue.clear()
    (block,) = [one for title, one in BLOCKS if title == "From other programs"]
    for line in block.text.splitlines():
        redis_server.cli(*shlex.split(line))
    assert redis_server.cli("LLEN", "{uwsgi_tasks:data:best_effort}:wake") == "1"
    (first, one), (_, other) = queue.get(2).items()
    assert (first, one, other) == ("order7", {"path": "/", "ms": 3}, {"path": "/", "ms": 4})


def test_the_keys_are_those_of_the_page(declare, redis_server):
    queue = declare("NAME", attempts=1, lease=60, dead_letter=True)
    queue.put(range(4))
    queue.give_back(queue.get(), failed=True)
    queue.get()
    queue.put(["later"], delay=60)
    kinds = {
        key: redis_server.cli("TYPE", key) for key in redis_server.cli("KEYS", "*").splitlines()
    }
    named = {"list": "list", "hash": "hash", "sorted set": "zset", "number": "string"}
    on_the_page = {
        key: named[kind]
        for key, kind in re.findall(
            r"^\| `(\{uwsgi_tasks:data:NAME\}\S+)` \| ([\w ]+) \|", TEXT, re.MULTILINE
        )
    }
    dead = {key: kinds.pop(key) for key in list(kinds) if "}:dead:" in key}
    assert kinds == on_the_page
    assert {key.replace(":dead:", ":") for key in dead} <= set(kinds)


def test_every_example_of_the_page_has_a_test_here():
    source = Path(__file__).read_text()
    titles = {title for title, block in BLOCKS if block.language == "python"}
    assert [title for title in titles if f'"{title}"' not in source] == []
