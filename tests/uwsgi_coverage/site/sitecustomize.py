"""Measure this process, and save after each job (see the package above)."""

import functools
import os
import sys
import types

# Not post_fork_hook: a signal that comes while a new process is busy there is lost.
HOOKS = {"spooler", "mule_msg_hook"}
measuring = None
saved = {}


def start(config):
    global measuring  # noqa: PLW0603  (one measurement a process is what coverage allows)
    import coverage

    measuring = coverage.Coverage(config_file=config, data_suffix=True, messages=False)
    measuring.start()
    # Not uWSGI's: this serves the plain scripts, the workers and the master, which exit properly.
    import atexit

    atexit.register(save)
    sys.meta_path.insert(0, WaitForPackage)


def save():
    """Write what was measured, if any of it is new. Coverage itself notices a fork."""
    data = {file: set(seen) for file, seen in measuring._collector.data.items()}
    if all(seen <= saved.get(file, set()) for file, seen in data.items()):
        return
    measuring.save()
    for file, seen in data.items():
        saved.setdefault(file, set()).update(seen)


def saving(function):
    """*function*, with a save after each call."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        finally:
            save()

    wrapper.before_saving = function
    return wrapper


class MeasuredModule(types.ModuleType):
    """The `uwsgi` module, whose hooks save."""

    def __setattr__(self, name, value):
        if name in HOOKS and callable(value):
            value = saving(value)
        super().__setattr__(name, value)

    def __getattribute__(self, name):
        value = super().__getattribute__(name)
        return getattr(value, "before_saving", value) if name in HOOKS else value


def measure_module(uwsgi):
    uwsgi.__class__ = MeasuredModule
    for name in HOOKS & uwsgi.__dict__.keys():
        setattr(uwsgi, name, uwsgi.__dict__[name])
    register_signal = uwsgi.register_signal
    uwsgi.register_signal = lambda number, target, handler: register_signal(
        number, target, saving(handler)
    )


class WaitForPackage:
    """Finds nothing: it waits for our package, for `uwsgi` exists by then and not before."""

    @staticmethod
    def find_spec(name, _path=None, _target=None):
        # Coverage looks for the package too, before there is a server.
        if name == "uwsgi_tasks" and "uwsgi" in sys.modules:
            sys.meta_path.remove(WaitForPackage)
            measure_module(sys.modules["uwsgi"])


if "MEASURE_WITH" in os.environ:
    start(os.environ["MEASURE_WITH"])
