"""The command line, as ``python -m uwsgi_tasks`` and as the script ``uwsgi-tasks``."""

import sys
from importlib.util import find_spec

if not (find_spec("click") and find_spec("rich")):
    sys.stderr.write(
        "uwsgi-tasks: the command line needs two packages: pip install 'uwsgi_tasks[cli]'\n"
    )
    sys.exit(2)

from uwsgi_tasks.cli.program import program

__all__ = ["main", "program"]


def main() -> None:
    """Run the command line, and exit with its code."""
    program(prog_name="uwsgi-tasks")


if __name__ == "__main__":
    main()
