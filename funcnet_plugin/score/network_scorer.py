"""Takes what a recipe says of functional networks: parameters, what is refused, the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

from loguru import logger
from pydantic import Field, field_serializer, field_validator

from funcnet_plugin.adapters import Unit
from funcnet_plugin.errors import CalibrationError, CheckpointError, RecipeError
from funcnet_plugin.ica import least_bytes
from funcnet_plugin.ica.cost import reduction_bytes
from funcnet_plugin.ica.decomposer import Decomposer
from funcnet_plugin.ica.parts import DECOMPOSERS
from funcnet_plugin.measure.sample import PRODUCT
from funcnet_plugin.measure.workload import Workload
from funcnet_plugin.score.groups import GroupReport
from funcnet_plugin.score.scorer import Scorer, Setting


class Watched(Protocol):
    """Says what a report asks of the watch of one unit."""

    reports: list[GroupReport]
    n_groups: int
    leftover_samples: int


class NetworkScorer(Scorer):
    """Scores a neuron by how much it belongs to functional networks (arXiv 2508.05239).

    Neurons are voxels, tokens are time. Per layer and group of samples, the signals X
    (tokens x signals) are z-scored over time, reduced to k dimensions, whitened over neurons and
    rotated by ICA into k maps, z-scored over neurons. The score of neuron j is

        s_j = aggregate_groups  mean_starts  max_components,signals |Z_kj|

    :param n_components: networks per layer and group, k.
    :param samples_per_group: samples whose tokens enter one ICA; samples that do not fill a group
        count for the repair only.
    :param signals: of `act` (activated gate), `up` (up projection) and `product` (of the two, which
        enters the down projection) those that are looked at; an ungated MLP has `act` only.
    :param strategy: `local`, networks within a layer; `windows`, networks across a few
        neighbouring layers; or `global`, across all layers, with scores that can be compared
        across layers (`allocation: threshold` uses that). `n_components` counts the networks of a
        window, or of all layers, together. Across layers each group is reduced along its time axis
        as the layers pass, the ICA follows the last, and only then is anything cut, so all layers
        are measured on the dense model. Memory beyond `local`: per group
        3 * n_components * (tokens of the group + signals of its layers) float32.
    :param layers_per_window: of `windows`: layers 0 to 2 make the first window, and so on.
    :param aggregate: over groups, `max` (the paper) or `mean` (depends less on the starts).
    :param decomposer: finds the networks of one group: `canica` (ours), `nilearn` (nilearn's own
        code, the slow reference), to compare with them `pca`, `dictionary`, `nmf` and
        `autoencoder`, or one that another package brings; with its parameters.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"samples"})

    n_components: int = Field(default=128, ge=2)
    samples_per_group: int = Field(default=40, ge=1)
    signals: list[Literal["act", "up", "product"]] = Field(default=["act", "up"], min_length=1)
    strategy: Literal["local", "windows", "global"] = "local"
    layers_per_window: int = Field(default=3, ge=2)
    aggregate: Literal["max", "mean"] = "mean"
    decomposer: Decomposer = Field(default="canica", validate_default=True)

    @field_validator("decomposer", mode="before")
    @classmethod
    def _made(cls, given: str | Mapping[str, Any] | Decomposer) -> Decomposer:
        if isinstance(given, Mapping) and "name" not in given:
            given = {"name": "canica"} | dict(given)
        return DECOMPOSERS.make(given)

    @field_serializer("decomposer")
    def _written(self, decomposer: Decomposer) -> dict[str, Any]:
        return decomposer.settings()

    @property
    def group_size(self) -> int:
        return self.samples_per_group

    @property
    def across_layers(self) -> bool:
        return self.strategy != "local"

    @property
    def window(self) -> int | None:
        """Say how many layers are decomposed together; None for all."""
        return {"local": 1, "windows": self.layers_per_window, "global": None}[self.strategy]

    def decided(self, setting: Setting) -> NetworkScorer:
        """Decide what the recipe leaves to the number of groups, such as starts of the ICA."""
        return self.model_copy(update={"decomposer": self._decomposer_for(setting.n_samples)})

    def _decomposer_for(self, n_samples: int | None) -> Decomposer:
        n_groups = None  # a maximum does not gain from more groups
        if n_samples is not None and self.aggregate == "mean":
            n_groups = n_samples // self.samples_per_group
        return self.decomposer.for_groups(n_groups)

    @property
    def n_rows(self) -> int:
        """Say how many rows truncation leaves: so many that the order of tokens hardly matters."""
        return 4 * self.n_components

    def signals_of(self, unit: Unit) -> list[str]:
        """List the signals of a unit: an ungated MLP has one, whatever the recipe says."""
        known = {*unit.signals, PRODUCT} if len(unit.signals) > 1 else {*unit.signals}
        return [name for name in self.signals if name in known] or list(unit.signals)

    def check(self, units: Sequence[Unit], n_samples: int | None, setting: Setting) -> None:
        self._check_samples(n_samples)
        if len(set(self.signals)) != len(self.signals):
            raise RecipeError(f"signals names one signal twice: {self.signals}.")
        sizes = [len(self.signals_of(unit)) * unit.width for unit in units]
        if self.n_components >= min(sizes):
            raise RecipeError(
                f"n_components={self.n_components} needs more than {self.n_components} signals per "
                f"layer and the model has {min(sizes)} (signals x width); lower n_components."
            )
        if self.across_layers and not self.decomposer.rotates:
            raise RecipeError(
                f"the decomposer {self.decomposer.name} works within layers only; take strategy: "
                "local, or the decomposer canica."
            )
        if setting.max_bytes is None:
            return
        if self.across_layers:
            raise RecipeError(
                f"max_memory bounds strategy: local; with {self.strategy} lower n_components, "
                "samples_per_group or the number of samples instead (see the scorer's docstring)."
            )
        if not self.decomposer.takes_truncated:
            raise RecipeError(
                f"the decomposer {self.decomposer.name} needs all signals in memory; leave "
                "max_memory out, or take canica."
            )
        needed = least_bytes(max(sizes), self.n_rows)
        if setting.max_bytes < needed:
            raise RecipeError(
                f"max_memory of {_megabytes(setting.max_bytes)} cannot hold the signals of one "
                f"layer and group; {self.n_components} components of {max(sizes)} signals need at "
                f"least {_megabytes(needed)}."
            )

    def check_text(self, units: Sequence[Unit], lengths: Sequence[int], shared: bool) -> None:
        for unit in units:
            if not any(bool(module.weight.any()) for module in unit.inputs):
                raise CheckpointError(
                    f"the MLP of layer {unit.index} is dead: its weights are all zero, so "
                    f"there are no networks in it; leave it out with ignore: [{unit.name}], or "
                    "check whether the checkpoint is whole."
                )
        self.check_lengths(units, lengths, shared)

    def check_lengths(self, units: Sequence[Unit], lengths: Sequence[int], shared: bool) -> None:
        """Refuse text that is too little for the networks; weights are not looked at.

        Args, raises: see `Scorer.check_text`.
        """
        if not lengths:
            return
        if not shared:
            self._check_samples(len(lengths))
        size = self.samples_per_group
        groups = [sum(lengths[i : i + size]) for i in range(0, len(lengths) - size + 1, size)]
        # across layers there may be fewer networks than asked for
        needed = 2 if self.across_layers else self.n_components
        if groups and min(groups) < needed:
            narrowest = min(len(self.signals_of(unit)) * unit.width for unit in units)
            raise CalibrationError(
                f"n_components={self.n_components} does not fit signals of {min(groups)} tokens x "
                f"{narrowest} neurons, as a group of samples_per_group={size} samples has; "
                "give longer samples, or lower n_components."
            )

    def signal_bytes(self, unit: Unit, workload: Workload, setting: Setting) -> int:
        V = len(self.signals_of(unit)) * unit.width
        held = self._group_tokens(workload) * V * unit.dtype.itemsize
        return held if setting.max_bytes is None else min(held, setting.max_bytes)

    def working_bytes(self, unit: Unit, workload: Workload, setting: Setting) -> int:
        held = self.signal_bytes(unit, workload, setting)
        V, tokens = len(self.signals_of(unit)) * unit.width, self._group_tokens(workload)
        if tokens * V * unit.dtype.itemsize > held:
            tokens = self.n_rows
        if self.across_layers:
            k = 3 * self.n_components
            return held + reduction_bytes(tokens, V, k) + 8 * 4 * tokens * k
        decomposer = self._decomposer_for(workload.samples)
        return held + decomposer.working_bytes(tokens, V, self.n_components)

    def across_bytes(self, units: Sequence[Unit], workload: Workload) -> int:
        if not self.across_layers:
            return 0
        V = sum(len(self.signals_of(unit)) * unit.width for unit in units)
        rows = min(3 * self.n_components, self._group_tokens(workload))
        groups = workload.samples // self.samples_per_group
        kept = groups * 4 * rows * (self._group_tokens(workload) + V)
        # of the last group there is one matrix more, in float64
        decomposer = self._decomposer_for(workload.samples)
        return kept + decomposer.working_bytes(rows, V, self.n_components) // 2

    def operations(self, unit: Unit, workload: Workload) -> float:
        V = len(self.signals_of(unit)) * unit.width
        groups = workload.samples // self.samples_per_group
        tokens = self._group_tokens(workload)
        decomposer = self._decomposer_for(workload.samples)
        return groups * decomposer.operations(tokens, V, self.n_components)

    def _group_tokens(self, workload: Workload) -> int:
        return min(self.samples_per_group, workload.samples) * workload.length

    def _check_samples(self, n_samples: int | None) -> None:
        if n_samples is not None and n_samples < self.samples_per_group:
            raise CalibrationError(
                f"one group needs samples_per_group={self.samples_per_group} samples and the "
                f"calibration data has {n_samples}; give more samples (num_calibration_samples) or "
                "lower samples_per_group."
            )

    def check_groups_seen(self, watch: Watched) -> None:
        """Refuse to score a unit of which no full group was seen.

        Raises:
            CalibrationError: there were too few samples.
        """
        if not watch.n_groups:
            raise CalibrationError(
                f"one group needs samples_per_group={self.samples_per_group} samples and the "
                f"calibration data had {watch.leftover_samples}; give more samples."
            )

    def report(self, unit: Unit, watch: Watched) -> dict[str, Any]:
        """Say what the ICA of all groups said about itself, and warn where it did not converge."""
        groups = watch.reports
        runs = [run for group in groups for run in group.runs]
        loose = [run for run in runs if not run.converged]
        tolerances = [run.final_tolerance for run in loose if run.final_tolerance is not None]
        report = {
            "groups": len(groups),
            "leftover_samples": watch.leftover_samples,
            "tokens_in_networks": sum(group.n_tokens for group in groups),
            "stability": _mean([group.stability for group in groups]),
            "components": min(group.n_components for group in groups),
            "starts": max(len(group.runs) for group in groups),
            "ica_runs": len(runs),
            "ica_runs_not_converged": len(loose),
            "ica_runs_rescued": sum(
                run.promoted or run.damped_steps > 0 or run.restarts > 0 for run in runs
            ),
            "worst_final_tolerance": max(tolerances, default=None),
        }
        if self.across_layers:
            report["outside_strongest_layer"] = _mean([g.outside_strongest_layer for g in groups])
        if loose:
            logger.warning(
                f"layer {unit.index}: {len(loose)} of {len(runs)} ICA runs did not reach the "
                "tolerance in max_iter iterations"
                + (f" (worst {max(tolerances):.1e})" if tolerances else "")
            )
        if report["components"] < self.n_components:
            logger.warning(
                f"layer {unit.index}: the signals span {report['components']} directions, so "
                f"fewer networks than n_components={self.n_components} were found"
            )
        logger.info(
            f"layer {unit.index}: {len(groups)} groups, {len(runs)} ICA runs, "
            f"{len(runs) - len(loose)} converged"
        )
        return report


def _megabytes(n: int) -> str:
    return f"{round(n / 2**20, 3):g}MB"


def _mean(values: list[float]) -> float | None:
    """Average what is known; None where nothing was measured: NaN is no JSON."""
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else None
