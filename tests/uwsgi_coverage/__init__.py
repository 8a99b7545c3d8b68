"""Coverage inside uWSGI processes.

uWSGI kills its spoolers and mules with SIGKILL, so nothing that runs "at exit" can save what they
measured. `site/sitecustomize.py` therefore saves after each job: it starts coverage when Python
starts, and wraps whatever is assigned to `uwsgi.spooler`, `uwsgi.mule_msg_hook` and
`uwsgi.post_fork_hook`, or handed to `uwsgi.register_signal`. Reading these gives back what was
assigned, so the code under test sees no difference. A save happens only when a job ran lines that
were not saved before: the thousandth job of a kind costs some microseconds.

Use, in whatever starts a server or a script under test:

    from tests.uwsgi_coverage import environment
    subprocess.Popen(command, env=environment(PYTHONPATH=str(tmp_path)))

Nothing happens when the tests run without `--cov`. With it, the processes leave `.coverage.*` files
beside the main one, which pytest-cov combines at the end.

Three things it cannot see: what a worker does between its last hook and a SIGKILL (a worker that is
stopped by SIGINT or SIGTERM does save), what a process does in a job that kills it, and requests
that are served by uWSGI's own threads (`threads = 2`), which Python's tracing never reaches. A test
application may call `sitecustomize.save()` itself.
"""

import os
from pathlib import Path

import coverage

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def environment(**changes: str) -> dict[str, str]:
    """Our environment with *changes*, and with measuring switched on if this test run measures.

    With `MEASURE_WITH=""` nothing is measured there.
    """
    variables = {**os.environ, **changes}
    if coverage.Coverage.current() is None or variables.get("MEASURE_WITH") == "":
        return variables
    paths = [str(HERE / "site"), variables.get("PYTHONPATH", "")]
    return variables | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "COVERAGE_FILE": str(ROOT / ".coverage"),
        # Not UWSGI_TASKS_…: that would be taken for a setting.
        "MEASURE_WITH": str(ROOT / "pyproject.toml"),
    }
