"""The application that Django knows."""

from __future__ import annotations

from django.apps import AppConfig


class UwsgiTasksConfig(AppConfig):  # type: ignore[misc]  # Django ships no types
    """Brings ``manage.py uwsgi_tasks``."""

    name = "uwsgi_tasks.django"
    label = "uwsgi_tasks"
    verbose_name = "Background tasks"
