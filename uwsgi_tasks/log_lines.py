"""What a line in the log says of an error, in one line, and of a job, in fields of its own."""

from __future__ import annotations

from types import CodeType, TracebackType
from typing import Any

from uwsgi_tasks.model import DeadLetter, Job

Raised = tuple[type[BaseException], BaseException, TracebackType | None]


def one_line(text: object) -> str:
    """Return *text* without its line breaks: a line in the log is an event, and only that."""
    return " ".join(part for line in str(text).splitlines() if (part := line.strip()))


def of(job: Job | DeadLetter, executor: str | None = None) -> dict[str, Any]:
    """Return the fields (``extra=``) of a line that speaks of *job*."""
    fields = {"task_name": job.task, "job_id": job.id, "attempt": job.attempt}
    return fields if executor is None else {**fields, "executor": executor}


def from_the_task_on(error: BaseException, caller: CodeType | None = None) -> Raised:
    """Return *error* as ``exc_info=``, without the frames above the task's, which say nothing.

    These are all down to that of *caller*, if it is among them; else the first alone.
    """
    trace = error.__traceback__
    first = trace and trace.tb_next
    while trace is not None and trace.tb_frame.f_code is not caller:
        trace = trace.tb_next
    return type(error), error, trace.tb_next if trace else first
