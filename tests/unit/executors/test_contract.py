"""How an executor is found, and what all of them refuse."""

import pytest

from tests.fakes import FakeUwsgi
from uwsgi_tasks import ConfigurationError, InvalidTask
from uwsgi_tasks.executors import Executor, load
from uwsgi_tasks.executors.mule import MuleExecutor
from uwsgi_tasks.executors.runtime import RuntimeExecutor
from uwsgi_tasks.executors.spooler import SpoolerExecutor
from uwsgi_tasks.server import Server
from uwsgi_tasks.settings import Settings
from uwsgi_tasks.task import options


class Pigeon(Executor):
    """An executor of a third party."""

    name = "pigeon"

    def __init__(self):
        super().__init__(Server(None), Settings)
        self.sent = []

    def ready(self):
        return True

    def submit(self, jobs):
        self.sent.append(jobs)
        return ()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("runtime", RuntimeExecutor),
        ("mule", MuleExecutor),
        ("spooler", SpoolerExecutor),
        (f"{__name__}:Pigeon", Pigeon),
    ],
)
def test_an_executor_is_found_by_its_name(name, kind):
    assert load(name) is kind


@pytest.mark.parametrize("name", ["kafka", "uwsgi_tasks.app:Missing", "no.such.module:X"])
def test_a_name_that_nobody_has_is_refused_with_the_choices(name):
    choices = "use one of mule, redis, runtime, spooler, thread, auto"
    with pytest.raises(ConfigurationError, match=choices):
        load(name)


@pytest.mark.parametrize("name", ["uwsgi_tasks.app:App", "uwsgi_tasks.model:new_id"])
def test_what_is_no_executor_is_refused(name):
    with pytest.raises(ConfigurationError, match="is not an Executor"):
        load(name)


@pytest.mark.parametrize("given", [{"at": 5}, {"priority": 5}])
def test_an_executor_refuses_what_it_does_not_support(given):
    (name,) = given
    with pytest.raises(InvalidTask, match=f"{name}=: pigeon .* use the spooler"):
        Pigeon().check(options(given))


def test_an_executor_takes_what_it_supports():
    assert Pigeon().check(options({"retry_count": 3})) is None


def test_nothing_is_missing_unless_an_executor_says_so():
    assert Pigeon().missing() is None


def test_what_follows_is_submitted_like_the_rest():
    pigeon = Pigeon()
    pigeon.follow("a job")
    assert pigeon.sent == [("a job",)]


@pytest.mark.parametrize(
    ("kind", "setup", "missing"),
    [
        (MuleExecutor, {}, "add 'mules = 2'"),
        (SpoolerExecutor, {}, "add 'spooler = DIRECTORY'"),
    ],
)
def test_what_the_server_lacks_is_said_with_the_remedy(kind, setup, missing):
    assert missing in kind(Server(FakeUwsgi(**setup)), Settings).missing()


@pytest.mark.parametrize("kind", [MuleExecutor, SpoolerExecutor, RuntimeExecutor])
@pytest.mark.parametrize("uwsgi", [None, FakeUwsgi(mules=1, spoolers=("/a",))])
def test_nothing_is_missing_where_there_is_no_server_or_a_full_one(kind, uwsgi):
    assert kind(Server(uwsgi), Settings).missing() is None
