"""Options that uWSGI does not know, and would pass over in silence."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from uwsgi_tasks.doctor.case import SHARED, SPOOLERS, Case, Finding, Group, error

KNOWN = frozenset({
    "farm",
    "hook-as-mule",
    "mule",
    "mule-harakiri",
    "mule-msg-size",
    "mule-reload-mercy",
    "mules",
    "spooler",
    "spooler-chdir",
    "spooler-external",
    "spooler-freq",
    "spooler-frequency",
    "spooler-harakiri",
    *SPOOLERS,
    "spooler-max-tasks",
    "spooler-ordered",
    "spooler-processes",
    "spooler-quiet",
    "touch-mules-reload",
    "touch-spoolers-reload",
})  # fmt: skip
"""Every option of spoolers and mules that uWSGI 2.0 has, as its ``--help`` lists them."""

_OTHERS = (
    "binary-path", "die-on-term", "enable-threads", "lazy-apps", "master", "need-app",
    "single-interpreter", "wsgi-file", *SHARED,
)  # fmt: skip
"""Others that matter here, and are hardly ever meant to be placeholders of the user's own."""
_DOCUMENTED = {
    "mule-msg-recv-size": "is not in uWSGI 2.0, whose mules get 64 KB at most",
    "spooler-cheap": "is not in uWSGI 2.0",
    "spooler-signal-as-task": "is documented, and in no uWSGI 2.0",
}
_ALIKE = 0.86
"""At this, none of the nine hundred options of uWSGI 2.0 is taken for another."""


def _misspelt(case: Case) -> Iterator[Finding]:
    for name in case.options:
        told = _DOCUMENTED.get(name)
        if told is not None:
            yield error("unknown-option", f"{name} {told}", f"leave {name} out")
        elif (meant := suspect(name)) is not None:
            yield error(
                "unknown-option",
                f"uWSGI has no option {name}, and passes over it in silence",
                f"{meant} = {case.last(name)}, and strict = true" if meant else f"leave {name} out",
            )


def suspect(name: str) -> str | None:
    """Return what *name* may be meant for, "" if nothing is alike; None if nothing is wrong."""
    if name in KNOWN or name in _OTHERS:
        return None
    plain = name.replace("_", "-").lower()
    if plain.startswith(("spool", "mule")):
        return next(iter(get_close_matches(plain, KNOWN, n=1)), "")
    near = get_close_matches(plain, (*KNOWN, *_OTHERS), n=1, cutoff=_ALIKE)
    return near[0] if near else None


GROUP = Group(
    code="spelling",
    says="uWSGI knows the options for spoolers and mules",
    checks=(_misspelt,),
)
