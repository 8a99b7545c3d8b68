"""What the user may set."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from uwsgi_tasks import settings as module
from uwsgi_tasks.errors import ConfigurationError
from uwsgi_tasks.settings import Settings, django_setup, from_django, from_environment, read


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
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_name(given):
    (name,) = given
    with pytest.raises(ConfigurationError, match=f"{name} must"):
        Settings(**given)


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
    ],
)
def test_a_word_in_the_environment_becomes_the_value_that_it_means(name, text, value):
    found = from_environment({"HOME": "/root", f"UWSGI_TASKS_{name}": text})
    assert found == {name.lower(): value}


@pytest.mark.parametrize(
    ("name", "text"), [("RENICE", "maybe"), ("ACCEPT_LEGACY", ""), ("CRASH_LIMIT", "many")]
)
def test_a_word_that_cannot_be_is_refused_by_the_name_of_its_variable(name, text):
    with pytest.raises(ConfigurationError, match=f"UWSGI_TASKS_{name} must be"):
        from_environment({f"UWSGI_TASKS_{name}": text})


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
