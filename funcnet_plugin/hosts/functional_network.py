"""Functional-network pruning as a modifier: what is scored and what is reported."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from loguru import logger
from pydantic import Field, PrivateAttr
from torch import Tensor

from funcnet_plugin.adapters import MLPBlock
from funcnet_plugin.errors import CalibrationError, RecipeError
from funcnet_plugin.hosts import checks
from funcnet_plugin.hosts.width_pruning import Scores, WidthPruningModifier
from funcnet_plugin.ica import DECOMPOSERS, SOLVERS, least_bytes
from funcnet_plugin.pruning.collect import LayerStatistics
from funcnet_plugin.pruning.global_networks import GlobalNetworks
from funcnet_plugin.pruning.networks import GroupReport, NetworkScorer
from funcnet_plugin.pruning.score_checks import checked_scores
from funcnet_plugin.pruning.scorers import union_of_ranks


class FunctionalNetworkModifier(WidthPruningModifier):
    """Keeps the neurons of a model's functional networks (arXiv 2508.05239), cuts the others.

    Neurons are voxels, tokens are time. Per layer and group of samples, the signals X
    (tokens x signals) are z-scored over time, reduced to k dimensions, whitened over neurons and
    rotated by symmetric FastICA into k maps, z-scored over neurons. The networks score of neuron j:

        s_j = aggregate_groups  mean_starts  max_components,signals |Z_kj|

    :param n_components: networks per layer and group, k.
    :param samples_per_group: samples whose tokens enter one ICA; samples that do not fill a group
        count for the compensation only.
    :param signals: `act` (activated gate), `up` (up projection), or both; an ungated MLP has `act`
        only.
    :param strategy: `local`, networks within a layer; or `global`, networks across all layers, with
        scores that can be compared across layers (`allocation: threshold` uses that).
        `n_components` then counts all layers' networks together. Layers come one after another in
        calibration: each group is reduced along its time axis as they pass, the ICA follows the
        last, and only then is anything cut, so all layers are measured on the dense model. Memory
        beyond `local`: per group 3 * n_components * (tokens of the group + signals of all layers)
        float32.
    :param score: `networks` (the paper), or `union`: a neuron goes only if neither the networks
        nor its own effect on the output needs it (the better of its two ranks).
    :param union_with: one more scorer that a neuron may be needed by, see `WidthPruningModifier`.
    :param networks_share: share of the neurons for which the networks decide alone, in (0, 1]: the
        first so many by their score are kept, and among the others the other scorers decide. 1: a
        union of equals. A small share insures against calibration text that shows the other scorers
        only a part of what the model is for.
    :param aggregate: over groups, `max` (the paper) or `mean` (depends less on the starts).
    :param min_stability: networks that the other starts do not find again at least this well (0 to
        1, see `ica.canica.stability`) do not count; needs `n_init` of 2 and more.
    :param decomposer: `canica` (ours) or `nilearn` (nilearn's own code, the slow reference).
    :param solver: `picard` (fast) or `fastica` (the paper's); both have the same fixed points.
    :param contrast: of the ICA: `cube`, `logcosh` or `exp`.
    :param max_iter: iterations per start.
    :param tol: convergence tolerance.
    :param n_init: starts per group; scores are averaged over them. One start is a lottery.
    :param max_memory: for one layer's signals of one group and the copies that reducing them needs,
        like `2GB` or `500MB`; signals that do not fit are merged and truncated as they come. Empty:
        no limit.

    Example recipe::

        prune_stage:
          pruning_modifiers:
            FunctionalNetworkModifier:
              pruning_ratio: 0.2
              n_components: 128
    """

    scorer: Literal["functional_networks"] = "functional_networks"
    n_components: int = Field(default=128, ge=2)
    samples_per_group: int = Field(default=40, ge=1)
    signals: list[Literal["act", "up"]] = Field(default=["act", "up"], min_length=1, max_length=2)
    strategy: Literal["local", "global"] = "local"
    score: Literal["networks", "union"] = "networks"
    networks_share: float = Field(default=1.0, gt=0.0, le=1.0)
    aggregate: Literal["max", "mean"] = "mean"
    decomposer: Literal[tuple(DECOMPOSERS)] = "canica"
    solver: Literal[tuple(SOLVERS)] = "picard"
    contrast: Literal["cube", "logcosh", "exp"] = "cube"
    max_iter: int = Field(default=300, ge=1)
    tol: float = Field(default=1.0e-4, gt=0.0)
    n_init: int = Field(default=16, ge=1)
    min_stability: float = Field(default=0.0, ge=0.0, lt=1.0)
    max_memory: str = Field(default="", pattern=r"^([0-9]+(\.[0-9]+)?(MB|GB))?$")

    _global: GlobalNetworks | None = PrivateAttr(default=None)

    def _scorer_names(self) -> list[str]:
        named = ["effect"] if self.score == "union" else []
        return [*named, *([self.union_with] if self.union_with else [])]

    def _samples_per_group(self) -> int:
        return self.samples_per_group

    def _check_layers(self, samples: int | None) -> None:
        checks.check_groups(samples, self.samples_per_group)
        if len(set(self.signals)) != len(self.signals):
            raise RecipeError(f"signals names one signal twice: {self.signals}.")
        narrowest = self._narrowest()
        if self.n_components >= narrowest:
            raise RecipeError(
                f"n_components={self.n_components} needs more than {self.n_components} signals per "
                f"layer and the model has {narrowest} (signals x width); lower n_components."
            )

        widest = max(len(self._channels(block)) * block.width for block in self._plan.prunable)
        needed = least_bytes(widest, self._rows())
        if (self._max_bytes() or needed) < needed:
            raise RecipeError(
                f"max_memory={self.max_memory} cannot hold the signals of one layer and group; "
                f"{self.n_components} components of {widest} signals need at least "
                f"{needed / 2**20:.0f}MB."
            )
        if self.strategy == "global" and self.decomposer != "canica":
            raise RecipeError("strategy: global is there with decomposer: canica only.")
        if self.strategy == "global" and self.max_memory:
            raise RecipeError(
                "max_memory bounds strategy: local; with strategy: global lower n_components, "
                "samples_per_group or the number of samples instead (see the modifier's docstring)."
            )
        if self.networks_share < 1 and not self._scorers:
            raise RecipeError(
                "networks_share leaves the other neurons to another scorer and none is named; add "
                "union_with: loss_effect, or leave networks_share out."
            )
        if self.min_stability > 0 and self.n_init < 2:
            raise RecipeError(
                "min_stability compares the starts of one group; give n_init of 2 or more."
            )

    def _check_run(self, lengths: Sequence[int]) -> None:
        checks.check_alive(self._plan.prunable)
        if not lengths:
            return  # a model that is called with embeddings
        if self._processes is None:
            checks.check_groups(len(lengths), self.samples_per_group)
        size = self.samples_per_group
        groups = [sum(lengths[i : i + size]) for i in range(0, len(lengths) - size + 1, size)]
        # across layers there may be fewer networks than asked for
        needed = self.n_components if self.strategy == "local" else 2
        if groups and min(groups) < needed:
            raise CalibrationError(
                f"n_components={self.n_components} does not fit signals of {min(groups)} tokens x "
                f"{self._narrowest()} neurons, as a group of samples_per_group={size} samples has; "
                "give longer samples, or lower n_components."
            )

    def _new_statistics(self, block: MLPBlock) -> LayerStatistics:
        channels = self._channels(block)
        if self.strategy == "global":
            if self._global is None:
                self._global = self._new_global()
            feed = self._global.layer(block.index, len(channels))
            return super()._new_statistics(block, channels, feed)
        decompose = partial(
            DECOMPOSERS[self.decomposer],
            n_components=self.n_components,
            solver=self.solver,
            **self._solver_settings(),
        )
        networks = NetworkScorer(
            block.width,
            len(channels),
            self.samples_per_group,
            self.aggregate,
            decompose,
            n_rows=self._rows(),
            max_bytes=self._max_bytes(),
            min_stability=self.min_stability,
        )
        return super()._new_statistics(block, channels, networks)

    def _new_global(self) -> GlobalNetworks:
        return GlobalNetworks(
            n_components=self.n_components,
            n_rows=3 * self.n_components,
            samples_per_group=self.samples_per_group,
            aggregate=self.aggregate,
            min_stability=self.min_stability,
            solve=partial(SOLVERS[self.solver], **self._solver_settings()),
        )

    def _solver_settings(self) -> dict[str, Any]:
        names = ("contrast", "tol", "max_iter", "n_init", "seed")
        return {name: getattr(self, name) for name in names}

    def waits_for_all_layers(self) -> bool:
        return self.strategy == "global" or super().waits_for_all_layers()

    def _across_layers(self) -> GlobalNetworks | None:
        return self._global

    def _complete_scores(self) -> None:
        if self._global is None:
            return
        logger.info("all layers were measured; finding networks across them")
        scores = self._global.scores(self._processes)
        self._check_stability("over all layers", self._global.reports)
        for block in self._plan.prunable:
            found = {"networks": scores[block.index]}
            self._scores[block.index] |= checked_scores(block, found)
        if self._record is not None:
            self._record.save_networks(self._global)

    def _rows(self) -> int:
        """What truncation leaves: enough that the networks' space does not depend on the order."""
        return 4 * self.n_components

    def _max_bytes(self) -> int | None:
        if not self.max_memory:
            return None
        number, unit = float(self.max_memory[:-2]), self.max_memory[-2:]
        return int(number * {"MB": 2**20, "GB": 2**30}[unit])

    def _channels(self, block: MLPBlock) -> list[str]:
        """An ungated MLP has one signal, whatever the recipe says: its activation."""
        return list(self.signals) if block.gated else ["act"]

    def _narrowest(self) -> int:
        """Signals of the layer that has fewest."""
        return min(len(self._channels(block)) * block.width for block in self._plan.prunable)

    def _score(self, block: MLPBlock, statistics: LayerStatistics) -> Scores:
        if not statistics.networks.n_groups:
            raise CalibrationError(
                f"one group needs samples_per_group={self.samples_per_group} samples and the "
                f"calibration data had {statistics.n_samples}; give more samples."
            )
        scores = {}
        if self._global is None:
            self._check_stability(f"layer {block.index}", statistics.networks.reports)
            scores["networks"] = statistics.networks.score
        if self._scorers:
            scores |= super()._score(block, statistics)
        return scores

    def _check_stability(self, where: str, groups: Sequence[GroupReport]) -> None:
        """Some network must count, or the neurons have no scores."""
        known = [group.most_stable for group in groups if group.most_stable == group.most_stable]
        if self.min_stability > 0 and max(known, default=0.0) < self.min_stability:
            # rounded down: 0.99996 must not read as 1.000
            best = (
                f"{math.floor(1000 * max(known)) / 1000}"
                if known
                else "unknown with this decomposer"
            )
            raise CalibrationError(
                f"{where}: no network is as stable as min_stability={self.min_stability} asks (the "
                f"most stable: {best}), so no neuron would have a score; lower min_stability, or "
                "calibrate on more samples."
            )

    def _combine(self, layers: list[Scores]) -> list[Tensor]:
        if self.networks_share == 1.0:
            return super()._combine(layers)
        networks = union_of_ranks([[layer["networks"] for layer in layers]])
        others = super()._combine([{n: s[n] for n in s if n != "networks"} for s in layers])
        others = union_of_ranks([others])
        return [
            torch.where(ours > 1.0 - self.networks_share + 1e-9, 1.0 + ours, rank)
            for ours, rank in zip(networks, others, strict=True)
        ]

    def _report(self, block: MLPBlock, statistics: LayerStatistics) -> dict[str, Any]:
        report = super()._report(block, statistics)
        groups = statistics.networks.reports
        runs = [run for group in groups for run in group.runs]
        loose = [run for run in runs if not run.converged]
        report |= {
            "groups": len(groups),
            "leftover_samples": statistics.networks.leftover_samples,
            "tokens_in_networks": sum(group.n_tokens for group in groups),
            "stability": _mean([group.stability for group in groups]),
            "components": min(group.n_components for group in groups),
            "ica_runs": len(runs),
            "ica_runs_not_converged": len(loose),
            "ica_runs_rescued": sum(
                run.promoted or run.damped_steps > 0 or run.restarts > 0 for run in runs
            ),
        }
        tolerances = [run.final_tolerance for run in loose if run.final_tolerance is not None]
        if self._global is not None:
            report["outside_strongest_layer"] = _mean([g.outside_strongest_layer for g in groups])
        report["worst_final_tolerance"] = max(tolerances, default=None)
        if loose:
            logger.warning(
                f"layer {block.index}: {len(loose)} of {len(runs)} ICA runs did not reach "
                f"tol={self.tol} in {self.max_iter} iterations"
                + (f" (worst {max(tolerances):.1e})" if tolerances else "")
            )
        if report["components"] < self.n_components:
            logger.warning(
                f"layer {block.index}: the signals span {report['components']} directions, so "
                f"fewer networks than n_components={self.n_components} were found"
            )
        logger.info(
            f"layer {block.index}: {len(groups)} groups, {len(runs)} ICA runs, "
            f"{len(runs) - len(loose)} converged"
        )
        return report


def _mean(values: list[float]) -> float | None:
    """None where nothing was measured: NaN is no JSON."""
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else None
