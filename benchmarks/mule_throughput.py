"""Jobs a second from the caller through one mule, while both are at work."""

from system import in_turn, medians, systems
from table import Row


def measure(pythons, size, rounds):
    """Yield the row."""

    def one_round(system):
        start = system.run(f"send({size})", size)
        return size / (system.counters.last() - start)

    with systems(pythons, spoolers=1, mules=1) as running:
        figures = medians(in_turn(running, rounds, one_round))
    yield Row(f"mule, send to end, {size:,}", "jobs/s", figures, wanted_value=120_000)
