"""Counts what a run keeps in memory, thing by thing, and where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from funcnet_plugin.adapters import Unit
from funcnet_plugin.cut.plan import WidthPlan
from funcnet_plugin.measure import moments
from funcnet_plugin.measure.free_memory import FreeMemory
from funcnet_plugin.measure.room import room_within
from funcnet_plugin.measure.states import wait_on_gpu
from funcnet_plugin.measure.workload import Workload
from funcnet_plugin.run.request import Request
from funcnet_plugin.run.sizes import Sizes
from funcnet_plugin.run.stages import Stage, Term
from funcnet_plugin.text.own import CONTINUED_LENGTH, OWN_LENGTH, PER_SAMPLE

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Terms:
    """Counts the terms of a run's stages.

    Args:
        request: what is asked for.
        plan: of the model.
        model: before pruning; may be on the meta device.
        workload: the calibration text.
        gpu: whether layers are computed on a GPU.
        free: what adapts to the memory that there is, such as batches, is counted as with this
            much; None: at its smallest.
    """

    def __init__(
        self,
        request: Request,
        plan: WidthPlan,
        model: PreTrainedModel,
        workload: Workload,
        gpu: bool,
        free: FreeMemory | None,
    ) -> None:
        self.surveyed, self.request = request, request.behind_survey
        self.work, self.gpu = workload, gpu
        self.model, self.plan, self.units = model, plan, plan.prunable
        self.sizes = Sizes.of(model, len(plan.layout.blocks))
        self.device, self.free = ("cuda" if gpu else "cpu"), 0
        if free is not None:
            self.free = (free.gpu if gpu else free.host) or 0

    @property
    def reads_own_text(self) -> bool:
        """Tell whether moments of own text are measured."""
        return bool(self.request.own_text) and "moments" in self.request.needs

    @property
    def left(self) -> int:
        """Count what is free where layers are computed, once weights are there."""
        return max(0, self.free - self.sizes.weights)

    def here(self, what: str, count: int) -> Term:
        """Count where layers are computed."""
        return Term(what, gpu=count) if self.gpu else Term(what, host=count)

    def of_gpu(self, what: str, count: int) -> list[Term]:
        """Count what a GPU holds of its own: nothing without one."""
        return [Term(what, gpu=count)] if self.gpu else []

    def held(self, what: str, count: int) -> list[Term]:
        """Count what waits in the host's memory."""
        return [Term(what, host=count)] if count else []

    def later(self, what: str, count: int) -> list[Term]:
        """Count what goes from the GPU to the host's memory when a pass is done."""
        return self.held(what, count) if self.gpu else []

    def a_layer(self) -> list[Term]:
        """Count the weights of a layer that a GPU has while it runs."""
        return self.of_gpu("weights of a layer", self.sizes.largest)

    def predicted(self) -> Term:
        """Count what waits of the dense model's predictions: one hidden state for every token."""
        tokens = self.repair_tokens() if self.request.repair.tunes_the_model else 0
        count = tokens * self.sizes.hidden * self.sizes.itemsize
        return Term("predictions of the dense model", host=count)

    def cut_weights(self) -> Term:
        """Count what is left of cut units, beside the file that they were read from."""
        left = sum(
            unit.parameters * self.plan.expected_columns(unit) // unit.n_columns
            for unit in self.units
        )
        return Term("weights that were cut", host=left * self.sizes.itemsize)

    def states(self, tokens: int) -> Term:
        """Count the hidden states of a text that wait between layers."""
        count = tokens * self.sizes.hidden * self.sizes.itemsize
        on_gpu = self.gpu and wait_on_gpu(count, self.free)
        return Term("hidden states", gpu=count) if on_gpu else Term("hidden states", host=count)

    def pipeline(self, running: bool = True) -> list[Term]:
        """Count weights, what waits between layers, and the layer that runs."""
        sizes, work = self.sizes, self.work
        terms = [
            Term("weights", host=sizes.weights),
            Term("activations between layers", host=sizes.between_layers(work)),
            self.predicted(),
        ]
        terms += self.a_layer()
        if running:
            terms.append(self.here("a batch", self.batch_bytes()))
        if not running or not self.request.waits_for_all_layers:
            terms.append(self.cut_weights())
        return terms

    def statistics(self, running: bool = True) -> list[Term]:
        """Count what is known of layers: of the one that runs, and of those that wait."""
        request = self.request
        terms = self.held("gradients", self.gradient_bytes())
        if "moments" in request.needs:
            one = max((8 * unit.n_columns**2 for unit in self.units), default=0)
            if request.waits_for_all_layers:
                terms.append(Term("moments of all layers", host=self.moments_bytes()))
                terms += self.of_gpu("moments", one)
            else:
                terms.append(self.here("moments", one))
            if running:
                terms.append(self.here("products of activations", self.product_bytes()))
        for scorer in request.scorers:
            across = scorer.across_bytes(self.units, self.work)
            if across:
                terms.append(self.here(f"{scorer.name} across layers", across))
        return terms

    def whole_model(
        self, name: str, others: Sequence[Term], sent: Sequence[Term] | None = None
    ) -> Stage:
        """Count a pass through all of the model, for which a GPU gets all weights if it can."""
        whole = (self.here("weights", self.sizes.weights), *others)
        if not self.gpu:
            return Stage(name, whole)
        some = (Term("weights", host=self.sizes.weights), *self.a_layer())
        return Stage(name, whole, (*some, *(others if sent is None else sent)))

    def backward_passes(self, *, compared: bool = False) -> tuple[Term, Term]:
        """Count one that keeps the insides of all layers, and one that computes them again.

        Args:
            compared: see `room_for`.
        """
        kept, again = (
            self.batch_bytes(backward=True, checkpointed=checkpointed, compared=compared)
            for checkpointed in (False, True)
        )
        return self.here("a backward pass", kept), self.here("a backward pass", again)

    def batch_bytes(
        self,
        work: Workload | None = None,
        *,
        backward: bool = False,
        checkpointed: bool = False,
        compared: bool = False,
    ) -> int:
        """Count what is computed of the largest batch, of the calibration text if not said."""
        work = self.work if work is None else work
        if not self.units:
            return 0
        place = (self.left, self.model, self.units, self.device)
        room = room_within(*place, backward=backward, checkpointed=checkpointed, compared=compared)
        samples = min(work.samples, room.most(work.length)) if work.joined else work.batch
        return room.limits[0].taken(samples, work.length)

    def product_bytes(self) -> int:
        """Count the tokens that wait for one product, and that product, of one layer."""
        widest = max((unit.n_columns for unit in self.units), default=0)
        return moments.product_bytes(widest, self.sizes.itemsize, self.device)

    def signal_bytes(self, unit: Unit) -> int:
        """Count the samples of one group, which wait until it is full, of scorers that watch."""
        watching = [s for s in self.request.scorers if "samples" in s.needs]
        return sum(
            scorer.signal_bytes(unit, self.work, self.request.setting) for scorer in watching
        )

    def moments_bytes(self) -> int:
        """Count the second moments of all layers."""
        return sum(8 * unit.n_columns**2 for unit in self.units)

    def gradient_bytes(self) -> int:
        """Count the sums of gradients that scorers ask for."""
        needs, found = self.request.needs, 0
        if "output_gradients" in needs:
            found += sum(8 * unit.hidden_size**2 for unit in self.units)
        if "weight_gradients" in needs:
            found += sum(max(4, self.sizes.itemsize) * unit.parameters for unit in self.units)
        return found

    def repair_tokens(self) -> int:
        """Count the tokens that a repair reads itself."""
        request, work = self.request, self.work
        continued = request.repair.windows_to_write * min(work.length, CONTINUED_LENGTH)
        own = PER_SAMPLE * (request.own_text > 0) * min(work.length, OWN_LENGTH)
        return work.tokens + work.samples * (continued + own)
