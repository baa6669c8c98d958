"""Runs the dense and the pruned model side by side, layer by layer on the same text.

Only one copy of the weights is there: a layer is run dense, cut, and run again on what the pruned
layers before it left. Between layers the hidden states of both wait (`states.HiddenStates`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.measure.hooks import hooked
from funcnet_plugin.measure.states import HiddenStates
from funcnet_plugin.measure.text import Text

_DENSE, _PRUNED = "dense", "pruned"


@dataclass(frozen=True)
class Difference:
    """Holds what a pruned layer was given and what it missed, for one batch, padding removed.

    Attributes:
        x: (n_tokens, hidden), what entered its unit.
        h: (n_tokens, width), what entered its output projection.
        error: (n_tokens, hidden), float32: the dense model's hidden states after the layer, less
            the pruned model's.
        sample: (n_tokens,), int64, which calibration sample the token belongs to.
    """

    x: Tensor
    h: Tensor
    error: Tensor
    sample: Tensor


class Streams:
    """Takes the hidden states of the dense and of the pruned model through the layers.

    Args:
        model: still dense; run once as a whole, to see how it calls its layers.
        units: of all layers, in order.
        text: that both read.
    """

    def __init__(self, model: nn.Module, units: Sequence[Unit], text: Text) -> None:
        self._per_sample = text.per_sample
        self._states = HiddenStates(model, units, text, (_DENSE, _PRUNED), "the repair")

    @property
    def n_tokens(self) -> int:
        """Count the tokens, padding left out."""
        return sum(int(batch.real.sum()) for batch in self._states.batches)

    @property
    def n_windows(self) -> int:
        """Count the windows."""
        return sum(len(batch.real) for batch in self._states.batches)

    def pass_dense(self, unit: Unit) -> None:
        """Take the dense stream through a layer that is not cut yet."""
        self._take(unit, _DENSE)

    def differences(self, unit: Unit) -> Iterator[Difference]:
        """Give what a layer that was cut still misses; its dense stream must be behind it."""
        first = 0
        entered: dict[str, Tensor] = {}
        watched = (("unit", unit.inputs[0]), ("output", unit.output))
        hooks = (
            module.register_forward_pre_hook(
                lambda m, args, name=name: entered.update({name: args[0]})
            )
            for name, module in watched
        )
        with hooked(hooks):
            for batch, output in self._states.through(unit, _PRUNED):
                real = batch.real.flatten().to(output.device)
                # OPT flattens the batch before its MLP
                x, h = (entered.pop(name).flatten(0, -2)[real] for name, _ in watched)
                dense = batch.hidden[_DENSE].to(output.device)
                error = (dense.float() - output.float()).flatten(0, -2)[real]
                sample = (first + batch.real.nonzero()[:, 0]) // self._per_sample
                yield Difference(x, h, error, sample)
                first += len(batch.real)

    def pass_pruned(self, unit: Unit) -> None:
        """Take the pruned stream through a layer as it is now."""
        self._take(unit, _PRUNED)

    def _take(self, unit: Unit, stream: str) -> None:
        what = f"layer {unit.index}: the {stream} model's hidden states behind it"
        for batch, output in self._states.through(unit, stream):
            self._states.keep(batch, stream, output, what)
