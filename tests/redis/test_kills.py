"""Workers and Redis are killed at any moment: no job is lost."""

import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from tests.redis.crew import Crew
from tests.redis.shop import stat
from tests.servers import Redis, serve

SEED = int(os.environ.get("KILLS_SEED") or random.SystemRandom().randrange(2**32))
"""Of the random killer. What the processes themselves do at which moment no seed can repeat."""
SOURCE = Path(__file__).parent / "under_fire.py"
BRIEF = 60, 4000, 18.0
FULL = 300, 20_000, 90.0
"""Kills, jobs and seconds; the second is what KILLS=full in the environment asks for."""
CREW = [("-c", "2")] * 3 + [("-c", "2", "--processes", "2")]
STEPS = [
    "is about to claim",
    "has sent a claim",
    "has claimed",
    "is about to run",
    "is about to attempt",
    "is in the function",
    "is about to save the result",
    "has saved the result",
    "is about to bury",
    "has buried",
    "has attempted",
    "has run",
    "is about to tell an end",
    "has sent an end",
    "has told an end",
    "is about to extend a lease",
    "has extended a lease",
]


class Storm:
    """Workers that are killed, and a Redis that is, while jobs are submitted."""

    def __init__(self, crew, redis, rng):
        self.crew, self.redis, self.rng = crew, redis, rng
        self.kills = Counter()
        self._slots = []

    def rage(self, kills, jobs, seconds):
        """Kill so many in about so many *seconds*, in which so many *jobs* are submitted."""
        self._slots = [(options, self._start(options)) for options in CREW]
        submitter = self.crew.program(f"app.submit_for_ever({jobs}, {seconds})")
        steps = self.rng.sample(STEPS, len(STEPS))
        try:
            while self.kills.total() < kills or submitter.poll() is None:
                time.sleep(self.rng.uniform(0, 2 * seconds / kills))
                if self.kills.total() < kills:
                    self._kill_one()
                if steps and self.rng.random() < 2 * len(STEPS) / kills:
                    (self.crew.folder / "armed" / steps.pop()).touch()
                self._tend()
            assert submitter.wait() == 0
        finally:
            submitter.kill()
            submitter.wait()
        self._end()

    def _start(self, options):
        return self.crew.start(*options, "--grace", "5", queues=self._queues())

    def _queues(self):
        """Return the queues in their order, or by weight."""
        return self.rng.choice(["high,default,low", "high=3,default=2,low=1"])

    def _kill_one(self):
        if self.kills.total() % 10 == 5:
            self.kills["redis"] += 1
            self.redis.kill()
            time.sleep(self.rng.uniform(0, 0.4))
            self.redis.start()
            return
        kind = "child" if self.kills.total() % 5 == 2 else "worker"
        among = self._children if kind == "child" else self._parents
        victim = self.rng.choice(self.crew.wait_for(among))
        self.kills[kind] += 1
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        # Else it might be taken to be alive at the end.
        self.crew.wait_for(lambda: stat(victim)[:1] in ([], ["Z"]))

    def _parents(self):
        return [worker.pid for _, worker in self._slots]

    def _children(self):
        self._tend()
        pids = {pid for _, worker in self._slots for pid in worker.pids}
        return sorted(pids.difference(self._parents()))

    def _tend(self):
        """Have another one take the place of each that is dead."""
        self._slots = [
            (options, self._start(options) if worker.was_killed else worker)
            for options, worker in self._slots
        ]

    def _end(self):
        """Let all that was submitted come to its end."""
        deadline = time.monotonic() + 60
        while any(self.crew.sizes()):
            assert time.monotonic() < deadline, self.crew.sizes()
            # Some steps may be armed still.
            self._tend()
            time.sleep(0.05)
        for name in STEPS:
            (self.crew.folder / "armed" / name).unlink(missing_ok=True)
        # Who has come to one just before may be about to die.
        self.crew.wait_for(self._has_settled)

    def _has_settled(self):
        """Are all dead that have come to a step, and others in their place?"""
        self._tend()
        spent = (self.crew.folder / "spent").iterdir()
        pids = {int(path.name.rpartition(" ")[2]) for path in spent}
        are_dead = all(stat(pid)[:1] in ([], ["Z"]) for pid in pids)
        return are_dead and pids.isdisjoint(self._parents())

    def stop(self):
        """End the workers; return their exit codes."""
        for _, worker in self._slots:
            self.crew.wait_until_ready(worker)
            worker.signal(signal.SIGTERM)
        return [worker.wait() for _, worker in self._slots]


