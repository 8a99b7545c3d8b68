"""Others in environments of their own, to be measured beside us."""

import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
NEEDED = {
    # Its setup.py needs a setuptools; six is what it imports and does not always declare.
    "peers": (
        ["setuptools<81", "wheel"],
        ["--no-build-isolation", "uwsgi-tasks==0.7.3", "six", "pyuwsgi", "coverage"],
    ),
    "brokers": (
        [
            "celery[redis]>=5,<6",
            "dramatiq[redis]>=2,<3",
            "hiredis",
            "huey>=3,<4",
            "rpqueue==0.33.7",
            "rq>=2,<3",
            "taskiq>=0.13",
            "taskiq-redis>=1.2.4",
            "uvloop",
        ],
    ),
    # Alone: they refuse the redis-py that the others want.
    "arq": (["arq>=0.28", "uvloop"],),
    "saq": (["saq[redis,hiredis]>=0.26", "typing_extensions", "uvloop"],),
    # What our extras redis and cli say; ourselves, its path has.
    "ours": (["redis[hiredis]>=5.1", "click>=8.1", "rich>=13"],),
}
"""What is installed into each environment, call by call."""


def interpreter() -> str | None:
    """Return the interpreter of uwsgi-tasks 0.7.3, made if need be; None if it cannot be made."""
    return _interpreter("peers")


def for_redis(name: str) -> str | None:
    """Return the interpreter of the system of this *name* in `redis_apps/`; None as above."""
    return _interpreter(name if name in NEEDED else "brokers")


@cache
def _interpreter(name: str) -> str | None:
    folder = ROOT / f".venv-{name}"
    python = folder / "bin" / "python"
    ready = folder / ".ready"
    if ready.exists():
        return str(python)
    print(f"making the environment {folder.name} ...", file=sys.stderr)
    install = [str(python), "-m", "pip", "install", "--quiet"]
    commands = [
        [sys.executable, "-m", "venv", str(folder)],
        *([*install, *part] for part in NEEDED[name]),
    ]
    for command in commands:
        if subprocess.run(command, check=False).returncode:
            print("it could not be made: what it is for is left out", file=sys.stderr)
            return None
    ready.touch()
    return str(python)
