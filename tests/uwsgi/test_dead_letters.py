"""What cannot be run is kept, whole and with the reason; nothing runs for ever."""

import pytest

from tests.uwsgi.serving import write_raw, write_spool_file
from uwsgi_tasks.spool_file import bury

SOURCE = """
    import os, pickle
    from datetime import timedelta
    from uwsgi_tasks import task

    class Fragile:
        def __reduce__(self):
            return explode, ()

    def explode():
        if os.environ.get("FRAGILE"):
            raise RuntimeError("broken on arrival")
        os.environ["FRAGILE"] = "1"

    @task(executor="spooler")
    def good(*args):
        record("good")

"""


@pytest.fixture
def server(serve):
    server = serve(SOURCE)
    server.call("good()")
    server.wait_for_events("good")
    server.wait_for(lambda: not server.waiting())
    return server


def call_under_name(server, name):
    """Submit a task that this worker alone has declared."""
    server.call(f"task(executor='spooler', name={name!r})(good.func)()")


def recorded(server):
    """Return the bytes of a spool file of ours."""
    server.call("good.using(at=timedelta(hours=1))()")
    (path,) = server.wait_for(server.delayed)
    content = path.read_bytes()
    path.unlink()
    return content


def the_letter(server):
    (letter,) = server.wait_for(server.dead)
    server.wait_for(lambda: not server.waiting())
    server.wait_for(lambda: "kept in the store" in server.log)
    return letter.error, letter.payload


def test_a_file_that_was_cut_is_kept(server):
    content = recorded(server)
    write_raw(server.spool, content[:-3])

    error, body = the_letter(server)
    assert "cut" in error
    assert content.endswith(body + content[-3:])
    assert len(server.events("good")) == 1


def test_a_file_in_which_a_bit_was_turned_is_kept(server):
    content = recorded(server)
    write_raw(server.spool, content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])

    error, _body = the_letter(server)
    assert "altered" in error
    assert len(server.events("good")) == 1


def test_bytes_that_only_look_like_ours_are_kept(server):
    magic = read_body_start(recorded(server))
    write_spool_file(server.spool, {}, magic + b"nonsense")

    _error, body = the_letter(server)
    assert body == magic + b"nonsense"


def read_body_start(content):
    size = int.from_bytes(content[1:3], "little")
    return content[4 + size :][:3]


def test_a_file_of_a_later_version_is_kept(server):
    content = recorded(server)
    start = len(content) - len(content[4 + int.from_bytes(content[1:3], "little") :])
    write_raw(server.spool, content[: start + 2] + b"\x7f" + content[start + 3 :])

    _error, body = the_letter(server)
    assert body == content[start : start + 2] + b"\x7f" + content[start + 3 :]


def test_an_empty_file_and_an_empty_body_harm_nobody(server):
    write_spool_file(server.spool, {}, name="empty-body")
    write_raw(server.spool, b"", name="empty")
    server.call("good()")

    server.wait_for_events("good", 2)
    server.wait_for(server.dead)


@pytest.mark.parametrize("name", ["app.gone", "no_such_module.task", "no_such_task", "app"])
def test_a_task_that_does_not_exist_is_kept_by_name(server, name):
    call_under_name(server, name)

    error, _body = the_letter(server)
    assert name in error


def test_a_task_whose_module_no_longer_imports_is_kept_with_the_reason(serve):
    server = serve(SOURCE, files={"broken.py": "raise RuntimeError('half deployed')"})
    call_under_name(server, "broken.task")

    error, _body = the_letter(server)
    assert "half deployed" in error


def test_an_argument_that_does_not_unpickle_is_kept(server):
    server.call("good(Fragile())")
    server.call("good(Fragile())")

    error, _body = the_letter(server)
    assert "broken on arrival" in error


def test_a_dead_letter_in_a_file_that_is_moved_back_runs_again(server):
    call_under_name(server, "app.later")
    (letter,) = server.wait_for(server.dead)
    server.wait_for(lambda: not server.waiting())
    server.stop()
    # As it is written while the store is away.
    file = bury(server.spool / "dead", {"task": letter.task, "error": letter.error}, letter.payload)
    assert server.store.exhume(letter.id)
    app = server.folder / "app.py"
    app.write_text(app.read_text() + "\ntask(executor='spooler', name='app.later')(good.func)\n")
    file.rename(server.spool / file.name)
    server.start()

    server.wait_for_events("good", 2)
    server.wait_for(lambda: not server.waiting())
    assert not server.dead()


def test_a_dead_letter_that_is_requeued_runs_again(server):
    call_under_name(server, "app.later")
    (letter,) = server.wait_for(server.dead)
    server.wait_for(lambda: not server.waiting())
    server.stop()
    app = server.folder / "app.py"
    app.write_text(app.read_text() + "\ntask(executor='spooler', name='app.later')(good.func)\n")
    server.app().dead.requeue(letter.id)
    server.start()

    server.wait_for_events("good", 2)
    server.wait_for(lambda: not server.waiting())
    assert not server.dead()
