"""What all tests share."""

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Make what a test printed fit to be sent to the process that shows it."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report
