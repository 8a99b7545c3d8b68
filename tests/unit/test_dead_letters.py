"""Jobs that finally failed."""

import os
from dataclasses import replace

import pytest

from uwsgi_tasks.codec import encode
from uwsgi_tasks.dead_letters import DeadLetters
from uwsgi_tasks.errors import StoreError, SubmitError, TasksError
from uwsgi_tasks.handle import JobHandle
from uwsgi_tasks.model import DeadLetter, Job
from uwsgi_tasks.settings import Settings
from uwsgi_tasks.signing import Signer
from uwsgi_tasks.spool_file import PREFIX, bury, pack_variables
from uwsgi_tasks.stores.memory import MemoryStore

JOB = Job("3f-1", "shop.send", (1,))
LETTER = DeadLetter(
    id="3f-1",
    task="shop.send",
    executor="mule",
    attempt=3,
    failed_at=1_700_000_000.25,
    error="OSError: no such höst",
    traceback="Traceback\n  half: \udc80",
    worker="web1:4711 mule",
    payload=encode([JOB]),
)
FOREIGN = replace(
    LETTER,
    id="web1_1",
    task="",
    executor="spooler",
    payload=b"theirs",
    variables=pack_variables({"key": b"\xff\x00", "other": ""}),
)
OURS, THEIRS = "our secret", "their secret"


class Store(MemoryStore):
    """A store that all share, and that can be away."""

    shared = True
    away = False

    def __init__(self):
        super().__init__("memory://", "")
        self.refused = set()

    def bury(self, letter):
        if self.away or letter.id in self.refused:
            raise StoreError("nobody is at home")
        super().bury(letter)


class Submitter:
    """Takes what is submitted again, or refuses it."""

    refuses = False

    def __init__(self):
        self.jobs, self.raw = [], []

    def resubmit(self, job, executor, changes):
        if self.refuses:
            raise SubmitError("no space left")
        self.jobs.append((job, executor, changes))
        return JobHandle(job.id)

    def put_back(self, variables, body):
        self.raw.append((variables, body))


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def submitter():
    return Submitter()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "dead"


@pytest.fixture
def letters_of(store, submitter, folder):
    def letters_of(*more, **settings):
        chosen = Settings(**settings)
        return DeadLetters(
            lambda: store, lambda: folder, lambda: [folder, *more], lambda: chosen, submitter
        )

    return letters_of


@pytest.fixture
def dead(letters_of):
    return letters_of()


# --- keeping


def test_a_dead_letter_is_kept_in_the_store(dead, store, folder):
    assert dead.keep(LETTER) == "the store"
    assert (store.find_dead("3f-1"), folder.exists()) == (LETTER, False)


def test_while_the_store_is_away_a_dead_letter_is_a_file(dead, store, folder, caplog):
    store.away = True
    where = dead.keep(LETTER)
    assert [str(file) for file in folder.iterdir()] == [where]
    assert "the store did not take a dead letter: nobody is at home" in caplog.text


def test_a_dead_letter_that_nobody_takes_is_an_error(dead, store, folder):
    store.away = True
    folder.touch()
    with pytest.raises(SubmitError):
        dead.keep(LETTER)


@pytest.mark.parametrize("letter", [LETTER, FOREIGN], ids=["ours", "foreign"])
@pytest.mark.parametrize(
    "look",
    [
        lambda dead, letter: dead.list(),
        lambda dead, letter: [dead.get(letter.id)],
    ],
    ids=["list", "get"],
)
def test_when_the_store_is_back_it_takes_the_files(dead, store, folder, letter, look):
    store.away = True
    dead.keep(letter)
    store.away = False
    assert look(dead, letter) == [letter]
    assert list(folder.iterdir()) == []


def test_files_are_counted_too(dead, store):
    store.away = True
    dead.keep(LETTER)
    store.away = False
    assert (dead.count(), dead.count("shop.send"), dead.count("other")) == (1, 1, 0)


def test_files_of_all_spoolers_are_taken(letters_of, tmp_path):
    bury(tmp_path / "other", {"id": "3f-9"}, b"x")
    assert letters_of(tmp_path / "other").get("3f-9").payload == b"x"


def test_files_that_the_store_does_not_take_stay(dead, store, folder, caplog):
    store.away = True
    dead.keep(LETTER)
    assert dead.list() == []
    assert "a dead letter stays in" in caplog.text
    assert len(list(folder.iterdir())) == 1


def test_one_that_the_store_does_not_take_hides_no_other(dead, store, folder, caplog):
    for number in range(3):
        bury(folder, {"id": f"3f-{number}"}, b"x")
    store.refused.add("3f-1")
    assert {letter.id for letter in dead.list()} == {"3f-0", "3f-2"}
    assert len(list(folder.iterdir())) == 1
    assert "a dead letter stays in" in caplog.text


