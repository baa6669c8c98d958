"""Measures the whole dense model, before layers are calibrated one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.measure.dense_moments import moments_of
from funcnet_plugin.measure.gradients import output_gradients, weight_gradients
from funcnet_plugin.measure.moments import Moments
from funcnet_plugin.measure.predictions import Predicted, predictions_of
from funcnet_plugin.measure.processes import Processes
from funcnet_plugin.measure.store import Store
from funcnet_plugin.measure.text import Text
from funcnet_plugin.measure.threads import warn_of_busy_cores
from funcnet_plugin.run import stages
from funcnet_plugin.run.clock import Clock
from funcnet_plugin.run.request import Request
from funcnet_plugin.text.cache import TextCache
from funcnet_plugin.text.own import OwnText, write_continuations, write_own_text


@dataclass
class Ahead:
    """Holds what passes through the whole dense model found.

    Attributes:
        gradients: name of the statistic -> layer -> gradients.
        own_moments: layer -> moments on text that the model wrote, by what they weigh.
        predicted: for a repair that tunes the model, which lets go of it.
    """

    gradients: dict[str, dict[int, object]] = field(default_factory=dict)
    own_moments: dict[int, Moments] = field(default_factory=dict)
    predicted: list[Predicted] = field(default_factory=list)

    def new_moments(self, unit: Unit) -> Moments:
        """Start the moments of a unit from those on the model's own text. Once per unit."""
        own = self.own_moments.pop(unit.index, None)
        return Moments(unit.n_columns) if own is None else own

    def of_unit(self, unit: Unit) -> dict[str, Tensor | tuple[Tensor, ...]]:
        """Give the gradients of one unit by the name of the statistic."""
        return {
            name: found[unit.index] for name, found in self.gradients.items() if unit.index in found
        }


def measure_ahead(
    request: Request,
    model: nn.Module,
    units: Sequence[Unit],
    todo: Sequence[Unit],
    text: Text,
    processes: Processes | None,
    store: Store | None,
    cache: TextCache | None,
    clock: Clock,
) -> Ahead:
    """Measure the whole dense model, as far as the parts of a recipe need it.

    Args:
        model: in memory.
        units: of all layers, in order.
        todo: those that are still to be scored.
        text: the calibration data.
        processes: others that read other samples.
        store: of the run; keeps what the model wrote.
        cache: of all runs; does so too.
        clock: of the run.

    Raises:
        CalibrationError: passes are needed and the text has no tokens.
    """
    warn_of_busy_cores()
    ahead, seed = Ahead(), request.seed
    if request.measures_ahead:
        _check_readable(text)
    own = None
    with clock.stage(stages.OWN_TEXT):
        if request.own_text and (todo or request.repair.tunes_the_model):
            own = write_own_text(model, text, request.own_text, seed, processes, store, cache)
        if request.repair.tunes_the_model:
            texts = _repair_texts(request, model, text, own, processes, store, cache)
    if request.repair.tunes_the_model:
        with clock.stage(stages.PREDICTIONS):
            ahead.predicted = predictions_of(model, units, texts, processes)
    if not todo:
        return ahead
    if own is not None and "moments" in request.needs:
        weight = round(text.n_tokens * own.share / (1.0 - own.share))
        with clock.stage(stages.OWN_MOMENTS):
            found = moments_of(model, units, own.text, todo)
            # one after the other: all of them twice may be more than there is room for
            ahead.own_moments = {i: found.pop(i).counted_as(weight) for i in list(found)}
    with clock.stage(stages.GRADIENTS):
        if "output_gradients" in request.needs:
            ahead.gradients["output_gradients"] = output_gradients(
                model, text, todo, processes, seed=seed
            )
        if "weight_gradients" in request.needs:
            ahead.gradients["weight_gradients"] = weight_gradients(model, text, todo, processes)
    return ahead


def _check_readable(text: Text) -> None:
    without = "a recipe without own_text, gradients, heads_ratio and atlas, with least_squares"
    if not text.batches:
        raise CalibrationError(
            "the calibration data has embeddings and no input_ids, and this recipe runs the whole "
            f"model on tokens; give tokens, or {without}."
        )
    masks = [b["attention_mask"] for b in text.batches if "attention_mask" in b]
    if any(mask.ndim != 2 for mask in masks):
        raise CalibrationError(
            "the calibration data has an attention_mask of pairs of tokens, and this recipe runs "
            "the whole model on text, whose padding it must know; give masks of shape (samples, "
            f"tokens), or {without}."
        )


def _repair_texts(
    request: Request,
    model: nn.Module,
    text: Text,
    own: OwnText | None,
    processes: Processes | None,
    store: Store | None,
    cache: TextCache | None,
) -> list[Text]:
    """Gather what the repair reads; the shares of the texts sum to 1."""
    share = 1.0 - own.share if own is not None else 1.0
    windows, texts = request.repair.windows_to_write, [replace(text, share=share)]
    if windows:
        more = write_continuations(model, text, windows, request.seed, processes, store, cache)
        texts = _by_tokens([text, more], share, processes)
    return texts if own is None else [*texts, own.text]


def _by_tokens(texts: Sequence[Text], share: float, processes: Processes | None) -> list[Text]:
    """Divide a share so that every token of some texts counts the same."""
    counts = [text.n_tokens for text in texts]
    if processes is not None:
        counts = [processes.total(count) for count in counts]
    return [
        replace(text, share=share * count / sum(counts))
        for text, count in zip(texts, counts, strict=True)
    ]
