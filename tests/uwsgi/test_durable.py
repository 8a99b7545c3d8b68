"""A durable job is on the disk before its caller goes on."""

import pytest

from tests.uwsgi.serving import CallError

SOURCE = """
    import os
    from datetime import timedelta
    from uwsgi_tasks import Retry, get_current_task, task

    synced, fsync = [], os.fsync

    def note_and_sync(handle):
        path = os.readlink(f"/proc/self/fd/{handle}")
        synced.append(path)
        record("synced", path=path)
        fsync(handle)

    os.fsync = note_and_sync

    def paths(call):
        synced.clear()
        call()
        return synced[:]

    @task(executor="spooler")
    def note(name, payload=b""):
        record("note", name=name)

    sure = task(executor="spooler", durable=True, name="app.sure")(note.func)

    @task(executor="spooler", durable=True, retry=Retry(attempts=2, delay=0.5))
    def flaky():
        record("flaky", attempt=get_current_task().attempt)
        raise ConnectionError("no answer")
"""


@pytest.fixture(scope="module")
def server(serve_module):
    return serve_module(SOURCE, mules=1, options=["--spooler-ordered"])


def synced(server, call):
    """Return the files and the folders that were brought to the disk, by their places in spool."""
    found = server.call(f"paths(lambda: {call})")
    return [path.removeprefix(str(server.spool)) for path in found]


@pytest.mark.parametrize("size", [0, 200_000])
def test_the_file_and_then_the_folder_are_on_the_disk(server, size):
    file, *folders = synced(server, f"sure('durable-{size}', bytes({size}))")

    assert "uwsgi_spoolfile_on_" in file
    assert folders == [""]
    server.wait_for(lambda: f"durable-{size}" in [event["name"] for event in server.events("note")])


def test_of_a_job_of_the_future_each_folder_that_was_made_is_on_the_disk(server):
    call = "sure.using(at=timedelta(seconds=1))('delayed')"
    file, *folders = synced(server, call)

    assert file.startswith("/later/")
    assert {"", "/later", file.rpartition("/")[0]} == set(folders)
    server.wait_for(lambda: "delayed" in [event["name"] for event in server.events("note")])


def test_of_a_job_with_a_priority_its_folder_is_on_the_disk(server):
    first = synced(server, "sure.using(priority=3)('ranked')")

    assert {"", "/3"} < set(first)
    server.wait_for(lambda: "ranked" in [event["name"] for event in server.events("note")])


def test_all_calls_of_a_map_are_on_the_disk(server):
    assert len(synced(server, "sure.map(['map-1', 'map-2'])")) == 2


def test_one_call_may_be_durable(server):
    assert len(synced(server, "note.using(durable=True)('one')")) == 2


def test_others_do_not_wait_for_the_disk(server):
    assert not synced(server, "note('plain')")
    assert not synced(server, "note('large', bytes(200_000))")


def test_its_next_attempt_is_durable_too(server):
    server.call("flaky()")
    server.wait_for_events("flaky", 2)

    by_the_spooler = [event for event in server.events("synced") if event["where"] == "spooler"]
    assert any("/later/" in event["path"] for event in by_the_spooler)


@pytest.mark.parametrize("executor", ["mule"])
def test_an_executor_that_keeps_nothing_refuses_it_with_the_remedy(server, executor):
    with pytest.raises(CallError, match="use the spooler") as caught:
        server.call(f"task(executor='{executor}', durable=True)(note.func)")

    assert caught.value.name == "InvalidTask"
