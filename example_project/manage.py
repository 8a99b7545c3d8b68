"""Django's command line, e.g. ``manage.py place_orders 3`` beside the running server."""

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "bookshop.settings")
    execute_from_command_line(sys.argv)
