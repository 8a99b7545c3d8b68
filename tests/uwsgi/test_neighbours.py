"""Spool files, callbacks and messages of others, beside ours."""

import pytest

from tests.uwsgi.serving import read_variables, write_spool_file

OURS = """
    from uwsgi_tasks import task

    @task(executor="spooler")
    def ours(name):
        record("ours", name=name)
        if name == "deep":
            theirs(name="from ours")
"""
DECORATORS = """
    import uwsgidecorators

    @uwsgidecorators.spool
    def theirs(env):
        record("theirs", name=env["name"])

    @uwsgidecorators.spool(pass_arguments=True)
    def theirs_with_arguments(*args, **kwargs):
        record("theirs", name=kwargs["name"])

    @uwsgidecorators.spool
    def theirs_to_ours(env):
        ours("from theirs")

    @uwsgidecorators.mulefunc
    def theirs_in_a_mule(name):
        record("theirs in a mule", name=name)

    @uwsgidecorators.postfork
    def forked():
        record("forked")
"""
HANDWRITTEN = """
    import uwsgi

    def spooler(env):
        record("handwritten", name=env[b"name"].decode(), body=env.get("body", b"").decode())
        return uwsgi.SPOOL_OK

    def mule_msg(message):
        record("handwritten mule", message=message.decode())

    uwsgi.spooler = spooler
    uwsgi.mule_msg_hook = mule_msg
"""
MULE = """
    from uwsgi_tasks import task

    @task(executor="mule")
    def ours_in_a_mule(name):
        record("ours in a mule", name=name)
"""


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(OURS + MULE + DECORATORS, id="ours first"),
        pytest.param(DECORATORS + OURS + MULE, id="theirs first"),
        pytest.param(
            "    import uwsgi_tasks, uwsgidecorators\n" + OURS + MULE + DECORATORS,
            id="imports first",
        ),
    ],
)
def test_uwsgidecorators_live_beside_us(serve, source):
    server = serve(source, mules=1)
    server.call("ours('a'), theirs(name='b'), theirs_with_arguments(name='c')")
    server.call("ours('deep'), theirs_to_ours(name='d')")
    server.call("ours_in_a_mule('e'), theirs_in_a_mule('f')")

    server.wait_for_events("ours", 3)
    server.wait_for_events("theirs", 3)
    server.wait_for_events("ours in a mule")
    server.wait_for_events("theirs in a mule")
    server.wait_for(lambda: not server.waiting())
    assert sorted(e["name"] for e in server.events("ours")) == ["a", "deep", "from theirs"]
    assert sorted(e["name"] for e in server.events("theirs")) == ["b", "c", "from ours"]
    assert {e["where"] for e in server.events("forked")} == {"worker1", "mule1", "spooler"}
    assert not server.dead()


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(OURS + MULE + HANDWRITTEN, id="ours first"),
        pytest.param(HANDWRITTEN + OURS + MULE, id="theirs first"),
    ],
)
def test_callbacks_written_by_hand_live_beside_us(serve, source):
    server = serve(source, mules=1)
    server.call("uwsgi.spool({b'name': b'x', b'body': b'y'}), ours('a')")
    server.call("uwsgi.mule_msg(b'plain'), ours_in_a_mule('b')")

    (event,) = server.wait_for_events("handwritten")
    assert (event["name"], event["body"]) == ("x", "y")
    assert server.wait_for_events("handwritten mule")[0]["message"] == "plain"
    server.wait_for_events("ours")
    server.wait_for_events("ours in a mule")
    server.wait_for(lambda: not server.waiting())
    assert not server.dead()


def test_a_file_that_nobody_knows_is_kept_and_not_run_again_and_again(serve):
    server = serve(OURS)
    path = write_spool_file(server.spool, {b"name": b"stranger"}, b"its body")
    server.call("ours('a')")

    server.wait_for_events("ours")
    server.wait_for(lambda: not path.exists())
    (letter,) = server.dead()
    assert read_variables(letter.variables) == {"name": b"stranger"}
    assert letter.payload == b"its body"
    assert "kept in the store" in server.log


def test_a_message_that_nobody_knows_is_kept(serve):
    server = serve(OURS + MULE, mules=1)
    server.call("__import__('uwsgi').mule_msg(b'who is this for')")

    (letter,) = server.wait_for(server.dead)
    assert letter.payload == b"who is this for"
    server.call("ours_in_a_mule('still alive')")
    server.wait_for_events("ours in a mule")


def test_a_callback_of_theirs_that_fails_does_not_hold_up_ours(serve):
    server = serve(
        OURS
        + """
    import uwsgi

    def spooler(env):
        record("theirs")
        raise LookupError("theirs")

    uwsgi.spooler = spooler
    """
    )
    write_spool_file(server.spool, {b"name": b"stranger"})
    server.call("for number in range(10): ours(number)")

    server.wait_for_events("ours", 10)
    server.wait_for_events("theirs")
