"""Processes are killed at any moment, stores go away and disks are full: no job is lost."""

import contextlib
import http.client
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from tests.servers import mariadb, postgresql  # noqa: F401  fixtures
from tests.uwsgi.serving import EVENTS, ROOT, is_alive, session
from tests.uwsgi_coverage import environment

SEED = int(os.environ.get("KILLS_SEED") or random.SystemRandom().randrange(2**32))
"""Of the random killer. What the processes themselves do at which moment no seed can repeat."""
SOURCE = (Path(__file__).parent / "under_fire.py").read_text()
KEYS = range(5)
STEPS = [
    *(
        f"submitter {step}"
        for step in (
            "is about to write",
            "has opened the file",
            "has written",
            "is about to delay",
            "has delayed, and set no clock",
            "has delayed",
            "has claimed the key",
            "is about to confirm the key",
        )
    ),
    *(
        f"spooler {step}"
        for step in (
            "is about to settle",
            "has settled",
            "is about to move in",
            "has moved in",
            "is about to decode",
            "has decoded",
            "is about to call",
            "is in the function",
            "has called",
            "is about to bury",
            "has buried",
            "is about to count",
            "has counted",
            "is about to save the result",
            "has saved the result",
            "is about to release the key",
            "has released the key",
            "is about to follow up",
            "is about to write",
            "has opened the file",
            "has written",
            "is about to delay",
            "has delayed, and set no clock",
            "has followed up",
            "is about to note a call",
            "has noted a call",
            "is about to forget the calls",
            "has forgotten the calls",
            "is about to end",
            "has ended",
        )
    ),
]


class Storm:
    """A server whose processes are killed while it and others submit jobs."""

    def __init__(self, server, env, rng):
        self.server, self.rng = server, rng
        self.victims = []
        """The processes that were killed from here."""
        self.kills = 0
        self._armed = server.folder / "armed"
        self._enough = server.folder / "enough"
        self._env = env
        self._outside = self._submit_outside(0)
        self._worker = threading.Thread(target=self._submit_inside)
        self._failed = []

    def rage(self, kills, steps):
        """Kill so many processes at random, and one at each of *steps*."""
        self._worker.start()
        waiting = self.rng.sample(steps, len(steps))
        deadline = time.monotonic() + 60
        while self.kills < kills or waiting or any(self._armed.iterdir()):
            assert time.monotonic() < deadline, (self.kills, list(self._armed.iterdir()))
            # A few at a time, for a spooler that is respawned each second does nothing else.
            if waiting and len(list(self._armed.iterdir())) < 6:
                (self._armed / waiting.pop()).touch()
            if self.kills < kills:
                self._kill_one()
            if not is_alive(self._outside.pid):
                self._outside.wait()
                self._outside = self._submit_outside(1_000_000 + 1000 * len(self.victims))
            time.sleep(self.rng.uniform(0, 0.15))
        self._end()

    def _kill_one(self):
        master = self.server.pid
        self.kills += 1
        if self.rng.random() < 0.03:
            self.victims += self.server.crash()
            self.server.start()
            return
        pids = [pid for pid in session(master) if pid != master]
        victim = self.rng.choice([*pids, self._outside.pid])
        self.victims.append(victim)
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)

    def _submit_inside(self):
        number = 500_000_000
        while not self._enough.exists():
            number += 1
            # The worker, or the whole server, was killed meanwhile.
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                try:
                    if self.server.call("default_app.waiting()") < 60:
                        self.server.call(f"submit_each({number})")
                except AssertionError as error:
                    self._failed.append(error)
            time.sleep(0.05)

    def _submit_outside(self, first):
        env = environment(
            PYTHONPATH=os.pathsep.join([str(self.server.folder), str(ROOT)]),
            STAGE_EVENTS=str(self.server.folder / EVENTS),
            UWSGI_TASKS_SPOOLER_DIR=str(self.server.spool),
            **self._env,
        )
        with (self.server.folder / "outside.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", f"import app; app.submit_for_ever({first})"],
                cwd=self.server.folder,
                env=env,
                stdout=log,
                stderr=log,
            )

    def _end(self):
        """Let all that was submitted come to its end."""
        self._enough.touch()
        self._worker.join()
        self._outside.wait(30)
        assert not self._failed, self._failed[0]
        # Who died last of all may have delayed a job of which nobody else knows: the next one that
        # is delayed has it found, too.
        self.server.wait_for(self._submit_last)
        self.server.wait_for(lambda: not left(self.server), 60)

    def _submit_last(self):
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            self.server.call("submit_each(999_000_000)")
            return True
        return False

    def stop(self):
        """End what is not the server's."""
        self._enough.touch()
        self._outside.kill()
        self._outside.wait()