@dataclass(frozen=True)
class History:
    """What is known when all is over."""

    kills: Counter
    events: list
    outcomes: dict
    letters: list
    keys: dict
    """What Redis has still, and for how many milliseconds: -1 is for ever."""
    codes: list
    seconds: float

    def of(self, name):
        return [event for event in self.events if event["event"] == name]

    def accepted(self, *tasks):
        """Yield the id and the number of each call whose submission returned."""
        for event in self.of("submitted"):
            if event["task"] in tasks or not tasks:
                numbers = event["number"]
                numbers = numbers if isinstance(numbers, list) else [numbers]
                yield from zip(event["ids"], numbers, strict=True)

    @cached_property
    def ended(self):
        return {event["id"] for event in self.of("end") if event["outcome"] != "retrying"}

    @cached_property
    def runs(self):
        """How often each attempt at each job was made."""
        return Counter((event["id"], event["attempt"]) for event in self.of("begin"))

    def __str__(self):
        steps = len(self.of("killed"))
        return (
            f"{self.kills.total()} killed ({dict(self.kills)}), {steps} more at their steps; "
            f"{len(list(self.accepted()))} jobs accepted, {len(self.of('refused'))} submissions "
            f"refused; {self.runs.total()} attempts, "
            f"{self.runs.total() - len(self.runs)} of them second ones; {self.seconds:.1f} s"
        )


KEPT = ("app.kept", "app.kept_map", "app.shaky")
LASTING = (
    "uwsgi_tasks:queues",
    "uwsgi_tasks:workers",
    "{uwsgi_tasks:dead}",
    "{uwsgi_tasks:counts}",
)
"""Which queues and workers there have been, dead letters, and counts."""
PASSING = ("uwsgi_tasks:worker:", "uwsgi_tasks:result:")
"""Those who were there just now, and results."""


def look_back(storm, seconds):
    """Ask for all that is known."""
    crew = storm.crew
    queues = crew.queues
    wakes = [f"{queues.root(name)}:wake" for name in ("high", "default", "low")]
    # They have nothing to do, and take the last of the tokens.
    crew.wait_for(lambda: not queues.client.call("EXISTS", *wakes))
    # A key that was claimed for what was then refused is free after some seconds.
    crew.wait_for(lambda: not queues.client.call("KEYS", "{uwsgi_tasks:lease}*"), 15)
    codes = storm.stop()
    ids = [
        id_ for event in crew.events("submitted") if event["task"] in KEPT for id_ in event["ids"]
    ]
    names = queues.client.call("KEYS", "*")
    lives = {name.decode(): queues.client.call("PTTL", name) for name in names}
    return History(
        kills=storm.kills,
        events=crew.events(),
        outcomes=crew.call(f"outcomes({ids})"),
        letters=crew.call("letters()"),
        # Less than -1 is over by now.
        keys={name: life for name, life in lives.items() if life >= -1},
        codes=codes,
        seconds=seconds,
    )


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """What has happened when all is over; the seed is shown with what fails."""
    print(f"KILLS_SEED={SEED}")
    # That it can be told beforehand is the point.
    rng = random.Random(SEED)
    began = time.monotonic()
    with serve(Redis, durable=True) as redis:
        folder = tmp_path_factory.mktemp("fire")
        env = {"UWSGI_TASKS_CRASH_LIMIT": "1000", "FIRE_LEASE": "2"}
        crew = Crew(folder, redis.url, SOURCE, **env)
        storm = Storm(crew, redis, rng)
        try:
            storm.rage(*(FULL if os.environ.get("KILLS") == "full" else BRIEF))
            found = look_back(storm, time.monotonic() - began)
        finally:
            crew.end()
    print(found)
    return found


pytestmark = pytest.mark.timeout(300)


@pytest.mark.slow
def test_as_many_are_killed_as_was_said(history):
    assert history.kills.total() >= 60
    assert {"redis", "worker", "child"} == set(history.kills)


@pytest.mark.slow
def test_every_job_that_was_accepted_comes_to_its_end(history):
    accepted = dict(history.accepted())
    for id_, _ in history.accepted("app.once"):
        del accepted[id_]
    assert [id_ for id_ in accepted if id_ not in history.ended] == []


@pytest.mark.slow
def test_what_is_taken_off_before_it_runs_runs_at_most_once(history):
    once = {id_ for id_, _ in history.accepted("app.once")}
    assert [key for key, count in history.runs.items() if count > 1 and key[0] in once] == []


@pytest.mark.slow
def test_what_runs_without_having_been_accepted_was_refused_when_its_answer_was_lost(history):
    accepted = dict(history.accepted())
    strange = {id_.partition(".")[0] for id_, _ in history.runs if id_ not in accepted}
    assert len(strange) <= len(history.of("refused"))


@pytest.mark.slow
def test_every_result_is_kept(history):
    assert history.outcomes == {id_: number * 2 for id_, number in history.accepted(*KEPT)}


@pytest.mark.slow
def test_what_failed_for_good_is_a_dead_letter_and_nothing_else_is(history):
    failed = {event["id"] for event in history.of("end") if event["outcome"] == "failed"}
    assert sorted(id_ for id_, _, _ in history.letters) == sorted(failed)


@pytest.mark.slow
def test_nothing_is_left_in_redis_but_what_was_asked_for(history):
    def is_passing(name):
        # Of who was killed as it woke itself, a list of its own is there for a while.
        return name.startswith(PASSING) or ":wake:" in name

    left = {
        name: life
        for name, life in history.keys.items()
        if not (name.startswith(LASTING) or (is_passing(name) and life > 0))
    }
    assert left == {}


