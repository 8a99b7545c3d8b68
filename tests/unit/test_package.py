"""The public names."""

import subprocess
import sys

import uwsgi_tasks


def test_every_public_name_is_there():
    assert [name for name in uwsgi_tasks.__all__ if not hasattr(uwsgi_tasks, name)] == []


def test_the_functions_belong_to_one_app():
    functions = [uwsgi_tasks.task, uwsgi_tasks.timer, uwsgi_tasks.cron, uwsgi_tasks.configure]
    assert {function.__self__ for function in functions} == {uwsgi_tasks.default_app}


def test_importing_the_package_changes_nothing_in_the_process():
    script = (
        "import logging, signal, threading, sys;"
        "before = (signal.getsignal(signal.SIGUSR1), threading.active_count(),"
        " len(logging.getLogger().handlers));"
        "import uwsgi_tasks;"
        "after = (signal.getsignal(signal.SIGUSR1), threading.active_count(),"
        " len(logging.getLogger().handlers));"
        "sys.exit(before != after or 'django' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
