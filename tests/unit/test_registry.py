"""The tasks that are declared, by name."""

import gc
import importlib
import sys

import pytest

from uwsgi_tasks.errors import InvalidTask, TaskNotFound
from uwsgi_tasks.registry import Registry
from uwsgi_tasks.task import Task, options


class Anywhere:
    def check(self, task):
        pass


def send():
    pass


def sell():
    pass


def make():
    def local():
        pass

    return local


@pytest.fixture
def registry():
    return Registry()


def declared(registry, func=send, **given):
    task = Task(func, options(given), Anywhere())
    registry.declare(task)
    return task


# --- at the top of a module


def test_a_task_is_found_by_its_name(registry):
    task = declared(registry)
    assert (task.name, registry.find(f"{__name__}.send")) == (f"{__name__}.send", task)


def test_a_task_is_found_by_the_name_that_it_was_given_and_by_its_place(registry):
    task = declared(registry, name="shop.send")
    assert registry.find("shop.send") is registry.find(f"{__name__}.send") is task


def test_a_second_task_of_one_name_is_refused_with_the_remedy(registry):
    first = declared(registry, name="shop.send")
    with pytest.raises(InvalidTask, match=r"two tasks are called shop\.send: .* name="):
        declared(registry, sell, name="shop.send")
    assert registry.find("shop.send") is first


def test_the_same_lines_read_again_are_one_task_and_the_last_counts(registry):
    declared(registry)
    assert registry.find(declared(registry).name).func is send


# --- local ones


@pytest.mark.parametrize("kind", [make, lambda: lambda: 0], ids=["def", "lambda"])
def test_each_local_function_has_a_name_of_its_own(registry, kind):
    first, second = declared(registry, kind()), declared(registry, kind())
    assert (first.name[-2:], second.name[-2:]) == ("#1", "#2")
    assert first.name[:-2] == second.name[:-2]
    assert "<" in first.name
    assert (registry.find(first.name), registry.find(second.name)) == (first, second)


def test_a_local_function_is_kept_for_as_long_as_somebody_has_it(registry):
    task = declared(registry, make())
    name = task.name
    del task
    gc.collect()
    assert (registry.find(name), dict(registry), len(registry._local)) == (None, {}, 0)


def test_a_local_function_with_a_name_is_kept(registry):
    declared(registry, make(), name="shop.send")
    gc.collect()
    assert registry.find("shop.send").name == "shop.send"


def test_a_second_local_function_of_one_name_is_refused(registry):
    # They stand in the same lines, but each encloses values of its own.
    first = declared(registry, make(), name="shop.send")
    with pytest.raises(InvalidTask, match=r"two tasks are called shop\.send"):
        declared(registry, make(), name="shop.send")
    assert registry.find("shop.send") is first


# --- modules that are imported for their tasks


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module that is imported for the first time by the test."""
    monkeypatch.syspath_prepend(tmp_path)
    written = []

    def write(name, source):
        file = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
        written.append(name.partition(".")[0])
        importlib.invalidate_caches()

    yield write
    for name in [name for name in sys.modules if name.partition(".")[0] in written]:
        del sys.modules[name]


def test_a_module_is_imported_for_its_task(registry, module, monkeypatch):
    monkeypatch.setitem(sys.modules, "declaring", declared)
    source = "import sys\ndef send(): pass\nsys.modules['declaring'](*sys.registry, send)\n"
    monkeypatch.setattr(sys, "registry", [registry], raising=False)
    module("registered.tasks", source)
    assert registry.find("registered.tasks.send").name == "registered.tasks.send"


@pytest.mark.parametrize("name", ["send", "no_such_module.send", "os.path.join", "os.no.such"])
def test_a_name_that_no_module_declares_is_not_found(registry, name):
    assert registry.find(name) is None


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_thing", "No module named 'no_such_thing'"),
        ("1 / 0", "ZeroDivisionError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_module_that_fails_is_named_with_its_error(registry, module, source, reason):
    module("unregistered", source)
    with pytest.raises(TaskNotFound, match=f"importing unregistered failed: .*{reason}"):
        registry.find("unregistered.send")
