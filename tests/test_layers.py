"""The layers of the package: who may import whom."""

import ast
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "uwsgi_tasks"

# "executors.*" is every backend in that folder; its "executors" is the folder's __init__.
# What begins with an underscore is no backend, but shared by some of them.
LAYERS = {
    "errors": 0,
    "ending": 0,
    "model": 0,
    "times": 1,
    "ini": 1,
    "log_lines": 1,
    "signing": 1,
    "spool_file": 1,
    "standins": 1,
    "interrupts": 1,
    "wire": 1,
    "retry": 2,
    "codec": 2,
    "handle": 2,
    "settings": 2,
    "server": 2,
    "spool": 2,
    "marks": 2,
    "stores._databases": 1,
    "stores._tables": 1,
    "stores._statements": 2,
    "stores": 2,
    "stores.redis": 4,
    "stores.*": 3,
    "probe": 3,
    "loop": 2,
    "limits": 3,
    "waiting": 3,
    "meter": 3,
    "task": 3,
    "current": 3,
    "crashes": 3,
    "heap": 4,
    "ledger": 4,
    "dead_letters": 4,
    "executors": 4,
    "executors._delays": 1,
    "executors._pool": 5,
    "executors.thread": 6,
    "executors.redis": 8,
    "executors.*": 4,
    "registry": 4,
    "onion": 4,
    "verdicts": 4,
    "calling": 5,
    "attempts": 6,
    "redis": 0,
    "redis.script": 0,
    "redis.line": 1,
    "redis.address": 1,
    "redis.waiter": 2,
    "redis.later": 3,
    "redis.shards": 1,
    "redis.client": 3,
    "redis.gate": 1,
    "redis.queues": 4,
    "redis.presence": 5,
    "redis.holdings": 5,
    "redis.handling": 6,
    "redis.supply": 6,
    "redis.consumer": 7,
    "data_items": 1,
    "data_queue": 3,
    "health": 1,
    "json_text": 0,
    "processes": 2,
    "hearing": 3,
    "worker": 9,
    "signals": 4,
    "keeping": 5,
    "tracker": 5,
    "checking": 5,
    "submitting": 6,
    "app": 7,
    "": 8,
    "testing.submitted": 4,
    "testing.diverted": 8,
    "testing.queued": 9,
    "testing": 10,
    "doctor.case": 8,
    "doctor.looking": 9,
    "doctor.*": 10,
    "doctor": 11,
    "cli.given": 8,
    "cli.shown": 8,
    "cli.tables": 9,
    "cli.described": 12,
    "cli": 13,
    "cli.*": 13,
    "cli.program": 14,
    "__main__": 15,
    "django": 13,
    "django.*": 13,
    "django.management.*": 13,
    "django.management.commands.*": 16,
}

# Outside the standard library: which module may import what.
FOREIGN = {
    "uwsgi": ("server",),
    "django": ("settings", "django"),
    "click": ("cli",),
    "rich": ("cli",),
    "redis": ("redis.client",),
    "hiredis": ("redis.line",),
    "watchfiles": ("worker",),
    "sqlalchemy": ("stores._databases", "stores._statements", "stores._tables", "stores.sql"),
}
"""A folder stands for all that is in it."""

VAGUE = {"utils", "common", "helpers", "base", "types", "constants"}


@dataclass(frozen=True)
class Import:
    """One import of *target*, both dotted and, if ours, without the package's name."""

    target: str
    ours: bool
    line: int
    at_top: bool


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def layer_of(name):
    folder, dot, _ = name.rpartition(".")
    return LAYERS.get(name, LAYERS.get(f"{folder}.*") if dot else None)


def imports_of(name, source, *, is_package):
    """Every import in *source*, also those inside functions and blocks."""
    tree = ast.parse(source)
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            targets = from_targets(name, node, is_package=is_package)
        else:
            continue
        for target in targets:
            ours = target.partition(".")[0] == PACKAGE.name
            # Unprefixed, and the package itself is "".
            short = target.partition(".")[2] if ours else target
            yield Import(short, ours, node.lineno, id(node) in top)


