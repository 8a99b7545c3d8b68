"""What happens by itself: a timer and a cron."""

from django.db.models import F, Sum
from django.utils import timezone

from shop.models import Order, Tick
from uwsgi_tasks import cron, timer


def tick(name: str, note: str) -> None:
    """Note that *name* has ticked."""
    Tick.objects.get_or_create(name=name)
    Tick.objects.filter(name=name).update(count=F("count") + 1, at=timezone.now(), note=note)


@timer(seconds=5, target="mule")
def count_orders(_signal: int) -> None:
    """Count the orders, every five seconds, in a mule."""
    tick("timer", f"Orders so far: {Order.objects.count()}")


@cron(minute=-1, target="spooler")
def close_the_till(_signal: int) -> None:
    """Add up the takings, every minute, in a spooler."""
    cents = Order.objects.aggregate(sum=Sum("cents"))["sum"] or 0
    tick("cron", f"In the till: €{cents / 100:,.2f}")
