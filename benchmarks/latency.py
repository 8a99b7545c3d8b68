"""From just before the call to the first line of the job, when nothing else is to be done."""

from system import in_turn, medians, percentile, systems
from table import Row


def measure(pythons, samples, rounds):
    """Yield the rows of the spooler, then those of the mule."""
    with systems(pythons, spoolers=1) as running:
        for percent, figures in _sampled(running, "sample_call", samples, rounds):
            yield Row(f"idle latency, spooler, p{percent}", "ms", figures, at_most=1.3)
    with systems(pythons, spoolers=1, mules=1) as running:
        for percent, figures in _sampled(running, "sample_message", samples, rounds):
            above = 0.08 if percent == 50 else None
            yield Row(f"idle latency, mule, p{percent}", "ms", figures, at_most_above=above)


def _sampled(running, name, samples, rounds):
    for system in running:
        system.apart()
    call = f"sample('{name}', {samples}, 0.004)"
    rounds_of = in_turn(running, rounds, lambda system: system.server.call(call))
    for percent in (50, 99):
        yield (
            percent,
            medians(
                {
                    name: [percentile(delays, percent) / 1e6 for delays in taken]
                    for name, taken in rounds_of.items()
                }
            ),
        )
