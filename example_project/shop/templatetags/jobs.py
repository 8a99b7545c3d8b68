"""Durations as one says them."""

from datetime import timedelta

from django import template

register = template.Library()


@register.filter
def short(duration: timedelta) -> str:
    """``4 ms``, ``3.2 s`` or ``2 min``."""
    # The clock may have been set back meanwhile.
    seconds = max(duration.total_seconds(), 0)
    if seconds < 0.5:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
