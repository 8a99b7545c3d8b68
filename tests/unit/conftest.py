"""What the unit tests share."""

from tests.fakes import clock, home, wakes  # noqa: F401  fixtures
