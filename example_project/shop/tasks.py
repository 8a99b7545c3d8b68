"""The jobs of the shop, one for each thing that uwsgi_tasks does."""

import os
import signal
import time
from typing import Any

from django.conf import settings
from django.core.mail import send_mail
from django.db.models import Sum

from shop import report
from shop.models import JobRecord, Order
from shop.records import goes_on, recorded
from uwsgi_tasks import Retry, TaskExecutor, get_current_task, task

READERS = ("ada", "borges", "clarice", "dante", "emily")
SHELVES = 12
REPORT = settings.VAR / "report.svg"
BUSY = Retry(attempts=4, delay=2, backoff=2, on=ConnectionError)
CARD = Retry(attempts=2, delay=1)


class PaymentDeclined(Exception):
    """The bank said no."""


def pretend_to_work(seconds: float) -> None:
    """Take as long as a mail server or a printer would, so that there is something to see."""
    time.sleep(seconds)


@task(executor=TaskExecutor.SPOOLER)
@recorded()
def confirm_order(_record: int, order_id: int) -> str:
    """Send the mail that confirms an order."""
    order = Order.objects.get(pk=order_id)
    pretend_to_work(0.8)
    send_mail(
        f"Your order {order.pk}",
        f"Thank you for ordering “{order.book}”. It costs €{order.cents / 100:.2f}.",
        None,
        [order.reader],
    )
    return f"“{order.book}”: mail sent to {order.reader}"


@task(executor=TaskExecutor.SPOOLER, retry=BUSY)
@recorded(BUSY)
def book_courier(_record: int) -> str:
    """Call the courier, whose line is busy twice: ``Retry`` calls again by itself."""
    attempt = get_current_task().attempt
    pretend_to_work(0.6)
    if attempt < 3:
        raise ConnectionError("the line is busy")
    return f"Booked at attempt {attempt}: collected tomorrow at nine"


@task(executor=TaskExecutor.SPOOLER)
@recorded()
def remind(_record: int) -> str:
    """Send a mail at the time that the call asked for."""
    send_mail("Your basket misses you", "There is still a book in it.", None, ["ada@books.example"])
    return "Reminder sent to ada@books.example"


@task(executor=TaskExecutor.SPOOLER)
@recorded()
def send_newsletter(record: int) -> str | Any:
    """Write to one reader, then submit the same job again for the next one.

    The buffer goes with it from step to step, and says who has got the letter.
    """
    current_task = get_current_task()
    sent = current_task.buffer.setdefault("sent", [])
    reader = READERS[len(sent)]
    pretend_to_work(0.7)
    send_mail("News from Lantern Books", "The new books are in.", None, [f"{reader}@books.example"])
    sent.append(reader)
    if len(sent) == len(READERS):
        return f"Sent to {', '.join(sent)}"
    goes_on(record, f"{len(sent)} of {len(READERS)} readers: {', '.join(sent)}")
    return current_task(record)


@task(executor=TaskExecutor.SPOOLER)
@recorded()
def take_stock(_record: int) -> str:
    """Count the books shelf by shelf, say how far it is, and stop when it is asked to."""
    current_task = get_current_task()
    for shelf in range(1, SHELVES + 1):
        if current_task.cancelled:
            return f"Stopped before shelf {shelf}"
        pretend_to_work(0.4)
        current_task.progress(shelf, SHELVES)
    return f"{SHELVES} shelves counted; nothing is missing"


@task(executor=TaskExecutor.SPOOLER)
@recorded()
def print_label(_record: int) -> str:
    """Print one label of a batch that came in one spool file."""
    pretend_to_work(0.3)
    return ""


@task(executor=TaskExecutor.MULE)
@recorded()
def draw_report(_record: int) -> str:
    """Draw the sales, in a mule: at once, and gone if the server stops meanwhile."""
    sales = Order.objects.values_list("book").annotate(cents=Sum("cents")).order_by("-cents")
    pretend_to_work(1.2)
    report.save(report.draw(list(sales)), REPORT)
    return f"Drawn from {Order.objects.count()} orders"


@task(executor=TaskExecutor.SPOOLER, retry=CARD)
@recorded(CARD)
def charge_card(_record: int) -> str:
    """Fail, whatever one does: when its attempts are used up, the job becomes a dead letter."""
    pretend_to_work(0.5)
    raise PaymentDeclined("the card ended in 1999")


@task(executor=TaskExecutor.SPOOLER)
@recorded()
def pull_the_plug(record: int) -> str:
    """Kill the process in the middle of the first run; the spool file is still there."""
    pretend_to_work(0.5)
    runs = JobRecord.objects.get(pk=record).runs
    if runs == 1:
        goes_on(record, "Its process was killed; the spool file is still there")
        os.kill(os.getpid(), signal.SIGKILL)
    return f"Its process was killed; run {runs} made it good"