def test_a_store_that_is_away_is_not_asked_for_each_file(dead, store, folder, caplog):
    for number in range(20):
        bury(folder, {"id": f"3f-{number}"}, b"x")
    store.away = True
    dead.adopt()
    assert len(caplog.records) == 3
    store.away = False
    assert len(dead.list()) == 20


def test_a_file_that_somebody_else_has_just_taken_is_no_fault(dead, store, folder, monkeypatch):
    bury(folder, {}, b"x")
    monkeypatch.setattr(os, "listdir", lambda _folder: [f"{PREFIX}gone"])
    assert dead.list() == []


def test_a_file_that_may_not_be_read_hides_no_other(dead, folder, caplog):
    bury(folder, {"id": "3f-9"}, b"x")
    (folder / f"{PREFIX}0").mkdir()
    assert [letter.id for letter in dead.list()] == ["3f-9"]
    assert f"a dead letter stays in {folder / f'{PREFIX}0'}" in caplog.text


def test_other_files_are_left_alone(dead, folder):
    folder.mkdir()
    (folder / "README").touch()
    assert (dead.adopt(), dead.list(), (folder / "README").exists()) == (0, [], True)


def test_without_a_folder_there_are_no_files(dead):
    assert dead.adopt() == 0


def test_a_file_that_cannot_be_read_is_taken_as_it_is(dead, folder):
    folder.mkdir()
    (folder / f"{PREFIX}cut").write_bytes(b"cut")
    (letter,) = dead.list()
    assert (letter.id, letter.payload, letter.attempt) == ("cut", b"cut", 1)
    assert letter.error.startswith("DecodeError: ")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"attempt": "many"}, {"attempt": 1}),
        ({"attempt": ""}, {"attempt": 1}),
        ({}, {"executor": "spooler", "task": "", "error": ""}),
    ],
)
def test_a_file_that_tells_little_is_taken_all_the_same(dead, folder, variables, expected):
    path = bury(folder, variables, b"x")
    os.utime(path, (1000, 1000))
    (letter,) = dead.list()
    assert {name: getattr(letter, name) for name in expected} == expected
    assert letter.id == path.name.removeprefix(PREFIX)
    assert letter.failed_at == 1000


@pytest.mark.parametrize("moment", ["2030-01-01T00:00:00+00:00", "nan", "inf", "soon"])
def test_a_time_that_is_none_is_that_of_the_file(dead, folder, moment):
    path = bury(folder, {"failed_at": moment}, b"x")
    os.utime(path, (1000, 1000))
    assert [letter.failed_at for letter in dead.list()] == [1000]


# --- looking


def test_pages_lead_from_one_to_the_next(dead):
    letters = [replace(LETTER, id=str(number), failed_at=number) for number in range(5)]
    for letter in letters:
        dead.keep(letter)
    first = dead.list(2)
    assert first == [letters[4], letters[3]]
    assert dead.list(2, first[-1]) == [letters[2], letters[1]]


def test_those_of_one_task_can_be_listed(dead):
    dead.keep(LETTER)
    dead.keep(replace(LETTER, id="2", task="other"))
    assert [letter.id for letter in dead.list(task="other")] == ["2"]


class Unknown:
    pass


def test_a_job_can_be_looked_at_and_nothing_is_executed(letters_of):
    letter = replace(LETTER, payload=encode([JOB._replace(args=(Unknown(),))]))
    job = letters_of(secret=OURS).job(letter)
    assert (job.id, repr(job.args)) == ("3f-1", f"(<{__name__}.Unknown()>,)")


def test_what_is_no_job_cannot_be_looked_at(dead):
    with pytest.raises(TasksError):
        dead.job(FOREIGN)


def test_what_is_not_there_is_not_found(dead):
    assert (dead.get("3f-1"), dead.remove("3f-1")) == (None, False)


def test_a_dead_letter_can_be_taken_away(dead):
    dead.keep(LETTER)
    assert (dead.remove("3f-1"), dead.list()) == (True, [])


# --- requeuing


def test_a_dead_job_is_submitted_again_and_is_dead_no_longer(dead, submitter):
    dead.keep(LETTER)
    assert dead.requeue("3f-1", priority=5).id == "3f-1"
    assert submitter.jobs == [(JOB, "mule", {"priority": 5})]
    assert dead.list() == []


def test_a_file_is_requeued_like_others(dead, store, submitter):
    store.away = True
    dead.keep(LETTER)
    store.away = False
    dead.requeue("3f-1")
    assert (submitter.jobs, dead.list()) == ([(JOB, "mule", {})], [])


def test_all_calls_of_a_dead_batch_are_submitted_again(dead, submitter):
    jobs = [JOB._replace(id=f"3f-2.{number}") for number in range(3)]
    dead.keep(replace(LETTER, id="3f-2.0", payload=encode(jobs)))
    assert dead.requeue("3f-2.0").id == "3f-2.0"
    assert [job for job, _, _ in submitter.jobs] == jobs


