"""The one page, what feeds it, and what its buttons do."""

from django.urls import path
from shop import views

urlpatterns = [
    path("", views.page, name="page"),
    path("jobs.json", views.jobs, name="jobs"),
    path("report.svg", views.report, name="report"),
    path("submit", views.submit, name="submit"),
    path("requeue", views.requeue, name="requeue"),
    path("stop", views.stop, name="stop"),
    path("clear", views.clear, name="clear"),
]
