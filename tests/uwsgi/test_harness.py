"""The harness itself, on raw uWSGI."""

import os
import signal

import pytest

from tests.uwsgi.serving import CallError, is_alive, read_spool_file, session, write_spool_file

RAW = """
    import os, uwsgi

    def spooler(env):
        record("spooled", body=env["body"].decode())
        return uwsgi.SPOOL_OK

    def mule_msg(message):
        record("mule", body=message.decode())

    uwsgi.set_spooler_frequency(1)  # or a wake-up that comes too early costs half a minute
    uwsgi.spooler = spooler
    uwsgi.mule_msg_hook = mule_msg
"""


def test_a_call_gives_the_value_of_an_expression_and_the_traceback_of_an_error(serve):
    server = serve(RAW)

    assert server.call("1 + 1") == 2
    assert server.call("x = 5") is None
    assert server.call("x") == 5
    with pytest.raises(CallError, match="ZeroDivisionError") as caught:
        server.call("1 / 0")
    assert caught.value.name == "ZeroDivisionError"


def test_everything_works_before_and_after_a_reload_and_nothing_is_left_after_a_stop(serve):
    server = serve(RAW, mules=2, spoolers=2, workers=2)
    for count, body in enumerate(("first", "second"), 1):
        server.call(f"uwsgi.spool({{b'body': b'{body}'}})")
        server.call(f"uwsgi.mule_msg(b'{body}')")
        server.wait_for_events("spooled", count)
        server.wait_for_events("mule", count)
        # A spooler that is ended before it removes the file runs it again.
        server.wait_for(lambda: not server.waiting())
        server.reload()
    pids = [server.pid, *server.spooler_pids(), *server.mule_pids()]

    assert [event["body"] for event in server.events("spooled")] == ["first", "second"]
    assert [event["body"] for event in server.events("mule")] == ["first", "second"]
    assert len(set(pids)) == 5
    assert set(pids) < set(session(server.pid))

    assert server.stop() == 0
    assert not any(map(is_alive, pids))


def test_a_spooler_that_was_killed_is_replaced(serve):
    server = serve(RAW)
    (pid,) = server.spooler_pids()
    os.kill(pid, signal.SIGKILL)

    assert server.wait_for(lambda: server.spooler_pids() != [pid])


def test_a_spool_file_of_ours_is_one_for_uwsgi(serve, tmp_path):
    server = serve(RAW)
    outside = write_spool_file(tmp_path, {b"a": b"b"}, b"hello")

    assert read_spool_file(outside) == ({"a": b"b"}, b"hello")
    path = outside.rename(server.spool / outside.name)
    server.wait_for_events("spooled")
    server.wait_for(lambda: not path.exists())