def left(server):
    """Return the spool files that are there; an empty one is no job, and uWSGI passes it over."""
    found = []
    for path in [*server.waiting(), *server.delayed()]:
        with contextlib.suppress(FileNotFoundError):
            found += [path] if path.stat().st_size else []
    return found


@dataclass(frozen=True)
class History:
    """What is known when all is over."""

    kills: int
    steps: set
    events: list
    victims: frozenset
    outcomes: dict
    letters: list
    counted: dict
    taken: list
    leftovers: list
    log: str

    def of(self, name):
        return [event for event in self.events if event["event"] == name]

    def submitted(self, *kinds):
        """Yield the id and the number of each call whose submission returned."""
        for event in self.of("submitted"):
            if event["kind"] in kinds or not kinds:
                yield from ((id_, event["number"]) for id_ in event["ids"])

    @cached_property
    def killed(self):
        """All that were killed, also by themselves at a step."""
        return self.victims | {event["pid"] for event in self.of("killed")}

    @cached_property
    def last_acts(self):
        """Of each process that was killed, what it did last of all with a job."""
        acts = {e["pid"]: e for e in self.events if e["event"] in {"begin", "end"}}
        return [event for pid, event in acts.items() if pid in self.killed]

    @cached_property
    def perhaps_counted_twice(self):
        """Counts that a process was handing over to the store when it was killed."""
        handing = defaultdict(Counter)
        for event in self.events:
            if event["event"] == "saving":
                for task, outcome, runs in event["counts"]:
                    handing[event["pid"]][task, outcome] += runs
            elif event["event"] == "saved":
                handing.pop(event["pid"], None)
        return sum((counts for pid, counts in handing.items() if pid in self.killed), Counter())


def look_back(storm):
    """Ask the server for all that it knows, and start it once more, which clears up."""
    server = storm.server
    ids = [
        id_
        for event in server.events("submitted")
        if event["kind"] in {"kept", "kept_map", "shaky", "doomed_at_once"}
        for id_ in event["ids"]
    ]
    # A key that was claimed by a process that then died is free after some seconds.
    keys = f"taken_keys('app.alone', {list(KEYS)})"
    with contextlib.suppress(AssertionError):
        server.wait_for(lambda: not server.call(keys), 15)
    known = {
        "outcomes": server.call(f"outcomes({ids})"),
        "letters": server.call("letters()"),
        "taken": server.call(keys),
    }
    server.stop()
    server.start()
    living = {str(pid) for pid in server.spooler_pids()}
    server.wait_for(lambda: living <= {path.name.partition(".")[0] for path in running(server)})
    # Whoever asks for the counts takes over those of the dead.
    known["counted"] = server.call("counted()")
    leftovers = [path.name for path in running(server)]
    leftovers = [name for name in leftovers if name.partition(".")[0] not in living]
    leftovers += [path.name for path in left(server) + server.dead_files()]
    server.stop()
    return History(
        kills=storm.kills,
        steps={path.name for path in (server.folder / "spent").iterdir()},
        events=server.events(),
        victims=frozenset(storm.victims),
        leftovers=leftovers,
        log=server.log,
        **known,
    )


def running(server):
    return list((server.spool / "running").iterdir())