def from_targets(name, node, *, is_package):
    """`from a import b` as "a.b" if b is a module of ours, else as "a"."""
    start = node.module or ""
    if node.level:
        here = [PACKAGE.name, *filter(None, name.split("."))]
        kept = here[: len(here) - node.level + is_package]
        start = ".".join([*kept, *filter(None, [node.module])])
    short = start.partition(".")[2]
    for alias in node.names:
        submodule = f"{short}.{alias.name}".lstrip(".")
        ours = start.partition(".")[0] == PACKAGE.name
        yield f"{start}.{alias.name}" if ours and submodule in MODULES else start


def imports(name):
    path = MODULES[name]
    return list(imports_of(name, path.read_text(), is_package=path.stem == "__init__"))


def complaints_about_layers(name, found):
    """What is wrong with the imports *found* in the module *name*."""
    for one in found:
        if not one.ours:
            continue
        where = f"{name or '__init__'}.py:{one.line} imports {one.target or 'the package'}"
        own_package = one.target == name.rpartition(".")[0] and one.target
        if not one.at_top:
            yield f"{where} in a function or a block: move it to the top, or move the code"
        if layer_of(one.target) is None:
            yield f"{where}, which has no layer"
        elif layer_of(one.target) >= layer_of(name) and not own_package:
            yield (
                f"{where}: layer {layer_of(name)} may not import layer {layer_of(one.target)}; "
                "hand it in from app.py"
            )


def test_the_package_is_found():
    assert "" in MODULES


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_a_layer(name):
    assert layer_of(name) is not None, f"{name}: give it a layer in tests/test_layers.py"


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_ours_from_lower_layers_only_and_at_its_top(name):
    assert list(complaints_about_layers(name, imports(name))) == []


def may_import(name, root):
    places = FOREIGN.get(root, ())
    return any(name == place or name.startswith(f"{place}.") for place in places)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_outside_the_standard_library_has_its_importers(name):
    for one in imports(name):
        root = one.target.partition(".")[0]
        if not one.ours and root not in sys.stdlib_module_names:
            assert may_import(name, root), f"{name}.py:{one.line} imports {root}"


@pytest.mark.parametrize("name", MODULES)
def test_our_own_modules_are_imported_by_name_in_load_and_connect_only(name):
    tree = ast.parse(MODULES[name].read_text())
    in_load = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name in {"load", "connect"}
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and id(node) not in in_load:
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in {"import_module", "__import__"}:
                arguments = ast.unparse(node.args)
                assert PACKAGE.name not in arguments, f"{name}.py:{node.lineno}: {arguments}"
                assert "__package__" not in arguments, f"{name}.py:{node.lineno}: {arguments}"


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_named_for_what_it_does(name):
    assert not VAGUE & set(name.split(".")), f"{name}: a helper lives beside its only user"


@pytest.mark.parametrize(
    ("name", "source", "complaint"),
    [
        ("model", "from uwsgi_tasks.retry import Retry", "may not import layer"),
        ("retry", "from uwsgi_tasks import codec", "may not import layer"),
        ("retry", "from . import server", "may not import layer"),
        ("attempts", "def f():\n    from uwsgi_tasks.model import Job", "in a function or a block"),
        ("app", "if TYPE_CHECKING:\n    from uwsgi_tasks.model import Job", "in a function"),
        ("attempts", "import uwsgi_tasks", "may not import layer"),
        ("attempts", "import uwsgi_tasks.metrics", "which has no layer"),
        ("executors.mule", "from uwsgi_tasks.executors.spooler import X", "may not import layer 4"),
    ],
)
def test_this_test_finds(name, source, complaint):
    found = imports_of(name, source, is_package=False)
    assert complaint in " ".join(complaints_about_layers(name, found))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("executors.mule", "from uwsgi_tasks.executors import Executor"),
        ("attempts", "from uwsgi_tasks.model import Job\nfrom uwsgi_tasks import errors"),
        ("times", "from uwsgi_tasks.errors import InvalidTask"),
        ("retry", "import math"),
    ],
)
def test_this_test_allows(name, source):
    found = imports_of(name, source, is_package=False)
    assert list(complaints_about_layers(name, found)) == []
