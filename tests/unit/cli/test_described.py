"""Jobs, dead letters and counts, as rows and as JSON."""

import pytest

from uwsgi_tasks.cli import described
from uwsgi_tasks.model import Count, DeadLetter, Job, Standing, State

NOW = 1_700_000_000.0


def standing(**given):
    return Standing(
        **{"id": "a-1", "task": "shop.send", "executor": "spooler", "state": State.QUEUED, **given}
    )


def row(job):
    return dict(zip(described.JOB_HEADINGS, described.job_rows([job], NOW)[0], strict=True))


@pytest.mark.parametrize(
    ("job", "word"),
    [
        (standing(), "queued"),
        (standing(at=NOW - 1), "queued"),
        (standing(at=NOW + 1), "delayed"),
        (standing(at=NOW + 1, state=State.RETRYING), "retrying"),
        (standing(at=NOW + 1, state=State.RUNNING), "running"),
    ],
)
def test_a_job_is_delayed_while_its_time_has_not_come(job, word):
    assert described.state(job, NOW) == word


def test_a_row_says_how_old_a_job_is_and_when_it_is_due():
    found = row(
        standing(submitted_at=NOW - 61, at=NOW + 3600, attempt=2, priority=0, place="/spool")
    )

    assert found == {
        "ID": "a-1",
        "TASK": "shop.send",
        "CALLS": "",
        "STATE": "delayed",
        "AGE": "1m01s",
        "DUE": "in 1h00m",
        "TRY": "2",
        "PRIO": "0",
        "PROGRESS": "",
        "WHERE": "",
    }


def test_a_row_says_who_runs_a_job_and_how_far_it_is():
    found = row(
        standing(state=State.RUNNING, worker="web1 spooler 4", place="/spool", done=1, total=4)
    )

    assert (found["WHERE"], found["PROGRESS"]) == ("web1 spooler 4", "1/4")


def test_where_a_job_waits_is_said_if_there_are_several_places():
    rows = described.job_rows([standing(place="/one"), standing(place="/two")], NOW)

    assert [one[-1] for one in rows] == ["/one", "/two"]


def test_a_row_says_how_many_calls_it_stands_for():
    assert row(standing(calls=1200))["CALLS"] == "1,200"


def test_what_is_not_known_of_a_job_is_null():
    found = described.job_document(standing(task=""), NOW)

    assert {name for name, value in found.items() if value is None} == {
        *("task", "submitted_at", "due_at", "started_at", "priority", "progress", "place", "worker")
    }


def test_a_dead_letter_says_since_when():
    letter = DeadLetter(
        id="a-1", task="", executor="mule", attempt=3, failed_at=NOW - 90, error="OSError:\nno"
    )

    assert described.letter_row(letter, NOW) == (
        *("a-1", "(unreadable)", "1m30s ago", "3", "OSError: no", ""),
    )
    assert described.letter_document(letter)["task"] is None


def test_a_call_looks_as_its_caller_wrote_it():
    job = Job("a-1", "shop.send", ("ada", 2), {"to": {1}})

    assert described.call(job) == "('ada', 2, to={1})"
    assert described.arguments(job) == {"args": ["ada", 2], "kwargs": {"to": "{1}"}}


def counted(minute, runs, seconds, slowest, **given):
    whole = {"task": "shop.send", "outcome": "succeeded", **given}
    return Count(
        minute=int(NOW) + 60 * minute, runs=runs, seconds=seconds, slowest=slowest, **whole
    )


def test_counts_add_up_by_task_and_outcome():
    found = described.totals(
        [
            counted(0, 2, 4.0, 3.0),
            counted(1, 8, 1.0, 0.5),
            counted(1, 1, 9.0, 9.0, outcome="failed"),
            counted(1, 1, 1.0, 1.0, task="shop.pay"),
        ]
    )

    assert [(one.task, one.outcome, one.runs, one.mean, one.slowest) for one in found] == [
        ("shop.pay", "succeeded", 1, 1.0, 1.0),
        ("shop.send", "failed", 1, 9.0, 9.0),
        ("shop.send", "succeeded", 10, 0.5, 3.0),
    ]
    assert found[2].document()["minutes"] == [
        {"at": "2023-11-14T22:13:20.000Z", "runs": 2},
        {"at": "2023-11-14T22:14:20.000Z", "runs": 8},
    ]


def test_runs_are_drawn_from_then_to_now():
    (total,) = described.totals([counted(-10, 8, 1, 1), counted(0, 4, 1, 1)])

    *_, bars = total.row(NOW - 600, NOW)

    assert bars == "█         ▄"


def test_a_long_time_is_drawn_in_as_many_parts_as_there_is_room():
    (total,) = described.totals([counted(-minute, 1, 1, 1) for minute in range(600)])

    *_, bars = total.row(NOW - 36000, NOW, width=10)

    assert len(bars) == 10
    assert " " not in bars


def test_what_never_ran_has_no_mean():
    (total,) = described.totals([counted(0, 0, 0, 0)])

    assert (total.runs, total.mean) == (0, 0.0)
