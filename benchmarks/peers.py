"""uwsgi-tasks 0.7.3 in an environment of its own, to be measured beside us."""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent.parent / ".venv-peers"


def interpreter() -> str | None:
    """Return the interpreter of that environment, made if need be; None if it cannot be made."""
    python = FOLDER / "bin" / "python"
    ready = FOLDER / ".ready"
    if ready.exists():
        return str(python)
    print("making an environment for uwsgi-tasks 0.7.3 ...", file=sys.stderr)
    needed = ["uwsgi-tasks==0.7.3", "six", "pyuwsgi", "coverage"]
    commands = [
        [sys.executable, "-m", "venv", str(FOLDER)],
        # Its setup.py needs a setuptools; six is what it imports and does not always declare.
        [str(python), "-m", "pip", "install", "--quiet", "setuptools<81", "wheel"],
        [str(python), "-m", "pip", "install", "--quiet", "--no-build-isolation", *needed],
    ]
    for command in commands:
        if subprocess.run(command, check=False).returncode:
            print("it could not be made: 0.7.3 is left out", file=sys.stderr)
            return None
    ready.touch()
    return str(python)
