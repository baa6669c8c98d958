"""Shows a layer that was cut, as a repair behind pruned layers sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from funcnet_plugin.adapters import Unit
from funcnet_plugin.measure.processes import Processes
from funcnet_plugin.measure.streams import Difference, Streams


@dataclass(frozen=True)
class PrunedLayer:
    """Holds one layer after its cut, and the text that reaches it in the pruned model.

    Attributes:
        unit: cut, and repaired by its own statistics.
        streams: the dense and the pruned model on every text -> what one token of it counts, as a
            share of the whole.
        gain: what the layer multiplies the unit's output with before adding it to the stream.
        seed: of the recipe.
        processes: others that read other text.
    """

    unit: Unit
    streams: Mapping[Streams, float]
    gain: float
    seed: int
    processes: Processes | None

    def missing(self) -> Iterator[tuple[Difference, float]]:
        """Give what the layer lacks of the dense model as it is now, and what a token counts."""
        for stream, of_token in self.streams.items():
            for difference in stream.differences(self.unit):
                yield difference, of_token

    @property
    def n_tokens(self) -> int:
        """Count the tokens of all processes."""
        return sum(total(stream.n_tokens, self.processes) for stream in self.streams)


def total(count: int, processes: Processes | None) -> int:
    """Add up a count over all processes."""
    return count if processes is None else processes.total(count)
