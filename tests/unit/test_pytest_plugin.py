"""The fixtures, as another project has them: in a pytest of its own."""

import sys

import pytest

from tests.test_docs import ROOT, module_of

pytest_plugins = "pytester"

TASKS = """
from uwsgi_tasks import App, task

@task
def send(user_id, *, polite=True):
    return f"sent {user_id}"

@task
def broken():
    raise OSError("no such mail server")

app = App()

@app.task
def elsewhere():
    pass
"""


@pytest.fixture
def project(pytester):
    """The project of a user: its tasks, and a way to run tests in it."""
    pytester.makepyfile(shop=TASKS)

    def run(text, *arguments):
        pytester.makepyfile(test_shop=text)
        # In a process of its own: what is to be loaded there is loaded here.
        return pytester.runpytest_subprocess("--strict-markers", "-p", "no:randomly", *arguments)

    return run


def test_the_fixtures_are_there(project):
    result = project("""
        from shop import broken, send
        import pytest

        def test_captured(captured_tasks):
            send(42)
            captured_tasks.assert_submitted_once(send, 42)

        def test_eager(eager_tasks):
            assert send(42).result() == "sent 42"

        def test_queued(queued_tasks):
            send(42)
            assert [attempt.value for attempt in queued_tasks.run()] == ["sent 42"]
    """)
    result.assert_outcomes(passed=3)


def test_nothing_is_diverted_after_a_test_that_failed(project):
    result = project(
        """
        from shop import send

        def test_one(captured_tasks):
            send(42)
            raise OSError

        def test_two():
            assert send(42).result() == "sent 42"
        """,
        "-p",
        "no:warnings",
    )
    result.assert_outcomes(passed=1, failed=1)


def test_another_app_is_named_by_a_mark(project):
    result = project("""
        import pytest
        from shop import app, elsewhere, send

        @pytest.mark.uwsgi_tasks_app(app)
        def test_it(captured_tasks):
            elsewhere()
            captured_tasks.assert_submitted(elsewhere)
            with pytest.warns(RuntimeWarning):
                send(42)
            captured_tasks.assert_not_submitted(send)
    """)
    result.assert_outcomes(passed=1)


def test_another_app_is_named_by_a_fixture(project):
    result = project("""
        import pytest
        from shop import app, elsewhere

        @pytest.fixture
        def uwsgi_tasks_app():
            return app

        def test_it(captured_tasks):
            elsewhere()
            captured_tasks.assert_submitted(elsewhere)
    """)
    result.assert_outcomes(passed=1)


def test_a_failed_assertion_shows_the_test_and_not_our_lines(project):
    result = project("""
        from shop import send

        def test_it(captured_tasks):
            send(41)
            captured_tasks.assert_submitted(send, 42)
    """)
    result.stdout.fnmatch_lines_random(
        [
            ">       captured_tasks.assert_submitted(send, 42)",
            "E       AssertionError: shop.send(42) was not submitted.",
            "E       Submitted:",
            "E         shop.send(41)",
        ]
    )
    result.stdout.no_fnmatch_line("*submitted.py*")


def test_a_failed_job_shows_the_test_and_the_task_and_not_our_lines(project):
    result = project("""
        from shop import broken

        def test_it(queued_tasks):
            broken()
            queued_tasks.run()
    """)
    result.stdout.fnmatch_lines_random(
        [
            ">       queued_tasks.run()",
            '>       raise OSError("no such mail server")',
            "E       OSError: no such mail server",
        ]
    )
    result.stdout.no_fnmatch_line("*queued.py*")


def test_a_comparison_that_fails_shows_both_sides(project):
    result = project("""
        from unittest.mock import call
        from shop import send

        def test_it(captured_tasks):
            send(41)
            assert captured_tasks.calls(send) == [call(42)]
    """)
    result.stdout.fnmatch_lines_random(["E * assert [[]call(41)] == [[]call(42)]*"])


def test_what_is_left_is_an_error_in_a_strict_project(project, pytester):
    pytester.makeini("[pytest]\nuwsgi_tasks_strict = true")
    result = project("""
        from shop import send

        def test_it(queued_tasks):
            send(42)

        def test_that_is_not_strict(queued_tasks):
            queued_tasks.strict = False
            send(42)
    """)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines_random(["E * AssertionError: Not run:", "E *   shop.send(42)"])


def test_a_project_that_uses_none_of_it_does_not_import_us(project):
    result = project("""
        import sys

        def test_it():
            assert "pytest_uwsgi_tasks" in sys.modules
            assert not {"uwsgi_tasks", "django", "sqlalchemy"} & set(sys.modules)
    """)
    result.assert_outcomes(passed=1)


def test_the_tests_import_no_pytest(pytester):
    pytester.makepyfile(shop=TASKS)
    code = (
        "import sys, shop; from uwsgi_tasks.testing import capture_tasks\n"
        "with capture_tasks() as captured: shop.send(42)\n"
        "captured.assert_submitted(shop.send, 42)\n"
        "assert not {'pytest', 'django', 'sqlalchemy'} & set(sys.modules)"
    )
    assert pytester.run(sys.executable, "-c", code).ret == 0


def test_the_tests_on_the_page_pass(pytester):
    pytester.makepyfile(test_page=module_of(ROOT / "docs" / "testing.md"))
    result = pytester.runpytest_subprocess("--strict-markers", "-W", "error")
    outcomes = result.parseoutcomes()
    assert set(outcomes) == {"passed"}
    assert outcomes["passed"] >= 8
