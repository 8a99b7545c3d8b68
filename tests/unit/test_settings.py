"""What the user may set."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from uwsgi_tasks import settings as module
from uwsgi_tasks.errors import ConfigurationError
from uwsgi_tasks.settings import (
    Settings,
    django_secret,
    django_setup,
    django_store,
    from_django,
    from_environment,
    parse_queues,
    read,
)
from uwsgi_tasks.signing import Signer

NEW, OLD = "the new secret", "the old secret"


def nothing():
    return {}


def test_without_a_word_the_defaults_hold():
    assert read({}, environ={}, django=nothing) == Settings()


def test_configure_comes_before_the_environment_and_that_before_django():
    found = read(
        {"crash_limit": 5},
        environ={"UWSGI_TASKS_CRASH_LIMIT": "6", "UWSGI_TASKS_DEAD_DIR": "/env"},
        django=lambda: {"crash_limit": 7, "dead_dir": "/django", "renice": False},
    )
    assert found == Settings(crash_limit=5, dead_dir="/env", renice=False)


@pytest.mark.parametrize(
    ("source", "given"),
    [
        ("configure", ({"spooler_directory": "/s"}, {}, nothing)),
        ("environment", ({}, {"UWSGI_TASKS_SPOOLER_DIRECTORY": "/s"}, nothing)),
        ("UWSGI_TASKS", ({}, {}, lambda: {"spooler_directory": "/s"})),
    ],
)
def test_a_setting_that_does_not_exist_is_refused_with_its_source_and_the_choices(source, given):
    with pytest.raises(ConfigurationError, match=f"{source}.*'spooler_directory'.*spooler_dir"):
        read(*given)


@pytest.mark.parametrize(
    "given",
    [
        {"crash_limit": 0},
        {"crash_limit": "3"},
        {"crash_limit": True},
        {"crash_limit": None},
        {"spooler_frequency": 0},
        {"spooler_frequency": 0.5},
        {"renice": "yes"},
        {"accept_legacy": 1},
        {"spooler_dir": "spool"},
        {"spooler_dir": 5},
        {"dead_dir": "dead"},
        {"stats": "yes"},
        {"store": ""},
        {"store": 5},
        {"redis": ""},
        {"redis": 5},
        {"redis_retry": -1},
        {"redis_retry": "60"},
        {"redis_retry": float("inf")},
        {"unknown_task_grace": -1},
        {"unknown_task_grace": None},
        {"unknown_task_grace": True},
        {"result_ttl": -1},
        {"result_ttl": "60"},
        {"result_ttl": True},
        {"result_ttl": None},
        {"result_ttl": float("inf")},
        {"result_ttl": float("nan")},
        {"secret": ""},
        {"secret": "short"},
        {"secret": []},
        {"secret": ["long enough", "short"]},
        {"secret": ["long enough", 12345678]},
        {"secret": b"bytes are no text"},
        {"secret": {"long enough"}},
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_name(given):
    (name,) = given
    with pytest.raises(ConfigurationError, match=f"{name} must"):
        Settings(**given)


@pytest.mark.parametrize("namespace", ["Shop", "shop-1", "x" * 31, None, 5, "schöp"])
def test_a_namespace_that_cannot_be_part_of_a_name_is_refused(namespace):
    with pytest.raises(ConfigurationError, match="namespace takes up to 30 of a-z, 0-9 and _"):
        Settings(namespace=namespace)


@pytest.mark.parametrize("namespace", ["", "shop_1", "x" * 30])
def test_a_namespace_may_be_empty_or_a_name(namespace):
    assert Settings(namespace=namespace).namespace == namespace


@pytest.mark.parametrize("ttl", [0, 0.5, 86_400])
def test_results_are_kept_for_a_number_of_seconds(ttl):
    assert Settings(result_ttl=ttl).result_ttl == ttl


def test_without_a_secret_nobody_signs():
    assert Settings().signer is None


@pytest.mark.parametrize("secret", [NEW, [NEW], (NEW, OLD), [NEW, OLD]])
def test_the_first_secret_signs(secret):
    assert Settings(secret=secret).signer.fingerprint == Signer([NEW]).fingerprint


def test_all_secrets_are_accepted():
    signer = Settings(secret=[NEW, OLD]).signer
    assert signer.verifies(b"x", Signer([OLD]).sign(b"x"))


def test_a_secret_is_not_shown():
    assert NEW not in repr(Settings(secret=NEW))


def test_a_secret_that_is_refused_is_not_shown():
    with pytest.raises(ConfigurationError) as raised:
        Settings(secret=["shorty"])
    assert "shorty" not in str(raised.value)


def test_the_frequency_of_uwsgi_may_be_left_alone():
    assert Settings(spooler_frequency=None).spooler_frequency is None


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("EXECUTOR", "mule", "mule"),
        ("SPOOLER_DIR", "/var/spool/shop", "/var/spool/shop"),
        ("CRASH_LIMIT", "7", 7),
        ("SPOOLER_FREQUENCY", "30", 30),
        ("SPOOLER_FREQUENCY", "none", None),
        ("SPOOLER_FREQUENCY", "", None),
        ("RENICE", "off", False),
        ("RENICE", "1", True),
        ("ACCEPT_LEGACY", "False", False),
        ("ACCEPT_LEGACY", "YES", True),
        ("STATS", "no", False),
        ("STORE", "sqlite:////srv/tasks.sqlite3", "sqlite:////srv/tasks.sqlite3"),
        ("REDIS", "unix:///run/redis?db=1", "unix:///run/redis?db=1"),
        ("REDIS_RETRY", "2.5", 2.5),
        ("QUEUES", "high=3,default=1", "high=3,default=1"),
        ("UNKNOWN_TASK_GRACE", "60", 60.0),
        ("NAMESPACE", "shop", "shop"),
        ("RESULT_TTL", "0.5", 0.5),
        ("FALLBACK", "thread", "thread"),
        ("THREADS", "8", 8),
        ("THREAD_GRACE", "2.5", 2.5),
        ("SECRET", "the new secret", "the new secret"),
        ("SECRET", '["the new secret", "the old secret"]', ["the new secret", "the old secret"]),
    ],
)
def test_a_word_in_the_environment_becomes_the_value_that_it_means(name, text, value):
    found = from_environment({"HOME": "/root", f"UWSGI_TASKS_{name}": text})
    assert found == {name.lower(): value}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("RENICE", "maybe"),
        ("ACCEPT_LEGACY", ""),
        ("CRASH_LIMIT", "many"),
        ("RESULT_TTL", "an hour"),
        ("REDIS_RETRY", "twice"),
        ("UNKNOWN_TASK_GRACE", "a while"),
        ("THREADS", "many"),
        ("THREAD_GRACE", "a minute"),
    ],
)
def test_a_word_that_cannot_be_is_refused_by_the_name_of_its_variable(name, text):
    with pytest.raises(ConfigurationError, match=f"UWSGI_TASKS_{name} must be"):
        from_environment({f"UWSGI_TASKS_{name}": text})


def test_a_list_of_secrets_that_is_none_is_refused_without_showing_it():
    with pytest.raises(ConfigurationError, match="UWSGI_TASKS_SECRET is no list in JSON") as raised:
        from_environment({"UWSGI_TASKS_SECRET": "[the new secret]"})
    assert "new" not in str(raised.value)


# --- Django


@pytest.fixture
def django(monkeypatch):
    """A Django whose settings the test sets."""
    conf = ModuleType("django.conf")
    conf.ENVIRONMENT_VARIABLE = "DJANGO_SETTINGS_MODULE"
    conf.settings = SimpleNamespace(configured=True)
    root = ModuleType("django")
    root.conf = conf
    root.setups = []
    root.setup = lambda: root.setups.append(1)
    apps = ModuleType("django.apps")
    apps.apps = SimpleNamespace(ready=False)
    for part in (root, conf, apps):
        monkeypatch.setitem(sys.modules, part.__name__, part)
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE", raising=False)
    root.settings, root.apps = conf.settings, apps.apps
    return root


def test_the_settings_of_django_are_read(django):
    django.settings.UWSGI_TASKS = {"crash_limit": 9}
    assert read({}, environ={}).crash_limit == 9


def test_a_django_without_our_settings_sets_nothing(django):
    assert from_django() == {}


def test_a_django_that_nobody_has_configured_is_left_alone(django):
    django.settings.configured = False
    django.settings.UWSGI_TASKS = {"crash_limit": 9}
    assert from_django() == {}


def test_a_django_that_the_environment_configures_is_read(django, monkeypatch):
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "mysite.settings")
    django.settings.configured = False
    django.settings.UWSGI_TASKS = {"crash_limit": 9}
    assert from_django() == {"crash_limit": 9}


def test_a_process_without_django_does_not_import_it(monkeypatch):
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE", raising=False)
    monkeypatch.setattr(module.sys, "modules", {})
    assert from_django() == {}


def test_the_name_of_a_django_that_is_not_installed_is_no_fault(monkeypatch):
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "mysite.settings")
    monkeypatch.setitem(sys.modules, "django.conf", None)
    assert from_django() == {}


def test_settings_of_django_that_are_no_dictionary_are_refused(django):
    django.settings.UWSGI_TASKS = ["crash_limit"]
    with pytest.raises(ConfigurationError, match="UWSGI_TASKS must be a dictionary"):
        from_django()


def test_django_is_set_up_also_where_a_setting_has_been_read_already(django):
    django_setup()
    assert django.setups == [1]


def test_django_is_not_set_up_twice(django):
    django.apps.ready = True
    django_setup()
    assert django.setups == []


def test_django_is_set_up_with_the_settings_that_are_named(django, monkeypatch):
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "other.settings")
    django_setup("mysite.settings")
    assert module.os.environ["DJANGO_SETTINGS_MODULE"] == "mysite.settings"


def test_the_secret_of_django_signs(django):
    django.settings.SECRET_KEY = NEW
    django.settings.SECRET_KEY_FALLBACKS = [OLD]
    assert read({}, environ={}).secret == [NEW, OLD]


@pytest.mark.parametrize(
    ("overrides", "environ"), [({"secret": OLD}, {}), ({}, {"UWSGI_TASKS_SECRET": OLD})]
)
def test_a_secret_of_ours_comes_before_that_of_django(django, overrides, environ):
    django.settings.SECRET_KEY = NEW
    assert read(overrides, environ=environ).secret == OLD


@pytest.mark.parametrize("key", [None, "", "short"])
def test_a_django_without_a_secret_has_none(django, key):
    if key is not None:
        django.settings.SECRET_KEY = key
    assert django_secret() is None


def test_a_django_that_refuses_to_tell_its_secret_has_none(django):
    class Refusing:
        configured = True

        @property
        def SECRET_KEY(self):  # noqa: N802  Django's
            raise RuntimeError("The SECRET_KEY setting must not be empty.")

    django.conf.settings = Refusing()
    assert django_secret() is None


def test_without_django_there_is_no_secret_of_it(monkeypatch):
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE", raising=False)
    monkeypatch.setattr(module.sys, "modules", {})
    assert django_secret() is None


POSTGRES, MYSQL = "django.db.backends.postgresql", "django.db.backends.mysql"


@pytest.mark.parametrize(
    ("database", "url"),
    [
        (
            {"ENGINE": "django.db.backends.sqlite3", "NAME": "/srv/db.sqlite3"},
            "sqlite:////srv/db.sqlite3",
        ),
        (
            {"ENGINE": POSTGRES, "NAME": "shop", "USER": "u", "PASSWORD": "p", "HOST": "h"},
            "postgresql://u:p@h/shop",
        ),
        (
            {"ENGINE": POSTGRES, "NAME": "shop", "USER": "u", "HOST": "h", "PORT": 5433},
            "postgresql://u@h:5433/shop",
        ),
        ({"ENGINE": POSTGRES, "NAME": "shop"}, "postgresql:///shop"),
        (
            {"ENGINE": POSTGRES, "NAME": "s p", "USER": "a@b", "PASSWORD": "p/:?", "HOST": "h"},
            "postgresql://a%40b:p%2F%3A%3F@h/s%20p",
        ),
        (
            {"ENGINE": POSTGRES, "NAME": "shop", "HOST": "/run/pg", "PORT": "5433"},
            "postgresql:///shop?host=/run/pg&port=5433",
        ),
        (
            {"ENGINE": "django.contrib.gis.db.backends.postgis", "NAME": "shop", "HOST": "h"},
            "postgresql://h/shop",
        ),
        ({"ENGINE": MYSQL, "NAME": "shop", "USER": "u"}, "mysql://u@localhost/shop"),
        (
            {"ENGINE": MYSQL, "NAME": "shop", "USER": "u", "HOST": "/run/my.sock"},
            "mysql://u@/shop?unix_socket=/run/my.sock",
        ),
    ],
)
def test_the_default_database_of_django_has_a_url(django, database, url):
    django.settings.DATABASES = {"default": database}
    assert django_store() == url
    assert read({"store": "django"}, environ={}).store == url


@pytest.mark.parametrize(
    ("databases", "shown"),
    [
        ({}, "not there"),
        (None, "not there"),
        ({"default": {}}, "not there"),
        ({"default": {"ENGINE": "django.db.backends.oracle"}}, "django.db.backends.oracle"),
    ],
)
def test_a_database_that_cannot_be_a_store_is_refused_with_the_remedy(django, databases, shown):
    django.settings.DATABASES = databases
    with pytest.raises(ConfigurationError, match=f"{shown}.*: name a URL instead"):
        django_store()


def test_without_django_its_database_cannot_be_the_store(monkeypatch):
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE", raising=False)
    monkeypatch.setattr(module.sys, "modules", {})
    with pytest.raises(ConfigurationError, match="the default of DATABASES is not there"):
        read({"store": "django"}, environ={})


@pytest.mark.parametrize(
    ("configured", "environ", "late"),
    [(True, False, False), (False, False, True), (False, True, False)],
)
def test_a_django_that_nobody_has_told_its_settings_yet_is_late(
    django, monkeypatch, configured, environ, late
):
    django.settings.configured = configured
    if environ:
        monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "mysite.settings")
    assert module.django_is_late() is late


# --- threads


def test_the_settings_of_threads_have_defaults():
    found = Settings()
    assert (found.fallback, found.threads, found.thread_grace) == ("runtime", 4, 30)


def test_the_settings_of_threads_may_come_from_the_environment():
    environ = {
        "UWSGI_TASKS_FALLBACK": "thread",
        "UWSGI_TASKS_THREADS": "8",
        "UWSGI_TASKS_THREAD_GRACE": "0.5",
    }
    found = read({}, environ=environ, django=nothing)
    assert (found.fallback, found.threads, found.thread_grace) == ("thread", 8, 0.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fallback", "spooler"),
        ("fallback", None),
        ("threads", 0),
        ("threads", 1.5),
        ("threads", True),
        ("thread_grace", -1),
        ("thread_grace", "long"),
        ("thread_grace", float("inf")),
    ],
)
def test_a_setting_of_threads_that_cannot_be_is_refused(name, value):
    with pytest.raises(ConfigurationError, match=name):
        Settings(**{name: value})


# --- Redis


def test_the_settings_of_redis_have_defaults():
    found = Settings()
    assert (found.redis, found.redis_retry, found.queues, found.unknown_task_grace) == (
        None,
        0,
        "default",
        300,
    )


@pytest.mark.parametrize(
    ("given", "has"),
    [
        ({}, False),
        ({"redis": "redis://localhost"}, True),
        ({"executor": "redis"}, True),
        ({"store": "redis://localhost"}, False),
    ],
)
def test_it_is_known_whether_a_redis_has_jobs(given, has):
    assert Settings(**given).has_redis is has


@pytest.mark.parametrize(
    ("given", "pickles"),
    [
        ({}, True),
        ({"redis": "redis://localhost"}, False),
        ({"redis": "rediss://localhost"}, False),
        ({"redis": "unix:///run/redis"}, False),
        ({"redis": "valkey://localhost"}, False),
        ({"redis": "redis+cluster://one,two"}, False),
        ({"store": "redis://localhost"}, False),
        ({"redis": "redis://localhost", "store": "sqlite:////srv/x"}, True),
        ({"redis": "redis://localhost", "secret": NEW}, True),
        ({"store": "valkeys://localhost", "secret": NEW}, True),
    ],
)
def test_nothing_is_pickled_where_redis_keeps_it_and_nobody_signs(given, pickles):
    assert Settings(**given).pickles is pickles


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("default", [("default", None)]),
        ("high,default", [("high", None), ("default", None)]),
        (" high , default ", [("high", None), ("default", None)]),
        ("high=3,default=1", [("high", 3), ("default", 1)]),
        ("shop.mail-1", [("shop.mail-1", None)]),
        ("q" * 100, [("q" * 100, None)]),
    ],
)
def test_queues_are_named_in_their_order_or_with_weights(text, found):
    assert parse_queues(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "high,",
        "a b",
        "a:b",
        "{a}",
        "high=",
        "high=0",
        "high=-1",
        "high=1.5",
        "=3",
        "q" * 101,
        None,
        5,
    ],
)
def test_queues_that_cannot_be_are_refused(text):
    with pytest.raises(ConfigurationError, match="queues"):
        Settings(queues=text)


@pytest.mark.parametrize("text", ["high,high", "high=1,high=2", "high=3,default"])
def test_queues_are_named_once_and_all_of_them_have_a_weight_or_none(text):
    with pytest.raises(ConfigurationError, match="each one once, and either all of them have"):
        parse_queues(text)


def test_a_url_that_is_refused_is_not_shown_with_its_password():
    with pytest.raises(ConfigurationError) as raised:
        Settings(redis=["redis://shop:hunter2@cache"])
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("name", ["redis", "store"])
def test_a_url_is_not_shown_with_its_password(name):
    assert "hunter2" not in repr(Settings(**{name: "redis://shop:hunter2@cache"}))
