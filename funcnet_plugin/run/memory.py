"""Computes what a run takes in memory, stage by stage, before it starts.

Everything follows from the model's shapes, the recipe and the amount of text; the weights are not
needed. Each part of a recipe says what it takes itself (`working_bytes` and its neighbours). What
adapts to the room there is, is counted at its smallest. Python and the libraries are left out:
they take about 1 GB of the host and, with CUDA, about as much of the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.cut.plan import WidthPlan
from funcnet_plugin.measure.moments import waiting_bytes
from funcnet_plugin.measure.streams import together
from funcnet_plugin.measure.workload import Workload
from funcnet_plugin.run import stages
from funcnet_plugin.run.request import Request
from funcnet_plugin.run.sizes import Sizes
from funcnet_plugin.text.writing import cache_bytes, windows_at_once


@dataclass(frozen=True)
class Term:
    """Says what one thing takes: bytes of the host's memory and of the GPU's."""

    what: str
    host: int = 0
    gpu: int = 0


@dataclass(frozen=True)
class Stage:
    """Says what one stage of a run takes at its peak.

    Attributes:
        name: one of `stages.NAMES`.
        terms: what it consists of.
        falls_back: whether it runs on the CPU where the GPU has no room.
    """

    name: str
    terms: tuple[Term, ...]
    falls_back: bool = False

    @property
    def host(self) -> int:
        """Count the bytes of the host's memory."""
        return sum(term.host for term in self.terms)

    @property
    def gpu(self) -> int:
        """Count the bytes of the GPU's memory; 0 where there is none."""
        return sum(term.gpu for term in self.terms)

    @property
    def mostly(self) -> str:
        """Name what takes most."""
        return max(self.terms, key=lambda term: term.host + term.gpu).what


def memory(
    request: Request, plan: WidthPlan, model: nn.Module, workload: Workload, *, gpu: bool
) -> list[Stage]:
    """Compute the peak of every stage that a run will have.

    Args:
        request: what is asked for.
        plan: of the model.
        model: before pruning; may be on the meta device.
        workload: the calibration text.
        gpu: whether layers are computed on a GPU; without one all is counted as the host's.
    """
    return _Counting(request, plan, model, workload, gpu).all()


