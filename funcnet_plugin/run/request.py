"""Says what is asked of a run: parts, and how much goes where."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from funcnet_plugin.errors import RecipeError
from funcnet_plugin.repair.repair import Repair
from funcnet_plugin.score.from_atlas import FromAtlas
from funcnet_plugin.score.networks import Networks
from funcnet_plugin.score.scorer import Scorer, Setting

_UNITS = {"MB": 2**20, "GB": 2**30}


@dataclass(frozen=True)
class Request:
    """Says what is to be pruned, and by which parts. The fields are those of a recipe.

    Attributes:
        scorers: several are a union: a neuron goes only if none of them needs it.
        repair: makes up for what was cut.
        pruning_ratio, ratio_scope, heads_ratio, allocation, align, skip_first, skip_last, ignore,
            own_text, max_memory, atlas, seed: see `WidthPruningModifier`.
    """

    pruning_ratio: float
    scorers: tuple[Scorer, ...]
    repair: Repair
    ratio_scope: str = "model"
    heads_ratio: float | str = 0.0
    allocation: str = "uniform"
    align: int = 128
    skip_first: int = 0
    skip_last: int = 0
    ignore: tuple[str, ...] = ()
    own_text: float = 0.0
    max_memory: str = ""
    atlas: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        names = [scorer.name for scorer in self.scorers]
        if not names:
            raise RecipeError("scorer names none; give one, or a list of several.")
        if len(set(names)) < len(names):
            raise RecipeError(f"scorer names one twice: {', '.join(names)}; name each once.")
        across = [scorer.name for scorer in self.scorers if scorer.across_layers]
        if len(across) > 1:
            raise RecipeError(
                f"{' and '.join(across)} both score across layers, and a run has room for one such "
                "scorer; take strategy: local in one of them."
            )
        if self.max_memory and "samples" not in self.needs:
            raise RecipeError(
                "max_memory is for scorers that look at the signals of whole groups of samples, "
                "such as networks, and the recipe has none; leave it out."
            )
        if self.atlas and len([s for s in self.scorers if isinstance(s, Networks)]) != 1:
            raise RecipeError(
                "atlas is where the scorer networks leaves what it finds, and the recipe has no "
                "such scorer; add networks, or leave atlas out."
            )
        if self.heads_ratio and self.ratio_scope != "model":
            raise RecipeError(
                f"ratio_scope: {self.ratio_scope} counts no heads, so heads_ratio has no part in "
                "pruning_ratio; take ratio_scope: model, or leave heads_ratio out."
            )
        if self.heads_ratio and self.repair.adds_bias:
            raise RecipeError(
                f"repair: {self.repair.name} adds a bias, for which attention layers have no "
                "place; take repair: least_squares with heads_ratio."
            )
        if self.own_text and "moments" not in self.needs:
            raise RecipeError(
                "own_text is for scorers that look at activations and for the repair, and the "
                "recipe has neither; leave it out."
            )

    @property
    def needs(self) -> frozenset[str]:
        """List all statistics that a part declares."""
        return frozenset(self.repair.needs).union(*(scorer.needs for scorer in self.scorers))

    @property
    def networks(self) -> Networks:
        """Give the scorer whose networks go into the atlas."""
        return next(scorer for scorer in self.scorers if isinstance(scorer, Networks))

    @property
    def behind_survey(self) -> Request:
        """Give what is left to do once the atlas is there; this request where there is none."""
        if not self.atlas:
            return self
        scorers = tuple(
            FromAtlas(path=self.atlas) if isinstance(scorer, Networks) else scorer
            for scorer in self.scorers
        )
        return replace(self, scorers=scorers, atlas="", max_memory="")

    @property
    def waits_for_all_layers(self) -> bool:
        """Tell whether all layers are measured, on the dense model, before any is cut."""
        return (
            self.allocation == "threshold"
            or self.own_text > 0.0
            or any(scorer.across_layers for scorer in self.scorers)
        )

    @property
    def measures_ahead(self) -> bool:
        """Tell whether anything is measured on the model before any layer is calibrated."""
        of_gradients = self.needs & {"weight_gradients", "output_gradients"}
        reads = self.repair.tunes_the_model or self.own_text > 0.0 or bool(self.atlas)
        return bool(of_gradients) or reads or bool(self.heads_ratio)

    @property
    def group_size(self) -> int:
        """Count the samples in a row that must stay in one process."""
        return math.lcm(*(scorer.group_size for scorer in self.scorers))

    @property
    def setting(self) -> Setting:
        """Give what scorers share with the run."""
        limit = None
        if self.max_memory:
            limit = int(float(self.max_memory[:-2]) * _UNITS[self.max_memory[-2:]])
        return Setting(self.seed, limit)