@pytest.mark.slow
def test_the_workers_that_are_left_end_as_they_are_told(history):
    assert history.codes == [0] * len(CREW)


# ---- each step of a job's way

SURE = {
    "kept": {
        "is about to claim": 1,
        "has sent a claim": 1,
        "has claimed": 1,
        "is about to run": 1,
        "is about to attempt": 1,
        "is in the function": 2,
        "is about to save the result": 2,
        "has saved the result": 2,
        "has attempted": 2,
        "has run": 2,
        "is about to tell an end": 2,
        "has sent an end": 1,
        "has told an end": 1,
    },
    "shaky": {"has attempted": 4, "is about to tell an end": 4, "has sent an end": 3},
    "doomed": {"is about to bury": 3, "has buried": 3, "has sent an end": 2},
    "slow": {"is about to extend a lease": 2, "has extended a lease": 2},
}
"""By task and step: how often it runs in all if the process dies there."""
ONCE = {
    "is about to claim": 1,
    "has sent a claim": 1,
    "has claimed": 1,
    "is about to run": 1,
    "is about to tell an end": 1,
    "has sent an end": 0,
    "has told an end": 0,
    "is in the function": 1,
    "has attempted": 1,
    "has run": 1,
}
"""By step: how often that runs which runs at most once, and has ended when it begins."""
DEATHS = [
    (task, step, runs)
    for task, steps in {**SURE, "once": ONCE}.items()
    for step, runs in steps.items()
]


@pytest.fixture(scope="module")
def deaths(tmp_path_factory, redis_server):
    """For each step a worker has died that was about to run one job; then another one came."""
    env = {"UWSGI_TASKS_NAMESPACE": "steps", "FIRE_LEASE": "1", "FIRE_TASKS_LEASE": "3"}
    crew = Crew(tmp_path_factory.mktemp("steps"), redis_server.url, SOURCE, **env)
    queues = [f"queue{number}" for number in range(len(DEATHS))]
    ids = []
    try:
        for queue, (task, _, _) in zip(queues, DEATHS, strict=True):
            # Long enough for its lease to be extended, where that is the step.
            number = 4 if task == "slow" else 1
            ids.append(crew.call(f"{task}.using(queue={queue!r})({number}).id"))
        victims = [
            crew.start(queues=queue, FIRE_AT=step)
            for queue, (_, step, _) in zip(queues, DEATHS, strict=True)
        ]
        assert [victim.wait(120) for victim in victims] == [-signal.SIGKILL] * len(victims)
        crew.start("-c", "4", queues=",".join(queues))
        crew.wait_until_empty()
        yield {key[:2]: id_ for key, id_ in zip(DEATHS, ids, strict=True)}, crew
    finally:
        crew.end()


@pytest.mark.parametrize(("task", "step", "runs"), DEATHS)
def test_a_job_whose_worker_dies_at_a_step_runs_again_if_it_had_not_ended(deaths, task, step, runs):
    ids, crew = deaths
    assert len([one for one in crew.events("begin") if one["id"] == ids[task, step]]) == runs


def test_what_the_dead_had_comes_to_its_end(deaths):
    ids, crew = deaths
    ended = {one["id"] for one in crew.events("end") if one["outcome"] != "retrying"}
    assert [key for key, id_ in ids.items() if id_ not in ended and key[0] != "once"] == []
    letters = [id_ for id_, _, _ in crew.call("letters()")]
    assert sorted(letters) == sorted(id_ for key, id_ in ids.items() if key[0] == "doomed")


# ---- a poisonous task


@pytest.fixture
def crew(tmp_path, redis_server):
    redis_server.flush()
    made = Crew(tmp_path, redis_server.url, SOURCE)
    yield made
    made.end()


def test_a_job_that_always_kills_its_process_becomes_a_dead_letter_and_those_claimed_with_it_run(
    crew,
):
    # Quick ones at first, for the worker to claim many at a time.
    crew.call("len(single.map(range(200)))")
    poison = crew.call("[single.map(range(40)), poison(0), single.map(range(40))][1].id")
    crew.start("-c", "2", "--processes", "2")

    crew.wait_until_empty()
    assert [(id_, task) for id_, task, _ in crew.call("letters()")] == [(poison, "app.poison")]
    begun = [one["id"] for one in crew.events("begin")]
    assert 3 <= begun.count(poison) <= 4
    assert len({one["id"] for one in crew.events("end")}) == 280


def test_what_runs_beside_a_job_that_always_kills_its_process_is_no_dead_letter(crew):
    poison = crew.call("[slow.map([1.5] * 3), poison(3)][1].id")
    crew.start("-c", "4")

    def tend():
        if crew.workers[-1].was_killed:
            crew.start("-c", "4")
        return not any(crew.sizes())

    crew.wait_for(tend, 60)
    assert [(id_, task) for id_, task, _ in crew.call("letters()")] == [(poison, "app.poison")]
    assert len({one["id"] for one in crew.events("end")}) == 3
