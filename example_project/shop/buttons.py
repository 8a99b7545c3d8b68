"""What the page can start: for each button a few words, and the call that it makes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from random import choice

from django.utils import timezone

from shop import tasks
from shop.models import JobRecord, Order, State
from uwsgi_tasks.errors import TasksError

BOOKS = (
    ("Invisible Cities", 1450),
    ("The Summer Book", 1290),
    ("Labyrinths", 1600),
    ("The Left Hand of Darkness", 1190),
    ("Austerlitz", 1820),
)
TEN_SECONDS = timedelta(seconds=10)
LABELS = 12

Records = Sequence[JobRecord]


@dataclass(frozen=True, kw_only=True)
class Button:
    """One thing that the page can start."""

    kind: str
    title: str
    text: str
    code: str
    """The call that *start* makes, as the page shows it."""
    job: str
    """What a job of it is called, with {number} where there are several."""
    start: Callable[[Records], object]
    executor: str = "spooler"
    jobs: int = 1
    wait: timedelta | None = None


def place_order(records: Records) -> None:
    """Save an order, as a shop would, and leave the mail to a spooler."""
    book, cents = choice(BOOKS)
    reader = f"{choice(tasks.READERS)}@books.example"
    order = Order.objects.create(book=book, cents=cents, reader=reader)
    tasks.confirm_order(records[0].pk, order.pk)


BUTTONS = {
    button.kind: button
    for button in (
        Button(
            kind="order",
            title="Place an order",
            text="Saves it; a spooler sends the mail.",
            code="confirm_order(order.pk)",
            job="Order confirmation",
            start=place_order,
        ),
        Button(
            kind="courier",
            title="Book a courier",
            text="Busy twice. Tries again by itself.",
            code="Retry(attempts=4, delay=2, backoff=2)",
            job="Courier booking",
            start=lambda records: tasks.book_courier(records[0].pk),
        ),
        Button(
            kind="reminder",
            title="Remind in 10 seconds",
            text="Waits where it disturbs no one.",
            code=".using(at=timedelta(seconds=10))",
            job="Reminder mail",
            start=lambda records: tasks.remind.using(at=TEN_SECONDS)(records[0].pk),
            wait=TEN_SECONDS,
        ),
        Button(
            kind="newsletter",
            title="Send the newsletter",
            text="One reader a step, with a buffer.",
            code="return current_task()",
            job="Newsletter",
            start=lambda records: tasks.send_newsletter(records[0].pk),
        ),
        Button(
            kind="stock",
            title="Take stock",
            text="Says how far it is, and can be stopped.",
            code="get_current_task().progress(3, 12)",
            job="Stocktaking",
            start=lambda records: tasks.take_stock(records[0].pk),
        ),
        Button(
            kind="labels",
            title=f"Print {LABELS} labels",
            text="One call, one spool file, twelve jobs.",
            code="print_label.map(orders)",
            job="Label {number}",
            start=lambda records: tasks.print_label.map([record.pk for record in records]),
            jobs=LABELS,
        ),
        Button(
            kind="report",
            title="Draw the sales report",
            text="A mule draws it, in memory and at once.",
            code='@task(executor="mule")',
            job="Sales report",
            start=lambda records: tasks.draw_report(records[0].pk),
            executor="mule",
        ),
        Button(
            kind="card",
            title="Charge an expired card",
            text="Fails for good; kept as a dead letter.",
            code="raise PaymentDeclined(…)",
            job="Card payment",
            start=lambda records: tasks.charge_card(records[0].pk),
        ),
        Button(
            kind="crash",
            title="Pull the plug",
            text="Kills its own process, and runs again.",
            code="os.kill(os.getpid(), SIGKILL)",
            job="Job that gets killed",
            start=lambda records: tasks.pull_the_plug(records[0].pk),
        ),
    )
}


def press(button: Button) -> list[JobRecord]:
    """Submit the jobs of *button*, and return their records."""
    now = timezone.now()
    due = now + button.wait if button.wait else None
    # Before the jobs are submitted: a spooler may be done with one before the call returns.
    records = [
        JobRecord.objects.create(
            kind=button.kind,
            title=button.job.format(number=number),
            executor=button.executor,
            created_at=now,
            due_at=due,
        )
        for number in range(1, button.jobs + 1)
    ]
    try:
        button.start(records)
    except TasksError as error:
        JobRecord.objects.filter(pk__in=[record.pk for record in records]).update(
            state=State.FAILED, ended_at=timezone.now(), error=f"Not submitted: {error}"
        )
    return records