def test_what_is_not_ours_goes_back_as_it_was(dead, submitter):
    dead.keep(FOREIGN)
    assert dead.requeue("web1_1").id == "web1_1"
    assert (submitter.raw, dead.list()) == ([(FOREIGN.variables, b"theirs")], [])


def test_a_job_that_fails_again_at_once_is_a_dead_letter_again(dead, submitter):
    def fails_again(job, executor, changes):
        dead.keep(replace(LETTER, failed_at=LETTER.failed_at + 1, attempt=1))
        return JobHandle(job.id)

    dead.keep(LETTER)
    submitter.resubmit = fails_again
    dead.requeue("3f-1")
    assert dead.get("3f-1").failed_at == LETTER.failed_at + 1


def test_what_is_not_ours_cannot_be_changed(dead, submitter):
    dead.keep(FOREIGN)
    with pytest.raises(TasksError, match="it can only go back as it is"):
        dead.requeue("web1_1", priority=5)
    assert (submitter.raw, dead.count()) == ([], 1)


def test_a_dead_letter_that_is_not_there_cannot_be_requeued(dead):
    with pytest.raises(TasksError, match="there is no dead letter 3f-1"):
        dead.requeue("3f-1")


def test_what_is_not_taken_stays_dead_and_can_be_tried_again(dead, submitter):
    dead.keep(LETTER)
    submitter.refuses = True
    with pytest.raises(SubmitError):
        dead.requeue("3f-1")
    submitter.refuses = False
    before = dead.count()
    dead.requeue("3f-1")
    assert (before, dead.count(), len(submitter.jobs)) == (1, 0, 1)


def test_two_do_not_requeue_the_same(dead, store, submitter):
    dead.keep(LETTER)
    store.acquire("requeue 3f-1", "somebody else", 60)
    with pytest.raises(TasksError, match="3f-1 is being requeued by somebody else"):
        dead.requeue("3f-1")
    assert (submitter.jobs, dead.count()) == ([], 1)


@pytest.mark.parametrize("payload", [encode([JOB]), encode([JOB], Signer([THEIRS]))])
def test_what_we_have_not_signed_is_not_submitted(letters_of, submitter, payload):
    dead = letters_of(secret=OURS)
    dead.keep(replace(LETTER, payload=payload))
    with pytest.raises(TasksError, match=r"3f-1 cannot be submitted: .*sign"):
        dead.requeue("3f-1")
    assert (submitter.jobs, dead.count()) == ([], 1)


def test_what_we_have_signed_is_submitted(letters_of, submitter):
    dead = letters_of(secret=OURS)
    dead.keep(replace(LETTER, payload=encode([JOB], Signer([OURS]))))
    dead.requeue("3f-1")
    assert [job for job, _, _ in submitter.jobs] == [JOB]


# --- a store that ends with this process


@pytest.fixture
def fleeting(submitter, folder):
    """Return the letters of one more process, whose store is in its memory."""

    def fleeting():
        store = MemoryStore("memory://", "")
        return DeadLetters(lambda: store, lambda: folder, lambda: [folder], Settings, submitter)

    return fleeting


def test_letters_in_memory_outlive_their_process_in_files(fleeting):
    first = fleeting()
    first.keep(LETTER)
    first.outlive()
    assert fleeting().list() == [LETTER]


def test_the_log_says_once_where_letters_are_that_outlive_their_process(fleeting, folder, caplog):
    first = fleeting()
    first.keep(LETTER)
    first.outlive()
    first.outlive()
    assert caplog.messages == [
        f"the store ends with this process: its dead letters are in files, 1 in {folder}"
    ]


def test_letters_in_a_shared_store_are_not_written_into_files(dead, folder):
    dead.keep(LETTER)
    dead.outlive()
    assert (folder.exists(), dead.list()) == (False, [LETTER])


def test_who_only_looks_leaves_the_files_to_the_next(fleeting):
    first = fleeting()
    first.keep(LETTER)
    first.outlive()
    fleeting().list()
    assert fleeting().list() == [LETTER]


def test_who_ends_does_not_write_what_is_in_a_file_already(fleeting, folder):
    first = fleeting()
    first.keep(LETTER)
    first.outlive()
    second = fleeting()
    second.list()
    second.outlive()
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("how", ["remove", "requeue"])
def test_what_is_taken_away_is_gone_from_its_file_too(fleeting, folder, how):
    first = fleeting()
    first.keep(LETTER)
    first.outlive()
    getattr(fleeting(), how)(LETTER.id)
    assert list(folder.iterdir()) == []


def test_what_another_process_has_taken_away_is_not_shown_any_more(fleeting):
    first = fleeting()
    first.keep(LETTER)
    first.outlive()
    second = fleeting()
    second.list()
    fleeting().remove(LETTER.id)
    assert second.list() == []


def test_a_letter_that_cannot_be_written_does_not_take_others_along(fleeting, folder, caplog):
    first = fleeting()
    first.keep(LETTER)
    folder.write_text("in the way")
    first.outlive()
    assert f"dead letter {LETTER.id} is lost" in caplog.text
