"""Calls a second into the spooler, and jobs a second out of it, with one and two processes."""

from system import in_turn, medians, systems
from table import Row


def measure(pythons, sizes, rounds):
    """Yield the rows for backlogs of these *sizes*."""
    for processes in (1, 2):
        with systems(pythons, spoolers=processes) as running:
            for size in sizes:
                figures = in_turn(
                    running, rounds, lambda s, n=size: s.submit_and_drain(f"submit({n})", n)
                )
                submitted, drained = (
                    medians({name: [pair[i] for pair in pairs] for name, pairs in figures.items()})
                    for i in (0, 1)
                )
                if processes == 1:
                    yield Row(f"submit, {size:,} calls", "calls/s", submitted, at_least=0.75)
                yield Row(f"drain {size:,}, {processes} process", "jobs/s", drained, at_least=0.70)


def measure_map(pythons, size, rounds, packed=1000):
    """Yield the rows of `task.map`, against single calls of raw uWSGI."""
    own = {name: python for name, python in pythons.items() if name in {"raw", "ours"}}
    packed = min(packed, size)

    def one_round(system):
        call = f"submit_map({size}, {packed})" if system.name == "ours" else f"submit({size})"
        return system.submit_and_drain(call, size)

    with systems(own, spoolers=1) as running:
        figures = in_turn(running, rounds, one_round)
    both = {name: [1 / (1 / a + 1 / b) for a, b in pairs] for name, pairs in figures.items()}
    yield Row(f"map of {packed:,} calls, submit + drain", "calls/s", medians(both), at_least=8)
    for i, word in enumerate(("submit", "drain")):
        values = medians({name: [pair[i] for pair in pairs] for name, pairs in figures.items()})
        yield Row(f"map of {packed:,} calls, {word} alone", "calls/s", values, at_least=8)
