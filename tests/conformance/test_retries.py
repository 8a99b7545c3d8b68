"""The same `Retry` makes the same attempts, at the same times, on every executor."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.conformance.conftest import ALL, carried
from uwsgi_tasks import Retry, State, get_current_task

OK, FAILED = State.SUCCEEDED, State.FAILED
STEP = 0.1
"""By which a test puts the clock forward, in units."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What a task is declared with and does, and what is to follow. Times are in units.

    A unit is so long that neither a slow machine nor a spooler's whole seconds count.
    """

    name: str
    retry: dict[str, Any]
    does: Callable[[int], object]
    """What it returns, or raises, in the attempt of a number."""
    waits: list[float]
    """From the end of each run to the next."""
    ends: State

    def declared(self, unit: float) -> Retry:
        times = {"delay", "max_delay", "timeout"} & set(self.retry)
        return Retry(**self.retry | {name: self.retry[name] * unit for name in times})


def fails(_attempt):
    return OSError("no such host")


def after(number, value):
    """Fail, until the attempt of this number returns *value*."""
    return lambda attempt: value if attempt == number else OSError("no such host")


def each(*outcomes):
    # Copies: one that is raised keeps all that was in the frames that it has left.
    return lambda attempt: copy.copy(outcomes[attempt - 1])


def is_other_than_404(outcome):
    return "404" not in str(outcome.exception)


POLICIES = [
    Policy(name="ten tries", retry={"attempts": 10}, does=fails, waits=[0] * 9, ends=FAILED),
    Policy(
        name="success in the fourth of ten tries",
        retry={"attempts": 10},
        does=after(4, "value"),
        waits=[0] * 3,
        ends=OK,
    ),
    Policy(
        name="a delay",
        retry={"attempts": 4, "delay": 1},
        does=fails,
        waits=[1, 1, 1],
        ends=FAILED,
    ),
    Policy(
        name="exponential: 0, 1, 2, 4, 8, 16",
        retry={"attempts": 6, "delay": 1, "backoff": 2},
        does=fails,
        waits=[1, 1, 2, 4, 8],
        ends=FAILED,
    ),
    Policy(
        name="exponential, to a ceiling",
        retry={"attempts": 7, "delay": 1, "backoff": 2, "max_delay": 3},
        does=fails,
        waits=[1, 1, 2, 3, 3, 3],
        ends=FAILED,
    ),
    Policy(
        # More than four waits, so that a little lateness makes no difference.
        name="a timeout",
        retry={"attempts": 0, "delay": 1, "timeout": 4.9},
        does=fails,
        waits=[1, 1, 1, 1],
        ends=FAILED,
    ),
    Policy(
        name="attempts that end before the timeout",
        retry={"attempts": 3, "delay": 1, "timeout": 4.9},
        does=fails,
        waits=[1, 1],
        ends=FAILED,
    ),
    Policy(
        name="a timeout that allows no second run",
        retry={"attempts": 0, "delay": 1, "timeout": 0},
        does=fails,
        waits=[],
        ends=FAILED,
    ),
    Policy(
        name="until a value",
        retry={"attempts": 0, "delay": 1, "until": lambda outcome: outcome.value == "done"},
        does=each(None, OSError(), "almost", "done"),
        waits=[1, 1, 1],
        ends=OK,
    ),
    Policy(
        name="until an exception",
        retry={"attempts": 0, "delay": 1, "until": is_other_than_404},
        does=each(OSError("404"), OSError("404"), OSError("401")),
        waits=[1, 1],
        ends=OK,
    ),
    Policy(
        name="never, five times",
        retry={"attempts": 5, "delay": 1, "until": lambda _outcome: None},
        does=each("value", OSError(), None, 0, "value"),
        waits=[1] * 4,
        ends=FAILED,
    ),
    Policy(
        name="on what a function takes",
        retry={"attempts": 0, "delay": 1, "on": lambda error: "busy" in str(error)},
        does=each(OSError("busy"), OSError("busy"), OSError("broken")),
        waits=[1, 1],
        ends=FAILED,
    ),
    Policy(
        name="a function that raises",
        retry={"attempts": 9, "delay": 1, "until": lambda outcome: outcome.value / 0},
        does=each(1),
        waits=[],
        ends=FAILED,
    ),
]


@dataclass
class Story:
    """What came of a call."""

    numbers: list[int] = field(default_factory=list)
    dues: list[float] = field(default_factory=list)
    begins: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    state: State | None = None


carrier = carried(*(kind for kind in ALL if kind.waits or not kind.travels))
"""A carrier whose jobs may wait between two attempts; where they do not travel, the call waits."""


@pytest.fixture(params=POLICIES, ids=lambda policy: policy.name)
def policy(request):
    return request.param


@pytest.fixture
def story(carrier, policy):
    """The whole story of one call."""
    story = Story()

    def send():
        current = get_current_task()
        story.begins.append(time.time())
        story.numbers.append(current.attempt)
        story.dues.append(current.scheduled_at.timestamp())
        outcome = policy.does(current.attempt)
        story.ends.append(time.time())
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    task = carrier.task(retry=policy.declared(carrier.unit))(send)
    try:
        task()
    except Exception:  # noqa: BLE001  how its last attempt ended
        story.state = FAILED
    # Longer than it takes: an attempt too many would be made.
    for _ in range(int((sum(policy.waits) + 3) / STEP)):
        carrier.wait(STEP * carrier.unit)
    story.state = FAILED if story.state or carrier.dead() else OK
    return story


def test_the_attempts_are_those_of_the_policy_and_no_other(policy, story):
    assert story.numbers == list(range(1, len(policy.waits) + 2))


def test_the_job_ends_as_the_policy_says(policy, story):
    assert story.state is policy.ends


def test_each_attempt_is_due_when_the_policy_says(carrier, policy, story):
    waits = [due - end for end, due in zip(story.ends, story.dues[1:], strict=False) if due > end]
    expected = [wait * carrier.unit for wait in policy.waits if wait]
    assert waits == [pytest.approx(wait, abs=0.05 * carrier.unit) for wait in expected]


def test_no_attempt_begins_before_it_is_due(carrier, policy, story):
    waits = [begin - end for end, begin in zip(story.ends, story.begins[1:], strict=False)]
    assert all(
        waited >= wait * carrier.unit for waited, wait in zip(waits, policy.waits, strict=True)
    ), waits
