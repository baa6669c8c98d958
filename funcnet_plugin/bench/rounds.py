"""Times models in turns, so that whatever else slows the machine slows all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from funcnet_plugin.bench.backends import Backend
from funcnet_plugin.bench.load import Load, Timing

Timings = dict[str, list[Timing]]  # of each model, by its name


def rounds_of(backends: Mapping[str, Backend], repetitions: int) -> list[int]:
    """Divide repetitions into rounds: how many repetitions of each model are made in each."""
    at_once = max(backend.at_once for backend in backends.values())
    whole, rest = divmod(repetitions, at_once)
    return [at_once] * whole + [rest] * (rest > 0)


def in_turns(names: Sequence[str], number: int) -> Iterator[str]:
    """Order the models of a round: every other round backwards, so that none is always first."""
    return iter(names) if number % 2 == 0 else reversed(names)


def measure(
    backends: Mapping[str, Backend],
    load: Load,
    repetitions: int,
    once: Callable[[int, Callable[[], Timings]], Timings],
    beginning: Callable[[str, Load], None] = lambda name, load: None,
) -> Timings:
    """Time all models at one load.

    Args:
        backends: by name of the model; loaded and warm.
        once: gives the timings of a round, found (number of the round) or measured.
        beginning: called before each model's turn.

    Returns:
        as many timings of each model as there are repetitions, by round.
    """

    def one_round(number: int, count: int) -> Timings:
        found = {}
        for name in in_turns(list(backends), number):
            beginning(name, load)
            found[name] = backends[name].run(load, count)
        return found

    timings: Timings = {name: [] for name in backends}
    for number, count in enumerate(rounds_of(backends, repetitions)):
        found = once(number, lambda n=number, c=count: one_round(n, c))
        for name in backends:
            timings[name] += found[name]
    return timings
