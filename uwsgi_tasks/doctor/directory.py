"""Whether a spooler's directory is fit for its jobs, and what is wrong with those in it."""

from __future__ import annotations

import contextlib
import pwd
import re
from collections.abc import Iterator

from uwsgi_tasks.doctor.case import Case, Finding, Group, error, note, some, user_name, warning
from uwsgi_tasks.doctor.looking import LOOKED_AT
from uwsgi_tasks.spool import TICKET
from uwsgi_tasks.spool_file import PREFIX

_SCARCE, _OUT = 0.10, 0.01
"""Shares of the disk that are little, and hardly any."""
_NETWORK = re.compile(r"nfs\d?|cifs|smb\d?|smbfs|9p|afs|ceph|lustre|glusterfs|fuse\.\w+|ncpfs|gfs2")


def _owner(case: Case) -> Iterator[Finding]:
    given = case.last("uid")
    if case.directory is None or not given:
        return
    with contextlib.suppress(KeyError):
        uid = int(given) if given.isdigit() else pwd.getpwnam(given).pw_uid
        if uid != case.directory.owner:
            path = case.directory.path
            yield error(
                "directory-owner",
                f"{path} belongs to {user_name(case.directory.owner)}, and uWSGI runs as {given}",
                f"chown -R {given} {path}",
            )


def _kind(case: Case) -> Iterator[Finding]:
    if case.directory is None:
        return
    kind, path = case.directory.filesystem, case.directory.path
    if _NETWORK.fullmatch(kind):
        yield warning(
            "network-filesystem",
            f"{path} is on {kind}: locks over a network may fail, and a job may run twice",
            "spooler = a directory on a local disk",
        )
    elif kind in {"tmpfs", "ramfs"}:
        what = f"{path} is in memory ({kind}): jobs that wait are gone when the machine restarts"
        yield note("memory-filesystem", what, "spooler = a directory on a disk")


def _full(case: Case) -> Iterator[Finding]:
    found = case.directory
    if found is not None:
        yield from _scarce("disk-full", found.space, f"space where {found.path} is", "df -h")
        yield from _scarce("inodes", found.inodes, f"inodes where {found.path} is", "df -i")


def _scarce(code: str, free: float, of: str, command: str) -> Iterator[Finding]:
    if free < _SCARCE:
        make = error if free < _OUT else warning
        yield make(code, f"{free:.1%} of the {of} are free", f"{command}; delete, or enlarge")


def _stale(case: Case) -> Iterator[Finding]:
    if case.directory is None or not case.directory.stale:
        return
    found = case.directory.stale
    yield warning(
        "jobs-wait",
        f"{len(found)}{'+' * (len(found) >= LOOKED_AT)} jobs in {case.directory.path} are due, "
        f"and nobody runs them, one for {_span(found[0][1])}",
        "start the server, or raise spooler-processes; uwsgi-tasks ls shows them",
    )


def _late(case: Case) -> Iterator[Finding]:
    found = case.directory
    if found is None:
        return
    if found.late:
        yield warning(
            "overdue",
            f"{found.late} delayed jobs were due up to {_span(found.latest)} ago, and nobody has "
            "moved them in",
            "start the server; its spoolers do it",
        )
    elif found.delayed and not found.has_ticket:
        yield warning(
            "no-ticket",
            f"{TICKET} is gone: nothing tells the spoolers of {found.delayed} delayed jobs",
            "reload the server: a spooler that starts makes it anew",
        )


def _half_written(case: Case) -> Iterator[Finding]:
    found = case.directory
    if found is None:
        return
    if found.half:
        yield note(
            "half-written",
            f"{found.half} files were begun, and not finished: their writers died",
            "nothing: a spooler that starts removes them after an hour",
        )
    if found.cut:
        yield warning(
            "cut",
            f"{found.cut} spool files are too short to be a job: uWSGI reads them again and again",
            f"find {found.path} -maxdepth 1 -name '{PREFIX}*' -size -4c -delete",
        )


def _stranded(case: Case) -> Iterator[Finding]:
    found = case.directory
    if found is None or not found.stranded or not case.has_options:
        return
    if not case.has("spooler-ordered"):
        yield error(
            "stranded",
            f"{found.stranded} jobs lie in the folders of priorities, where uWSGI never looks "
            "without spooler-ordered",
            "spooler-ordered = true",
        )


def _crashing(case: Case) -> Iterator[Finding]:
    if case.directory is None or not case.directory.crashes:
        return
    found = case.directory.crashes
    listed = [f"{name} ({count})" for name, count in found.items()]
    yield warning(
        "crashes",
        f"jobs that wait have killed their process before: {some(listed)}",
        "look for 'died while it ran' in the log; uwsgi-tasks show ID",
    )


def _dead(case: Case) -> Iterator[Finding]:
    if case.directory and case.directory.dead:
        dead = case.directory.path / "dead"
        what = f"{case.directory.dead} jobs have finally failed, and are kept as files"
        yield note("dead-files", what, f"ls -l {dead}")


def _span(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


PLACE = Group(
    code="directory",
    says="the directory is there, private, on a local disk, and has room",
    checks=(_owner, _kind, _full),
)
JOBS = Group(
    code="jobs",
    says="nothing in the directory waits for long, is cut, or has killed its process",
    checks=(_stale, _late, _half_written, _stranded, _crashing, _dead),
)