class _Counting:
    """Counts the stages of one run; the arguments are those of `memory`."""

    def __init__(
        self, request: Request, plan: WidthPlan, model: nn.Module, workload: Workload, gpu: bool
    ) -> None:
        self._request, self._work, self._gpu = request, workload, gpu
        self._model, self._plan, self._units = model, plan, plan.prunable
        self._sizes = Sizes.of(model, len(plan.layout.blocks))

    def all(self) -> list[Stage]:
        request = self._request
        found = []
        if request.own_text or request.repair.windows_to_write:
            found.append(self._own_text())
        if request.needs & {"output_gradients", "weight_gradients"}:
            found.append(self._gradients())
        if request.own_text and "moments" in request.needs:
            found.append(self._own_moments())
        return [*found, self._calibration(), self._scoring(), self._repair(), self._saving()]

    # -- passes through the whole model ------------------------------------------------------------

    def _own_text(self) -> Stage:
        at_once = windows_at_once(self._work.length)
        logits = 4 * at_once * self._sizes.vocabulary * (self._sizes.itemsize + 4)
        return Stage(
            stages.OWN_TEXT,
            (
                self._here("weights", self._sizes.weights),
                self._here("keys and values", cache_bytes(self._model)),
                self._here("logits", logits),
            ),
            falls_back=True,
        )

    def _gradients(self) -> Stage:
        sizes, tokens = self._sizes, self._work.batch * self._work.length
        # losses are float32: logits, their logarithms, gradients, and a copy
        logits = tokens * sizes.vocabulary * (2 * sizes.itemsize + 4 * 4)
        backward = tokens * sizes.kept_for_backward(self._units)
        return Stage(
            stages.GRADIENTS,
            (
                self._here("weights", sizes.weights),
                self._here("gradients", self._of_gradients()),
                self._here("a window's backward pass", backward),
                self._here("logits", logits),
                *self._held("their means", self._of_gradients()),
            ),
            falls_back=True,
        )

    def _own_moments(self) -> Stage:
        sizes = self._sizes
        waiting = sum(waiting_bytes(unit.n_columns, sizes.itemsize) for unit in self._units)
        return Stage(
            stages.OWN_MOMENTS,
            (
                self._here("weights", sizes.weights),
                self._here("moments of all layers", self._of_moments()),
                self._here("activations", waiting + self._product()),
                *self._later("moments of all layers", self._of_moments()),
                *self._held("gradients", self._of_gradients()),
            ),
            falls_back=True,
        )

    # -- layer by layer ----------------------------------------------------------------------------

    def _calibration(self) -> Stage:
        working = max((self._signals(unit) for unit in self._units), default=0)
        return Stage(
            stages.CALIBRATION,
            (*self._pipeline(), *self._statistics(), self._here("signals of a group", working)),
        )

    def _scoring(self) -> Stage:
        setting = self._request.setting
        found = [
            (scorer.working_bytes(unit, self._work, setting), scorer.name)
            for scorer in self._request.scorers
            for unit in self._units
        ]
        most, name = max(found, default=(0, "scores"))
        return Stage(
            stages.SCORING,
            (*self._pipeline(), *self._statistics(), self._here(f"scoring by {name}", most)),
        )

    def _repair(self) -> Stage:
        repair, sizes = self._request.repair, self._sizes
        terms = [*self._pipeline(running=False), *self._statistics(running=False)]
        tokens = self._repair_tokens()
        batch = min(tokens, together(self._work.length)) * sizes.per_token(self._units)
        working, host = 0, 0
        for unit in self._units:
            kept = self._plan.expected_columns(unit)
            working = max(working, repair.working_bytes(unit, kept))
            if repair.behind_pruned_layers:
                more = repair.refit_bytes(unit, kept, tokens)
                # sums are half of what solving takes, and gather while batches come
                working = max(working, more.device, batch + more.device // 2)
                host = max(host, more.host)
        terms.append(self._here(f"repair by {repair.name}", working))
        if repair.behind_pruned_layers:
            states = 2 * tokens * sizes.hidden * sizes.itemsize
            terms.append(Term("hidden states of both models", host=states))
            terms.append(Term("what the repair learns from", host=host))
        return Stage(stages.REPAIR, tuple(terms))

    def _saving(self) -> Stage:
        weights = Term("weights", host=self._sizes.weights)
        return Stage(stages.SAVING, (weights, self._cut_weights()))

    # -- what stages have in common ----------------------------------------------------------------

    def _pipeline(self, running: bool = True) -> list[Term]:
        """Count weights, what waits between layers, and the layer that runs."""
        sizes, work = self._sizes, self._work
        terms = [
            Term("weights", host=sizes.weights),
            Term("activations between layers", host=sizes.between_layers(work)),
        ]
        if self._gpu:
            terms.append(Term("weights of a layer", gpu=sizes.layer))
        if running:
            terms.append(self._here("a batch", sizes.of_batch(self._units, work)))
        if not running or not self._request.waits_for_all_layers:
            terms.append(self._cut_weights())
        return terms

    def _cut_weights(self) -> Term:
        """Count what is left of cut units, beside the file that they were read from."""
        left = sum(
            unit.parameters * self._plan.expected_columns(unit) // unit.n_columns
            for unit in self._units
        )
        return Term("weights that were cut", host=left * self._sizes.itemsize)

    def _statistics(self, running: bool = True) -> list[Term]:
        """Count what is known of layers: of the one that runs, and of those that wait."""
        request = self._request
        terms = list(self._held("gradients", self._of_gradients()))
        if "moments" in request.needs:
            one = max((8 * unit.n_columns**2 for unit in self._units), default=0)
            if request.waits_for_all_layers:
                terms.append(Term("moments of all layers", host=self._of_moments()))
                terms += [Term("moments", gpu=one)] if self._gpu else []
            else:
                terms.append(self._here("moments", one))
            if running:
                terms.append(self._here("products of activations", self._product()))
        for scorer in request.scorers:
            across = scorer.across_bytes(self._units, self._work)
            if across:
                terms.append(self._here(f"{scorer.name} across layers", across))
        return terms

    def _signals(self, unit: Unit) -> int:
        """Count the samples of one group, which wait until it is full, of scorers that watch."""
        watching = [s for s in self._request.scorers if "samples" in s.needs]
        return sum(
            scorer.signal_bytes(unit, self._work, self._request.setting) for scorer in watching
        )

    def _product(self) -> int:
        """Count the tokens that wait for one product, and that product, of one layer."""
        widest = max((unit.n_columns for unit in self._units), default=0)
        return waiting_bytes(widest, self._sizes.itemsize + 4) + 4 * widest**2

    def _of_moments(self) -> int:
        return sum(8 * unit.n_columns**2 for unit in self._units)

    def _of_gradients(self) -> int:
        needs, found = self._request.needs, 0
        if "output_gradients" in needs:
            found += sum(8 * unit.hidden_size**2 for unit in self._units)
        if "weight_gradients" in needs:
            found += sum(self._sizes.itemsize * unit.parameters for unit in self._units)
        return found

    def _repair_tokens(self) -> int:
        """Count the tokens that a repair behind pruned layers reads."""
        windows = 1 + self._request.repair.windows_to_write + (self._request.own_text > 0)
        return self._work.tokens * windows

    def _here(self, what: str, count: int) -> Term:
        """Count where layers are computed."""
        return Term(what, gpu=count) if self._gpu else Term(what, host=count)

    def _held(self, what: str, count: int) -> Sequence[Term]:
        """Count what waits in the host's memory."""
        return [Term(what, host=count)] if count else []

    def _later(self, what: str, count: int) -> Sequence[Term]:
        """Count what goes from the GPU to the host's memory when a pass is done."""
        return self._held(what, count) if self._gpu else []
