"""Surveys a model: its networks in one sweep of the text, what moves them in a second."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.atlas import Atlas, Network, SparseMaps
from funcnet_plugin.atlas.atlas import MEMBER
from funcnet_plugin.ica.columns import ColumnMoments
from funcnet_plugin.measure.fingerprint import fingerprint_model, fingerprint_unit
from funcnet_plugin.measure.sample import Sample
from funcnet_plugin.measure.text import Text
from funcnet_plugin.score.groups import GroupNetworks, GroupReport
from funcnet_plugin.score.networks import Networks
from funcnet_plugin.score.scorer import Evidence, Setting
from funcnet_plugin.survey.blocks import BlockNetworks, put_together
from funcnet_plugin.survey.contexts import contexts
from funcnet_plugin.survey.courses import ACTIVE, Courses, correlations, standardised
from funcnet_plugin.survey.sweep import last_states, sweep
from funcnet_plugin.survey.words import directions, words

CUT = 2.0  # a map of normal noise would keep one entry in twenty
_PACKAGES = ("funcnet-plugin", "torch", "transformers")
_FEW = 0.01  # of a map's energy: layers with less are not listed


@dataclass(frozen=True)
class Survey:
    """Holds what a survey found.

    Attributes:
        atlas: networks, maps and scores.
        courses: block -> (n_tokens, k), float16, standardised; `tokens`, their ids; `samples`, how
            many tokens each sample has.
        contexts: rows, see `contexts.contexts`.
    """

    atlas: Atlas
    courses: dict[str, Tensor]
    contexts: list[dict[str, Any]]


def survey(
    model: nn.Module,
    units: Sequence[Unit],
    text: Text,
    scorer: Networks,
    setting: Setting,
    decode: Callable[[int], str] = str,
    wanted: Sequence[Unit] | None = None,
    cut: float = CUT,
) -> Survey:
    """Find the functional networks of a dense model, and say what each is.

    Args:
        model: in evaluation mode.
        units: of all layers, in order.
        text: that is read twice.
        scorer: says how networks are found.
        setting: see `Scorer.begin`.
        decode: gives the text of a token.
        wanted: layers that are surveyed; all if not given.
        cut: entries of maps that are smaller, in deviations, are not kept.

    Raises:
        FuncnetError: shapes or text do not allow these networks.
    """
    wanted = list(units if wanted is None else wanted)
    setting = Setting(setting.seed, setting.max_bytes, len(text.samples))
    scorer.check(wanted, len(text.samples), setting)
    scorer.check_text(wanted, list(map(len, text.samples)), shared=False)
    search = _Search(scorer, setting, wanted)
    numbers = {unit.index for unit in wanted}
    sweep(model, units, text, "finding networks", numbers, search.add, search.done)
    blocks, scores = search.finish()
    courses = Courses(blocks, search.moments, search.names, text.n_tokens)
    states = sweep(model, units, text, "time courses of networks", numbers, courses.add)
    known = [
        hidden[batch.real.to(hidden.device)].float().cpu() for batch, hidden in last_states(states)
    ]
    del states
    typical = torch.cat(known).mean(0)
    del known
    by_layer = {unit.index: unit for unit in wanted}
    tokens = torch.tensor([token for sample in text.samples for token in sample])
    position = torch.cat([torch.arange(len(sample)) for sample in text.samples])
    counts = Counter(tokens.tolist())
    frequency = torch.tensor([math.log(counts[token]) for token in tokens.tolist()])
    lengths = torch.tensor([len(sample) for sample in text.samples])
    kept: dict[str, Tensor] = {"tokens": tokens, "samples": lengths}
    rows: list[dict[str, Any]] = []
    networks: dict[str, Network] = {}
    widths = {unit.index: unit.width for unit in units}
    for block in blocks:
        course, share = standardised(courses.by_block.pop(block.name))
        order = share.argsort(descending=True)
        block.put_in_order(order)
        course, share = course[:, order], share[order]
        raised, lowered = words(model, units, directions(block, by_layer, search.moments), typical)
        figures = {
            "variance": share,
            "kurtosis": block.maps.pow(4).mean(1) - 3.0,
            "stability_starts": block.between_starts,
            "stability_groups": block.between_groups,
            "density": (course > ACTIVE).float().mean(0),
            "position": correlations(course, position),
            "frequency": correlations(course, frequency),
        }
        names = [f"{block.name}.N{k}" for k in range(len(block.maps))]
        for k, name in enumerate(names):
            facts = {key: _plain(values[k]) for key, values in figures.items()}
            facts["layers"] = _by_layer(block, k, widths)
            facts["raises"] = [decode(token) for token in raised[k].tolist()]
            facts["lowers"] = [decode(token) for token in lowered[k].tolist()]
            networks[name] = Network(name, block.name, k, facts)
        rows += contexts(names, course, text.samples, decode)
        kept[block.name] = course.half()
    maps = {b.name: SparseMaps.of(b.maps, b.layers, widths, cut) for b in blocks}
    facts = {
        "model": {
            "source": getattr(model.config, "name_or_path", "") or None,
            "revision": getattr(model.config, "_commit_hash", None),
            "architecture": type(model).__name__,
            "fingerprint": fingerprint_model(model),
            "widths": [unit.width for unit in units],
            "weights": [fingerprint_unit(unit) for unit in units],
        },
        "data": {
            "fingerprint": text.fingerprint(),
            "samples": len(text.samples),
            "tokens": text.n_tokens,
        },
        "settings": {"scorer": scorer.settings(), "seed": setting.seed, "cut": cut},
        "versions": {name: version(name) for name in _PACKAGES},
        "blocks": [
            {
                "name": block.name,
                "layers": list(block.layers),
                "networks": len(block.maps),
                "explained_variance": _plain(block.explained),
                **search.report(block),
            }
            for block in blocks
        ],
    }
    means = {layer: moments.mean.float().cpu() for layer, moments in search.inner.items()}
    return Survey(Atlas(facts, maps, networks, scores, means), kept, rows)


class _Search:
    """Finds networks and scores while a text goes through the layers.

    Attributes:
        moments: layer -> of all its signals over the whole text, those that are decomposed first.
        names: layer -> the signals that are decomposed.
        inner: layer -> of what enters the down projection.
    """

    def __init__(self, scorer: Networks, setting: Setting, wanted: Sequence[Unit]) -> None:
        self._scorer, self._setting = scorer, setting
        self._scoring = scorer.begin(setting, self._found)
        self._watches = {unit.index: self._scoring.watch(unit) for unit in wanted}
        self._groups: dict[str, list[GroupNetworks]] = {}
        self._scores: dict[int, Tensor] = {}
        self._reports: dict[int, list[GroupReport]] = {}
        self._order = {unit.index: self._all_names(unit) for unit in wanted}
        self.names = {unit.index: scorer.signals_of(unit) for unit in wanted}
        self.moments: dict[int, ColumnMoments] = {}
        self.inner: dict[int, ColumnMoments] = {}

    def _all_names(self, unit: Unit) -> list[str]:
        first = self._scorer.signals_of(unit)
        return [*first, *(name for name in unit.signals if name not in first)]

    def add(self, unit: Unit, sample: Sample) -> None:
        """Take one sample of one layer in."""
        signals = sample.joined(self._order[unit.index])
        for of_layer, seen in ((self.moments, signals), (self.inner, sample.inner)):
            if unit.index not in of_layer:
                of_layer[unit.index] = ColumnMoments(seen.shape[1], seen.device)
            of_layer[unit.index].add(seen)
        self._watches[unit.index].add(sample)

    def done(self, unit: Unit) -> None:
        """Score a layer that has seen all samples."""
        watch = self._watches[unit.index]
        score = self._scoring.score(Evidence(unit, self._setting.seed, {"samples": watch}))
        if score is not None:
            self._scores[unit.index] = score.cpu()
        watch.rest()

    def finish(self) -> tuple[list[BlockNetworks], dict[int, Tensor]]:
        """Give the networks of all blocks, and the scores of all layers."""
        self._scores |= {i: s.cpu() for i, s in self._scoring.scores().items()}
        self._reports = {index: watch.reports for index, watch in self._watches.items()}
        groups = {name: self._groups[name] for name in self._groups}
        self._groups = {}
        return [put_together(name, found) for name, found in groups.items()], self._scores

    def report(self, block: BlockNetworks) -> dict[str, Any]:
        """Say how the decompositions of a block went: plain values."""
        reports = self._reports[next(iter(block.layers))]
        runs = [run for group in reports for run in group.runs]
        return {
            "groups": len(reports),
            "ica_runs": len(runs),
            "ica_runs_not_converged": sum(not run.converged for run in runs),
        }

    def _found(self, group: GroupNetworks) -> None:
        layers = list(group.layers)
        name = f"L{layers[0]}" if len(layers) == 1 else "ALL"
        self._groups.setdefault(name, []).append(group)


def _by_layer(block: BlockNetworks, k: int, widths: Mapping[int, int]) -> dict[str, Any]:
    """Say of one network how many members each layer has, and its share of the map's energy."""
    total = float(block.maps[k].square().sum())
    found = {}
    for layer, columns in block.layers.items():
        part = block.maps[k, columns].view(-1, widths[layer])
        members = int((part.abs() >= MEMBER).any(0).sum())
        energy = float(part.square().sum()) / total
        if members or energy >= _FEW:
            found[str(layer)] = {"members": members, "energy": energy}
    return found


def _plain(value: Any) -> float | None:
    """Give a number that JSON has; None where nothing was measured."""
    value = float(value)
    return value if math.isfinite(value) else None
