"""Background tasks for Python web applications, with nothing to run but their uWSGI."""

from uwsgi_tasks.app import App
from uwsgi_tasks.current import CurrentTask, get_current_task
from uwsgi_tasks.errors import (
    ConfigurationError,
    FixtureFailed,
    InvalidTask,
    LeaseLost,
    NotJson,
    PredicateFailed,
    ResultNotKept,
    RetryTaskException,
    StoreError,
    SubmitError,
    TaskCancelled,
    TaskFailed,
    TasksError,
    TaskTimeout,
)
from uwsgi_tasks.handle import JobHandle
from uwsgi_tasks.heap import HeapEntry, TaskHeap
from uwsgi_tasks.model import (
    SPOOL_IGNORE,
    SPOOL_OK,
    SPOOL_RETRY,
    Attempt,
    Job,
    State,
    TaskExecutor,
)
from uwsgi_tasks.retry import Outcome, Retry
from uwsgi_tasks.settings import django_setup
from uwsgi_tasks.task import Task

default_app = App()
"""The app that the functions below belong to."""

task = default_app.task
timer = default_app.timer
timer_lazy = default_app.timer_lazy
cron = default_app.cron
cron_lazy = default_app.cron_lazy
middleware = default_app.middleware
fixture = default_app.fixture
on_submit = default_app.on_submit
DataQueue = default_app.data_queue
configure = default_app.configure
set_uwsgi_callbacks = default_app.set_uwsgi_callbacks

__all__ = [
    "SPOOL_IGNORE",
    "SPOOL_OK",
    "SPOOL_RETRY",
    "App",
    "Attempt",
    "ConfigurationError",
    "CurrentTask",
    "DataQueue",
    "FixtureFailed",
    "HeapEntry",
    "InvalidTask",
    "Job",
    "JobHandle",
    "LeaseLost",
    "NotJson",
    "Outcome",
    "PredicateFailed",
    "ResultNotKept",
    "Retry",
    "RetryTaskException",
    "State",
    "StoreError",
    "SubmitError",
    "Task",
    "TaskCancelled",
    "TaskExecutor",
    "TaskFailed",
    "TaskHeap",
    "TaskTimeout",
    "TasksError",
    "configure",
    "cron",
    "cron_lazy",
    "default_app",
    "django_setup",
    "fixture",
    "get_current_task",
    "middleware",
    "on_submit",
    "set_uwsgi_callbacks",
    "task",
    "timer",
    "timer_lazy",
]
