"""Submit jobs from outside uWSGI: they go into the directory that its spoolers read."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from shop.buttons import BUTTONS, press


class Command(BaseCommand):
    """``manage.py place_orders 3``"""

    help = "Place some orders; the spoolers of a running server send the mails."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take the number of orders."""
        parser.add_argument("number", type=int, nargs="?", default=1)

    def handle(self, *_args: Any, number: int, **_options: Any) -> None:
        """Place them."""
        for _ in range(number):
            press(BUTTONS["order"])
        self.stdout.write(f"Placed {number}.")
