"""What was not signed by who knows the secret is not even unpickled."""

import pytest

from tests.uwsgi.serving import read_spool_file, run_outside, write_spool_file
from uwsgi_tasks import ResultNotKept, codec
from uwsgi_tasks.signing import SIZE, Signer

SOURCE = """
    from datetime import timedelta
    from pathlib import Path
    from uwsgi_tasks import configure, task

    class Tells:
        def __reduce__(self):
            return record, ("unpickled",)

    @task(executor="spooler", result_ttl=600)
    def note(*args):
        record("note", args=args)
        return 42

    @task(executor="spooler")
    def plain(*args):
        record("plain")

    @task(executor="mule", result_ttl=600)
    def note_in_a_mule(*args):
        record("note", args=args)
        return 42
"""
_HEAD = 16
"""Bytes before the digest: magic, kind, length and checksum."""
FIRST, SECOND = "the first secret", "the second secret"


@pytest.fixture
def server(serve):
    return serve(SOURCE, mules=1, env={"UWSGI_TASKS_SECRET": FIRST})


def forged(server, secret):
    """Return a call of a task with an object that tells, as somebody else would have written it."""
    variables = {} if secret is None else {"UWSGI_TASKS_SECRET": secret}
    done = run_outside(
        server.folder,
        """
        import app
        job = app.plain.using(at=app.timedelta(hours=1))(app.Tells())
        """,
        env={"UWSGI_TASKS_SPOOLER_DIR": str(server.spool), **variables},
    )
    assert done.returncode == 0, done.stderr
    (path,) = server.wait_for(server.delayed)
    _keys, body = read_spool_file(path)
    path.unlink()
    return body


def test_a_signed_job_runs_and_its_result_is_signed(server):
    for task in ("note", "note_in_a_mule"):
        id_ = server.call(f"{task}(1, 2).id")

        assert server.app(secret=FIRST).job(id_).result(30) == 42
        with pytest.raises(ResultNotKept, match="another secret"):
            server.app(secret=SECOND).job(id_).result(30)


def test_what_is_signed_with_the_right_secret_is_unpickled(server):
    write_spool_file(server.spool, {}, forged(server, FIRST))

    server.wait_for_events("plain")
    assert server.events("unpickled")


@pytest.mark.parametrize(
    ("secret", "reason"), [(SECOND, "signed with another secret"), (None, "not signed")]
)
def test_what_is_signed_by_others_is_kept_and_never_unpickled(server, secret, reason):
    body = forged(server, secret)
    write_spool_file(server.spool, {}, body)
    server.call("note()")

    (letter,) = server.wait_for(server.dead)
    assert reason in letter.error
    assert letter.task == "app.plain"
    assert letter.payload == body
    server.wait_for_events("note")
    server.wait_for(lambda: not server.waiting())
    # Nor by who looks at it.
    app = server.app(secret=FIRST)
    assert "record" in repr(app.dead.job(app.dead.list()[0]).args)
    assert not server.events("unpickled")
    assert not server.events("plain")


def test_a_message_to_a_mule_that_is_signed_by_others_is_kept_and_never_unpickled(server):
    body = forged(server, SECOND)
    server.call(f"__import__('uwsgi').mule_msg({body!r})")

    (letter,) = server.wait_for(server.dead)
    assert "signed with another secret" in letter.error
    assert letter.executor == "mule"
    assert not server.events("unpickled")


def test_a_bit_that_was_turned_is_found_though_its_checksum_was_made_anew(server):
    body = forged(server, FIRST)
    (job,) = codec.peek(body)
    altered = codec.encode((job._replace(args=("altered",)),), Signer([SECOND]))
    # With the digest of the original.
    altered = altered[:_HEAD] + body[_HEAD : _HEAD + SIZE] + altered[_HEAD + SIZE :]
    write_spool_file(server.spool, {}, altered)

    server.wait_for(server.dead)
    assert not server.events("plain")


def test_a_secret_is_changed_over_a_reload_and_nothing_that_waits_is_lost(serve):
    source = SOURCE + "\n    configure(secret=Path('secrets').read_text().splitlines())\n"
    server = serve(source, mules=1, files={"secrets": FIRST})
    server.call("note.using(at=timedelta(seconds=3))('old')")
    (server.folder / "secrets").write_text(f"{SECOND}\n{FIRST}")
    server.reload()
    server.call("note('new')")

    server.wait_for_events("note", 2)
    # A job that a reload interrupts runs again, and its secret would be gone.
    server.wait_for(lambda: not server.waiting())
    (server.folder / "secrets").write_text(SECOND)
    server.reload()
    id_ = server.call("note('newest').id")
    assert server.app(secret=SECOND).job(id_).result(30) == 42
    assert sorted(event["args"] for event in server.events("note")) == [
        ["new"],
        ["newest"],
        ["old"],
    ]
    assert not server.dead()


def test_what_was_signed_before_the_secret_was_dropped_is_kept_with_the_remedy(serve):
    source = SOURCE + "\n    configure(secret=Path('secrets').read_text().splitlines())\n"
    server = serve(source, mules=1, files={"secrets": FIRST})
    server.call("note.using(at=timedelta(seconds=8))('old')")
    (server.folder / "secrets").write_text(SECOND)
    server.reload()

    (letter,) = server.wait_for(server.dead)
    assert "add that one to the list in 'secret'" in letter.error
    assert not server.events("note")
    # Once it is there, the job is requeued.
    (server.folder / "secrets").write_text(f"{SECOND}\n{FIRST}")
    server.reload()
    server.app(secret=[SECOND, FIRST]).dead.requeue(letter.id)
    server.wait_for_events("note")


def test_a_spooler_that_knows_no_secret_runs_what_is_signed(serve):
    # As where only the workers load Django, whose SECRET_KEY signs.
    server = serve(
        """
        import os, uwsgi
        os.environ["DJANGO_SETTINGS_MODULE"] = "site_settings"
        import jobs
        from uwsgi_tasks import default_app
        """,
        lazy=True,
        options=["--spooler-import", "jobs"],
        files={
            "site_settings.py": f"SECRET_KEY = {FIRST!r}\n",
            "jobs.py": """
            from stage import record
            from uwsgi_tasks import default_app, task

            @task(executor="spooler", result_ttl=600)
            def note():
                record("note", knows=default_app.settings.signer is not None)
                return 42
            """,
        },
    )
    assert server.call("default_app.settings.signer is not None")
    server.call("handle = jobs.note()")

    assert not server.wait_for_events("note")[0]["knows"]
    assert not server.dead()


def test_no_secret_is_ever_shown(server):
    server.call("note()")
    server.wait_for_events("note")
    write_spool_file(server.spool, {}, forged(server, SECOND))
    server.wait_for(server.dead)

    assert FIRST not in server.log
    assert FIRST not in repr(server.app(secret=FIRST).settings)
