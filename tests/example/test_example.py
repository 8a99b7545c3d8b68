"""The example project, started as a newcomer starts it, and clicked through."""

from __future__ import annotations

import email
import email.policy
import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.servers import free_port
from tests.uwsgi_coverage import environment
from uwsgi_tasks import App

ROOT = Path(__file__).parent.parent.parent
# Fewer jobs in all than the page shows of one state.
ENDS = {
    # button: how many jobs, the state in which they end, their runs, and what is said of them
    "order": (1, "done", 1, "mail sent to"),
    "courier": (1, "done", 3, "Booked at attempt 3"),
    "reminder": (1, "done", 1, "Reminder sent"),
    "newsletter": (1, "done", 5, "Sent to ada, borges, clarice, dante, emily"),
    "stock": (1, "done", 1, "12 shelves counted"),
    "labels": (12, "done", 1, ""),
    "report": (1, "done", 1, "Drawn from"),
    "card": (1, "failed", 2, "PaymentDeclined: the card ended in 1999"),
    "crash": (1, "done", 2, "run 2 made it good"),
}


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} seconds: {what}"
        time.sleep(0.1)
    return found


class Shop:
    """A copy of the example in *folder*, run by run.py, with a browser that looks at it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.var = folder / "example_project" / "var"
        ignored = shutil.ignore_patterns("var", "__pycache__")
        shutil.copytree(ROOT / "example_project", folder / "example_project", ignore=ignored)
        shutil.copy(ROOT / "uwsgi.ini", folder)

    def start(self, port: int = 0) -> None:
        """Start it in a session of its own, as in a terminal, and wait until it answers."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        log = self.folder / "terminal.log"
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "example_project/run.py"],
                cwd=self.folder,
                env=environment(PORT=str(port or free_port()), PYTHONPATH=path),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        found = wait_until(
            lambda: (
                re.search(r"Open (http://127\.0\.0\.1:(\d+)/)", log.read_text())
                or (self.process.poll() is not None and pytest.fail(log.read_text()))
            ),
            "run.py says where to look",
        )
        self.address, self.port = found[1], int(found[2])
        cookies = urllib.request.HTTPCookieProcessor(CookieJar())
        self.browser = urllib.request.build_opener(cookies)
        self.page = self.get("")

    @property
    def master(self) -> int:
        log = (self.var / "uwsgi.log").read_text()
        return int(re.findall(r"spawned uWSGI master process \(pid: (\d+)\)", log)[-1])

    def get(self, path: str) -> str:
        with self.browser.open(self.address + path, timeout=10) as answer:
            return answer.read().decode()

    def post(self, path: str, **fields: Any) -> Any:
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', self.page)[1]
        request = urllib.request.Request(
            self.address + path,
            data=urlencode({"csrfmiddlewaretoken": token, **fields}).encode(),
            headers={"Accept": "application/json"},
        )
        with self.browser.open(request, timeout=10) as answer:
            return json.load(answer)

    def press(self, kind: str) -> list[int]:
        return self.post("submit", job=kind)["submitted"]

    def counts(self) -> dict[str, int]:
        return json.loads(self.get("jobs.json"))["counts"]

    def jobs(self) -> dict[int, dict[str, Any]]:
        sections = json.loads(self.get("jobs.json"))["sections"]
        return {job["id"]: job for section in sections for job in section["jobs"]}

    def wait_for(self, key: int, phase: str, runs: int = 0) -> dict[str, Any]:
        """Wait until job *key* has ended so, after at least so many runs."""

        def ended() -> dict[str, Any] | None:
            # While uWSGI starts anew, its port may refuse.
            job = (_quietly(self.jobs) or {}).get(key)
            return job if job and job["phase"] == phase and job["runs"] >= runs else None

        return wait_until(ended, f"job {key} is {phase}")

    def signal(self, number: int) -> int:
        """Send a signal to all of the terminal's processes, as Ctrl-C does; return the code."""
        os.killpg(self.process.pid, number)
        return self.process.wait(timeout=20)

    def is_gone(self) -> bool:
        """Is neither a process left of it, nor a port?"""
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                return False
        try:
            os.killpg(self.master, 0)
        except ProcessLookupError:
            return True
        return False

    def clean_up(self) -> None:
        """Stop it, however far it got."""
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(self.master, signal.SIGKILL)
            self.process.kill()
            self.process.wait()
            raise


