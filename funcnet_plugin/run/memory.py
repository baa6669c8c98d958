"""Computes what a run takes in memory, stage by stage, before it starts.

Everything follows from the model's shapes, the recipe and the amount of text; the weights are not
needed. Each part of a recipe says what it takes itself (`working_bytes` and its neighbours). Python
and the libraries are left out: they take about 1 GB of the host and, with CUDA, about as much of
the GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from funcnet_plugin.adapters import Unit
from funcnet_plugin.atlas.structure import structure_bytes
from funcnet_plugin.cut.plan import WidthPlan
from funcnet_plugin.measure.free_memory import FreeMemory
from funcnet_plugin.measure.moments import product_bytes
from funcnet_plugin.measure.room import room_within
from funcnet_plugin.measure.states import wait_on_gpu
from funcnet_plugin.measure.workload import Workload
from funcnet_plugin.run import stages
from funcnet_plugin.run.request import Request
from funcnet_plugin.run.sizes import Sizes
from funcnet_plugin.run.stages import Stage, Term
from funcnet_plugin.text.at_once import bytes_per_window, windows_within
from funcnet_plugin.text.own import CONTINUED_LENGTH, OWN_LENGTH, PER_SAMPLE

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def memory(
    request: Request,
    plan: WidthPlan,
    model: PreTrainedModel,
    workload: Workload,
    *,
    gpu: bool,
    free: FreeMemory | None = None,
) -> list[Stage]:
    """Compute the peak of every stage that a run will have.

    Args:
        request: what is asked for.
        plan: of the model.
        model: before pruning; may be on the meta device.
        workload: the calibration text.
        gpu: whether layers are computed on a GPU; without one all is counted as the host's.
        free: what adapts to the memory that there is, such as batches, is counted as with this
            much; None: at its smallest.
    """
    return _Counting(request, plan, model, workload, gpu, free).all()


class _Counting:
    """Counts the stages of one run; the arguments are those of `memory`."""

    def __init__(
        self,
        request: Request,
        plan: WidthPlan,
        model: PreTrainedModel,
        workload: Workload,
        gpu: bool,
        free: FreeMemory | None,
    ) -> None:
        self._surveyed, self._request = request, request.behind_survey
        self._work, self._gpu = workload, gpu
        self._model, self._plan, self._units = model, plan, plan.prunable
        self._sizes = Sizes.of(model, len(plan.layout.blocks))
        self._device, self._free = ("cuda" if gpu else "cpu"), 0
        if free is not None:
            self._free = (free.gpu if gpu else free.host) or 0

    def all(self) -> list[Stage]:
        request = self._request
        found = []
        if self._surveyed.atlas:
            found.append(self._survey())
        if request.own_text or request.repair.windows_to_write:
            found.append(self._own_text())
        if request.repair.tunes_the_model:
            found.append(self._predictions())
        if self._own:
            found.append(self._own_moments())
        if request.needs & {"output_gradients", "weight_gradients"}:
            found.append(self._gradients())
        if self._plan.heads is not None:
            found.append(self._heads())
        found += [self._calibration(), self._scoring(), self._repair()]
        if request.repair.tunes_the_model:
            found.append(self._distillation())
        return [*found, self._saving()]

    @property
    def _own(self) -> bool:
        """Tell whether moments of own text are measured."""
        return bool(self._request.own_text) and "moments" in self._request.needs

    # -- passes through the whole model ------------------------------------------------------------

    def _own_text(self) -> Stage:
        request, work = self._request, self._work
        most = 0
        for wanted, longest in (
            (PER_SAMPLE * (request.own_text > 0), OWN_LENGTH),
            (request.repair.windows_to_write, CONTINUED_LENGTH),
        ):
            window = min(work.length, longest)
            at_once = windows_within(self._left, self._model, window, self._device)
            windows = min(at_once, work.samples * wanted)
            most = max(most, windows * bytes_per_window(self._model, window))
        return self._whole_model(stages.OWN_TEXT, [self._here("windows that are written", most)])

    def _predictions(self) -> Stage:
        return self._whole_model(
            stages.PREDICTIONS, [self._here("a batch", self._batch()), self._predicted()]
        )

    def _gradients(self) -> Stage:
        found = [
            self._here("gradients", self._of_gradients()),
            *self._later("their means", self._of_gradients()),
            self._predicted(),
        ]
        kept, again = (
            self._here("a backward pass", self._batch(backward=True, checkpointed=checkpointed))
            for checkpointed in (False, True)
        )
        return self._whole_model(stages.GRADIENTS, [kept, *found], [again, *found])

    def _distillation(self) -> Stage:
        numbers = self._request.repair.tuning_bytes(self._plan.layout.blocks)
        tuned = self._here("what is tuned", numbers)
        kept, again = (
            self._here(
                "a backward pass",
                self._batch(backward=True, checkpointed=checkpointed, compared=True),
            )
            for checkpointed in (False, True)
        )
        others = [tuned, self._predicted(), self._cut_weights()]
        waiting = self._later("weights", self._sizes.weights)  # as calibration left them
        return self._whole_model(stages.DISTILLATION, [*waiting, kept, *others], [again, *others])

    def _predicted(self) -> Term:
        """Count what waits of the dense model's predictions: one hidden state for every token."""
        tokens = self._repair_tokens() if self._request.repair.tunes_the_model else 0
        count = tokens * self._sizes.hidden * self._sizes.itemsize
        return Term("predictions of the dense model", host=count)

    def _own_moments(self) -> Stage:
        one = max((8 * unit.n_columns**2 for unit in self._units), default=0)
        own = Workload(self._work.samples * PER_SAMPLE, min(self._work.length, OWN_LENGTH))
        return Stage(
            stages.OWN_MOMENTS,
            (
                Term("weights", host=self._sizes.weights),
                *self._a_layer(),
                self._states(own.tokens),
                Term("moments of all layers", host=self._of_moments() + one),
                self._predicted(),
                *self._of_gpu("moments", one),
                self._here("a batch", self._batch(own) + self._product()),
            ),
        )

    def _heads(self) -> Stage:
        heads, blocks = self._plan.heads.units, self._plan.layout.blocks
        measured = (*heads, *(blocks if self._plan.heads_are_open else ()))
        one = max(8 * unit.n_columns**2 for unit in measured)
        widest = max(unit.n_columns for unit in measured)
        product = product_bytes(widest, self._sizes.itemsize, self._device)
        return Stage(
            stages.HEADS,
            (
                Term("weights", host=self._sizes.weights),
                *self._a_layer(),
                self._states(self._work.tokens),
                Term("moments of all heads", host=sum(8 * u.n_columns**2 for u in heads)),
                # those of one layer, and the copies that ordering them takes
                self._here("moments of a layer", 4 * one),
                *self._held("gradients", self._of_gradients()),
                *self._held("moments of own text", self._of_moments() if self._own else 0),
                self._predicted(),
                self._here("a batch", self._batch() + product),
            ),
        )

    def _whole_model(
        self, name: str, others: Sequence[Term], sent: Sequence[Term] | None = None
    ) -> Stage:
        """Count a pass through all of the model, for which a GPU gets all weights if it can."""
        whole = (self._here("weights", self._sizes.weights), *others)
        if not self._gpu:
            return Stage(name, whole)
        some = (Term("weights", host=self._sizes.weights), *self._a_layer())
        return Stage(name, whole, (*some, *(others if sent is None else sent)))

    # -- layer by layer ----------------------------------------------------------------------------

    def _survey(self) -> Stage:
        networks, setting, work = self._surveyed.networks, self._surveyed.setting, self._work
        most = max((networks.working_bytes(u, work, setting) for u in self._units), default=0)
        across = networks.across_bytes(self._units, work)
        n_blocks = 1 if networks.window is None else math.ceil(len(self._units) / networks.window)
        count = n_blocks * networks.n_components
        signals = sum(len(networks.signals_of(unit)) * unit.width for unit in self._units)
        # of every group one start, and all of one block are compared
        groups = max(1, work.samples // networks.samples_per_group)
        maps = 4 * networks.n_components * signals * groups
        return Stage(
            stages.SURVEY,
            (
                Term("weights", host=self._sizes.weights),
                *self._a_layer(),
                self._states(work.tokens),
                Term("time courses", host=4 * work.tokens * count),
                Term("maps", host=maps),
                self._here("a batch", self._batch()),
                self._here("finding networks", most + across),
                Term("how networks act together", host=structure_bytes(count)),
            ),
        )

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
        repair = self._request.repair
        terms = [*self._pipeline(running=False), *self._statistics(running=False)]
        working = [repair.working_bytes(u, self._plan.expected_columns(u)) for u in self._units]
        terms.append(self._here(f"repair by {repair.name}", max(working, default=0)))
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
            self._predicted(),
        ]
        terms += self._a_layer()
        if running:
            terms.append(self._here("a batch", self._batch()))
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
                terms += self._of_gpu("moments", one)
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
        return product_bytes(widest, self._sizes.itemsize, self._device)

    def _batch(
        self,
        work: Workload | None = None,
        *,
        backward: bool = False,
        checkpointed: bool = False,
        compared: bool = False,
    ) -> int:
        """Count what is computed of the largest batch, of the calibration text if not said."""
        work = self._work if work is None else work
        if not self._units:
            return 0
        place = (self._left, self._model, self._units, self._device)
        room = room_within(*place, backward=backward, checkpointed=checkpointed, compared=compared)
        samples = min(work.samples, room.most(work.length)) if work.joined else work.batch
        return room.limits[0].taken(samples, work.length)

    @property
    def _left(self) -> int:
        """Count what is free where layers are computed, once weights are there."""
        return max(0, self._free - self._sizes.weights)

    def _states(self, tokens: int) -> Term:
        """Count the hidden states of a text that wait between layers."""
        count = tokens * self._sizes.hidden * self._sizes.itemsize
        on_gpu = self._gpu and wait_on_gpu(count, self._free)
        return Term("hidden states", gpu=count) if on_gpu else Term("hidden states", host=count)

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
        """Count the tokens that a repair reads itself."""
        request, work = self._request, self._work
        continued = request.repair.windows_to_write * min(work.length, CONTINUED_LENGTH)
        own = PER_SAMPLE * (request.own_text > 0) * min(work.length, OWN_LENGTH)
        return work.tokens + work.samples * (continued + own)

    def _a_layer(self) -> list[Term]:
        return self._of_gpu("weights of a layer", self._sizes.largest)

    def _of_gpu(self, what: str, count: int) -> list[Term]:
        return [Term(what, gpu=count)] if self._gpu else []

    def _here(self, what: str, count: int) -> Term:
        """Count where layers are computed."""
        return Term(what, gpu=count) if self._gpu else Term(what, host=count)

    def _held(self, what: str, count: int) -> Sequence[Term]:
        """Count what waits in the host's memory."""
        return [Term(what, host=count)] if count else []

    def _later(self, what: str, count: int) -> Sequence[Term]:
        """Count what goes from the GPU to the host's memory when a pass is done."""
        return self._held(what, count) if self._gpu else []
