"""What a call returns."""

from __future__ import annotations

from typing import Any

from uwsgi_tasks.errors import ResultNotKept
from uwsgi_tasks.model import Result, State


class JobHandle:
    """A job that was submitted. Where it has run already, it knows how that ended."""

    __slots__ = ("_result", "id")

    def __init__(self, id: str, result: Result | None = None) -> None:  # noqa: A002
        self.id = id
        """The name of the job, as log lines and dead letters show it."""
        self._result = result

    @property
    def state(self) -> State:
        """QUEUED when it was submitted; how it ended, where it ran at once."""
        return State.QUEUED if self._result is None else self._result.state

    def result(self) -> Any:
        """Return what the function returned. Raises ResultNotKept if another process has it."""
        if self._result is None:
            raise ResultNotKept(
                f"job {self.id} runs in another process, and results are not kept: "
                "let the task write what it finds where you need it"
            )
        return self._result.value

    def __repr__(self) -> str:
        return f"<JobHandle {self.id}, {self.state}>"