@pytest.fixture(scope="session")
def needs() -> None:
    """Skip without uWSGI and Django; in CI, where that is a mistake of the set-up, fail."""
    missing = [
        name for name in ("pyuwsgi", "django", "sqlalchemy") if not importlib.util.find_spec(name)
    ]
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"needs {' and '.join(missing)}")


@pytest.fixture
def shop(needs: None, tmp_path: Path) -> Iterator[Shop]:
    """An example of one's own."""
    shop = Shop(tmp_path)
    shop.start()
    yield shop
    shop.clean_up()


@pytest.fixture(scope="module")
def busy_shop(needs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """One example for many tests; each button has been pressed once."""
    shop = Shop(tmp_path_factory.mktemp("shop"))
    shop.start()
    try:
        shop.keys = {kind: shop.press(kind) for kind in ENDS}
        yield shop
    finally:
        shop.clean_up()


def test_it_starts_takes_an_order_and_stops_with_ctrl_c(shop):
    (key,) = shop.press("order")
    job = shop.wait_for(key, "done")

    assert "mail sent to" in job["note"]
    assert shop.signal(signal.SIGINT) == 0
    wait_until(shop.is_gone, "nothing is left of it")


def test_the_page_names_every_button_and_forbids_foreign_scripts(shop):
    assert set(re.findall(r'name="job" value="(\w+)"', shop.page)) == set(ENDS)
    assert "Nothing is waiting" in shop.page

    with shop.browser.open(shop.address) as answer:
        assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
    for path in ("static/shop/shop.css", "static/shop/shop.js", "static/shop/lantern.svg"):
        with shop.browser.open(shop.address + path) as answer:
            assert answer.headers["Content-Type"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENDS)
def test_a_button_leads_to_its_end(busy_shop, kind):
    number, phase, runs, said = ENDS[kind]

    keys = busy_shop.keys[kind]
    # The last one: of many that are done, the page shows the latest.
    job = busy_shop.wait_for(keys[-1], phase, runs)

    assert len(keys) == number
    assert job["runs"] == runs
    assert said in job["note"] + job["error"]


@pytest.mark.slow
def test_nothing_is_left_pending(busy_shop):
    total = sum(number for number, *_ in ENDS.values())

    counts = wait_until(
        lambda: (counts := busy_shop.counts())["done"] + counts["failed"] >= total and counts,
        "all jobs have ended",
    )

    assert (counts["pending"], counts["delayed"], counts["running"]) == (0, 0, 0)


@pytest.mark.slow
def test_the_mails_are_files(busy_shop):
    busy_shop.wait_for(busy_shop.keys["reminder"][0], "done")
    busy_shop.wait_for(busy_shop.keys["newsletter"][0], "done")

    mails = [
        email.message_from_string(text, policy=email.policy.default)
        for path in (busy_shop.var / "mail").iterdir()
        for text in re.split(r"^-{79}\n", path.read_text(), flags=re.MULTILINE)
        if text.strip()
    ]

    news = [mail["To"] for mail in mails if mail["Subject"] == "News from Lantern Books"]
    assert sorted(news) == [
        f"{reader}@books.example" for reader in ("ada", "borges", "clarice", "dante", "emily")
    ]
    assert sum(mail["Subject"] == "Your basket misses you" for mail in mails) == 1
    assert sum("Your order" in mail["Subject"] for mail in mails) == 1


@pytest.mark.slow
def test_the_timer_and_the_cron_tick(busy_shop):
    def ticks() -> list[int]:
        panel = json.loads(busy_shop.get("jobs.json"))["clock"]
        return [int(number) for number in re.findall(r"tick (\d+)", panel)]

    first = wait_until(lambda: len(ticks()) == 2 and ticks(), "both have ticked", 65)
    wait_until(lambda: ticks()[0] > first[0], "the timer has ticked again", 20)


@pytest.mark.slow
def test_the_report_is_a_picture(busy_shop):
    busy_shop.wait_for(busy_shop.keys["report"][0], "done")

    with busy_shop.browser.open(busy_shop.address + "report.svg") as answer:
        assert answer.headers["Content-Type"] == "image/svg+xml"
        assert answer.read().startswith(b"<svg")


@pytest.mark.slow
def test_a_dead_letter_can_be_requeued(busy_shop):
    (key,) = busy_shop.keys["card"]
    busy_shop.wait_for(key, "failed")
    dead = App(spooler_dir=str(busy_shop.var / "spooler")).dead
    (letter,) = wait_until(dead.list, "the dead letter")

    busy_shop.post("requeue", job=key)

    # One more run, which fails as well, and leaves a letter of its own.
    busy_shop.wait_for(key, "failed", runs=3)
    wait_until(lambda: dead.list() not in ([], [letter]), "the second letter")


@pytest.mark.slow
def test_a_running_job_shows_how_far_it_is_and_can_be_stopped(shop):
    (key,) = shop.press("stock")
    wait_until(lambda: "<progress" in shop.jobs()[key]["html"], "the progress is shown")

    shop.post("stop", job=key)

    assert "Stopped before shelf" in shop.wait_for(key, "done")["note"]


@pytest.mark.slow
def test_runs_are_drawn_by_the_minute(shop):
    (key,) = shop.press("order")
    shop.wait_for(key, "done")

    wait_until(
        lambda: "1 succeeded" in json.loads(shop.get("jobs.json"))["pulse"], "the run is drawn"
    )


@pytest.mark.slow
def test_a_plain_form_does_what_the_script_does(busy_shop):
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', busy_shop.page)[1]
    fields = {"csrfmiddlewaretoken": token, "job": "order"}
    before = sum(busy_shop.counts().values())

    with busy_shop.browser.open(
        busy_shop.address + "submit", data=urlencode(fields).encode(), timeout=10
    ) as answer:
        assert answer.url == busy_shop.address
        assert "Order confirmation" in answer.read().decode()

    assert sum(busy_shop.counts().values()) == before + 1


@pytest.mark.slow
@pytest.mark.parametrize("path", ["submit", "requeue", "stop", "clear"])
def test_changes_need_a_post_with_a_token(busy_shop, path):
    for data, code in ((None, 405), (b"job=order", 403)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            busy_shop.browser.open(busy_shop.address + path, data=data, timeout=10)
        assert refused.value.code == code
        refused.value.close()


@pytest.mark.slow
def test_the_list_of_what_is_done_can_be_cleared(shop):
    (key,) = shop.press("order")
    shop.wait_for(key, "done")

    assert shop.post("clear") == {"cleared": 1}
    assert shop.jobs() == {}


@pytest.mark.slow
def test_a_command_in_a_second_terminal_adds_jobs(shop):
    subprocess.run(
        [sys.executable, "example_project/manage.py", "place_orders", "2"],
        cwd=shop.folder,
        env=environment(PYTHONPATH=str(ROOT)),
        check=True,
        timeout=30,
        # A warning would puzzle whoever tries it.
        stderr=subprocess.PIPE,
    )

    wait_until(lambda: shop.counts()["done"] == 2, "both orders are confirmed")


@pytest.mark.slow
def test_what_a_stop_interrupts_is_done_after_the_next_start(shop):
    shop.press("order")
    (key,) = shop.press("reminder")
    assert shop.signal(signal.SIGTERM) == 0
    wait_until(shop.is_gone, "nothing is left of it")

    shop.start()

    shop.wait_for(key, "done")
    wait_until(lambda: shop.counts()["done"] == 2, "the order is done, too")


@pytest.mark.slow
def test_a_reload_loses_nothing(shop):
    keys = [shop.press(kind)[0] for kind in ("newsletter", "order")]
    os.kill(shop.master, signal.SIGHUP)
    time.sleep(1)

    for key in keys:
        # While uWSGI starts anew, its port may refuse.
        wait_until(lambda: _quietly(shop.counts), "the server answers again")
        shop.wait_for(key, "done")


def _quietly(question: Callable[[], Any]) -> Any:
    try:
        return question()
    except (OSError, http.client.HTTPException):
        return None


@pytest.mark.slow
def test_a_second_start_is_refused(shop):
    second = subprocess.run(
        [sys.executable, "example_project/run.py"],
        cwd=shop.folder,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert second.returncode == 1
    assert "running already" in second.stdout
    assert shop.counts()["failed"] == 0


@pytest.mark.slow
def test_a_port_that_is_taken_is_left_alone(needs, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        shop = Shop(tmp_path)
        try:
            shop.start(port)
            assert shop.port != port
        finally:
            shop.clean_up()