STORMS = [
    pytest.param(("sqlite", 20, STEPS[::4]), id="briefly"),
    pytest.param(("sqlite", 70, STEPS), id="sqlite", marks=pytest.mark.slow),
    pytest.param(("postgresql", 70, STEPS), id="postgresql", marks=pytest.mark.slow),
    pytest.param(("mariadb", 70, STEPS), id="mariadb", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=STORMS)
def history(request, serve_module):
    """What has happened when all is over; the seed is shown with what fails."""
    store, kills, steps = request.param
    print(f"KILLS_SEED={SEED}")
    url = "" if store == "sqlite" else request.getfixturevalue(store).url
    env = {"STORE": url, "NAMESPACE": f"kills_{SEED}", "CRASH_LIMIT": "1000"}
    server = serve_module(SOURCE, spoolers=4, workers=2, env=env)
    make_steps(server)
    # That it can be told beforehand is the point.
    rng = random.Random(f"{SEED} {store}")
    storm = Storm(server, env, rng)
    try:
        storm.rage(kills, steps)
    finally:
        storm.stop()
    return look_back(storm)


def test_as_many_are_killed_as_was_said(history, request):
    _store, kills, steps = request.node.callspec.params["history"]
    assert history.kills >= kills
    assert history.steps == set(steps)


def test_every_job_whose_submission_returned_comes_to_its_end(history):
    ended = {event["id"] for event in history.of("end") if event["outcome"] != "retrying"}
    assert [id_ for id_, _ in history.submitted() if id_ not in ended] == []


def test_none_runs_again_after_its_end_unless_its_process_died_in_that_run(history):
    runs = Counter((event["id"], event["attempt"]) for event in history.of("begin"))
    ends = Counter((event["id"], event["attempt"]) for event in history.of("end"))
    deaths = Counter((event["id"], event["attempt"]) for event in history.last_acts)
    # Killed between the submission of the next attempt and its own end, a run makes both again.
    asked = {(id_, attempt): ends[id_, attempt - 1] if attempt > 1 else 1 for id_, attempt in runs}
    too_many = {
        key: (count, asked[key], deaths[key])
        for key, count in runs.items()
        if count > asked[key] + deaths[key]
    }
    assert too_many == {}


def test_no_file_and_no_trace_of_a_job_is_left(history):
    assert history.leftovers == []


def test_every_result_is_kept(history):
    expected = {id_: number * 2 for id_, number in history.submitted("kept", "kept_map", "shaky")}
    expected |= {id_: "ValueError" for id_, _ in history.submitted("doomed_at_once")}
    assert history.outcomes == expected


def test_what_failed_for_good_is_a_dead_letter_and_nothing_else_is(history):
    failed = {event["id"] for event in history.of("end") if event["outcome"] == "failed"}
    assert sorted(id_ for id_, _, _ in history.letters) == sorted(failed)


def test_the_counts_add_up(history):
    """A run is counted after its end: one that was killed in between is missing.

    Counts that a process had handed over to the store, and not yet taken off its own when it was
    killed, are handed over again by the next one.
    """
    ended = Counter((event["task"], event["outcome"]) for event in history.of("end"))
    missing = Counter(
        (event["task"], event["outcome"]) for event in history.last_acts if event["event"] == "end"
    )
    twice = history.perhaps_counted_twice
    off = {
        key: (history.counted.get(key, 0), count, missing[key], twice[key])
        for key, count in ended.items()
        if not count - missing[key] <= history.counted.get(key, 0) <= count + twice[key]
    }
    assert off == {}
    assert history.counted.keys() <= ended.keys()


def test_every_unique_key_is_free(history):
    assert history.taken == []


def test_no_process_has_stumbled_over_the_doings_of_another(history):
    assert "something horrible happened" not in history.log
    assert "could not be counted" not in history.log


# ---- a poisonous task


def test_a_job_that_always_kills_its_process_is_a_dead_letter_and_frees_its_key(serve):
    server = fierce(serve, limit=3)
    job = server.call("poison(1).id")

    server.wait_for(lambda: server.call("letters()"))
    server.wait_for(lambda: not left(server))
    ((id_, name, error),) = server.call("letters()")
    assert (id_, name) == (job, "app.poison")
    assert "its process died too often" in error
    assert len(server.events("begin")) == 3
    assert server.call(f"default_app.job({job!r}).state == 'failed'")
    assert server.call("taken_keys('app.poison', ['poison'])") == []


def fierce(serve, *, limit=1000, store="", spoolers=1, **options):
    env = {"STORE": store, "NAMESPACE": f"kills_{SEED}_{limit}", "CRASH_LIMIT": str(limit)}
    server = serve(SOURCE, spoolers=spoolers, env=env, **options)
    make_steps(server)
    return server


def make_steps(server):
    for name in ("armed", "spent"):
        (server.folder / name).mkdir()


# ---- a dead letter that is requeued before its file has gone


def test_a_dead_letter_that_is_requeued_before_its_file_has_gone_runs_again(serve):
    server = fierce(serve)
    (server.folder / "held").touch()
    job = server.call("slow_to_bury(1).id")
    server.wait_for(lambda: server.call("letters()"))
    (server.folder / "mended").touch()
    server.call(f"default_app.dead.requeue({job!r}).id")
    (server.folder / "held").unlink()

    server.wait_for_events("begin", 2)
    server.wait_for(lambda: not left(server))
    assert server.call("letters()") == []


# ---- a store that goes away


@pytest.mark.slow
def test_while_the_store_is_away_jobs_go_on_and_dead_letters_wait_in_files(serve, request):
    database = request.getfixturevalue("postgresql")
    server = fierce(serve, limit=999, store=database.url, spoolers=2, workers=2)
    (server.folder / "loose").touch()
    number = iter(range(10**6))

    def submit(rounds):
        for _ in range(rounds):
            server.call(f"submit_each({next(number)})")

    submit(3)
    database.stop()
    try:
        submit(5)
        os.kill(server.spooler_pids()[0], signal.SIGKILL)
        submit(5)
        server.wait_for(lambda: len(server.dead_files()) >= 10)
    finally:
        database.start()
    back = time.time()
    submit(3)
    server.wait_for(lambda: not left(server), 60)

    ended = {e["id"] for e in server.events("end") if e["outcome"] != "retrying"}
    submitted = [(e, id_) for e in server.events("submitted") for id_ in e["ids"]]
    assert [id_ for _, id_ in submitted if id_ not in ended] == []
    failed = {e["id"] for e in server.events("end") if e["outcome"] == "failed"}
    assert sorted(one[0] for one in server.call("letters()")) == sorted(failed)
    assert server.dead_files() == []
    kept = {
        id_: e["number"] * 2 for e, id_ in submitted if e["time"] > back and e["kind"] == "kept"
    }
    assert server.call(f"outcomes({list(kept)})") == kept
    ends = Counter((e["id"], e["attempt"]) for e in server.events("end"))
    # One spooler was killed, in the middle of one run: that may be made again, and what follows.
    assert len({id_ for (id_, _), times in ends.items() if times > 1}) <= 1
    assert max(ends.values()) <= 2
    runs = sum(server.call("counted()").values())
    assert sum(ends.values()) - 1 <= runs <= sum(ends.values())


# ---- a disk that is full


@pytest.fixture
def small_disk(tmp_path):
    """A folder with room for a few files, and a function that fills it."""
    if os.geteuid():
        pytest.skip("only root can mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    size = "size=1m,mode=700"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], check=False)
    if mounted.returncode:
        pytest.skip("this system lets nobody mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder):
    """Leave no room at all; return what takes it."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return ballast


def test_a_submit_to_a_full_disk_is_refused_and_leaves_nothing(serve, small_disk):
    spool = small_disk / "spool"
    server = fierce(serve, spool=spool)
    server.call("single(1)")
    server.wait_for_events("end")
    server.wait_for(lambda: not left(server))
    before = {path for path in spool.rglob("*") if "spoolfile" in path.name}
    ballast = fill(small_disk)
    for call in ("single(2)", "delayed(2)", "mapped.map(range(5))", "single('x' * 70_000)"):
        refused = f"try: {call}\nexcept SubmitError: record('refused')"
        server.call(f"from uwsgi_tasks import SubmitError\n{refused}")

    assert len(server.events("refused")) == 4
    assert {path for path in spool.rglob("*") if "spoolfile" in path.name} == before
    ballast.unlink()
    server.call("single(3)")
    server.wait_for_events("end", 2)


@pytest.mark.slow
def test_a_dead_letter_for_which_there_is_no_room_stays_a_job_until_there_is(serve, small_disk):
    server = fierce(serve, spool=small_disk / "spool")
    server.call("single(1)")
    server.wait_for_events("end")
    server.call("letters()")
    spooler = server.spooler_pids()[0]
    os.kill(spooler, signal.SIGSTOP)
    server.call("slow_to_bury(1)")
    ballast = fill(small_disk)
    os.kill(spooler, signal.SIGCONT)

    server.wait_for(lambda: "stays in the spooler" in server.log)
    assert left(server)
    ballast.unlink()
    server.wait_for(lambda: not left(server))
    assert [name for _, name, _ in server.call("letters()")] == ["app.slow_to_bury"]
