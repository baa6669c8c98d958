"""Surveys a model: its networks in one sweep of the text, what moves them in a second."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.atlas import Atlas, Network, SparseMaps
from funcnet_plugin.atlas.structure import structure_of
from funcnet_plugin.bars import bar, ticking
from funcnet_plugin.measure.fingerprint import fingerprint_model, fingerprint_unit
from funcnet_plugin.measure.text import Text
from funcnet_plugin.score.networks import Networks
from funcnet_plugin.score.scorer import Setting
from funcnet_plugin.survey.blocks import BlockNetworks
from funcnet_plugin.survey.contexts import DocumentAt, contexts
from funcnet_plugin.survey.courses import Courses, standardised
from funcnet_plugin.survey.figures import Tokens, networks_of, plain
from funcnet_plugin.survey.search import Search
from funcnet_plugin.survey.sweep import Watched, mean_state, sweep
from funcnet_plugin.survey.words import directions, words
from funcnet_plugin.text.documents import Document

CUT = 2.0  # a map of normal noise would keep one entry in twenty
_PACKAGES = ("funcnet-plugin", "torch", "transformers")


@dataclass(frozen=True)
class Survey:
    """Holds what a survey found.

    Attributes:
        atlas: networks, maps and scores.
        courses: block -> (n_tokens, k), float16, standardised; `tokens`, their ids; `samples`, how
            many tokens each sample has.
        contexts: rows, see `contexts.contexts`.
        connectivity: see `Structure.state`.
    """

    atlas: Atlas
    courses: dict[str, Tensor]
    contexts: list[dict[str, Any]]
    connectivity: dict[str, Tensor]


def survey(
    model: nn.Module,
    units: Sequence[Unit],
    text: Text,
    scorer: Networks,
    setting: Setting,
    decode: Callable[[int], str] = str,
    wanted: Sequence[Watched] | None = None,
    cut: float = CUT,
    document_at: DocumentAt = lambda sample, position: Document(""),
) -> Survey:
    """Find the functional networks of a dense model, and say what each is.

    Args:
        model: in evaluation mode.
        units: of all layers, in order.
        text: that is read twice.
        scorer: says how networks are found.
        setting: see `Scorer.begin`.
        decode: gives the text of a token.
        wanted: what is surveyed, of some layers or all; the neurons of all if not given.
        cut: entries of maps that are smaller, in deviations, are not kept.
        document_at: tells which document a token of the text is of, if that is known.

    Raises:
        FuncnetError: shapes or text do not allow these networks.
    """
    wanted = list(units if wanted is None else wanted)
    setting = Setting(setting.seed, setting.max_bytes, len(text.samples))
    scorer.check(wanted, len(text.samples), setting)
    scorer.check_text(wanted, list(map(len, text.samples)), shared=False)
    search = Search(scorer, setting, wanted)
    by_layer = {unit.index: unit for unit in wanted}
    sweep(model, units, text, "finding networks", by_layer, search.add, search.done)
    blocks, scores = search.finish()
    courses = Courses(blocks, search.moments, search.names, text.n_tokens)
    states = sweep(model, units, text, "time courses of networks", by_layer, courses.add)
    typical = mean_state(states)
    del states
    tokens = Tokens.of(text)
    widths = {unit.index: unit.width for unit in wanted}
    lengths = torch.tensor([len(sample) for sample in text.samples])
    kept: dict[str, Tensor] = {"tokens": tokens.ids, "samples": lengths}
    networks: list[Network] = []
    rows: list[dict[str, Any]] = []
    for block in bar(blocks, "what moves each network", "block"):
        course, share = standardised(courses.by_block.pop(block.name))
        order = share.argsort(descending=True)
        block.put_in_order(order)
        course, share = course[:, order], share[order]
        steps = directions(block, by_layer, search.moments, search.order)
        said = words(model, units, steps, typical) if steps is not None else None
        mine = networks_of(block, course, share, tokens, said, widths, decode)
        rows += contexts([n.name for n in mine], course, text.samples, decode, document_at)
        networks += mine
        kept[block.name] = course.half()
    maps = {b.name: SparseMaps.of(b.maps, b.layers, widths, cut) for b in blocks}
    means = {layer: moments.mean.float().cpu() for layer, moments in search.inner.items()}
    with ticking("how networks act together"):
        structure = structure_of([kept[block.name] for block in blocks])
    by_name = {
        network.name: replace(network, facts=dict(network.facts) | {"cluster": number})
        for network, number in zip(networks, structure.clusters.tolist(), strict=True)
    }
    settings = {"scorer": scorer.settings(), "seed": setting.seed, "cut": cut}
    facts = _of_model(model, units) | {
        "data": {
            "fingerprint": text.fingerprint(),
            "samples": len(text.samples),
            "tokens": text.n_tokens,
        },
        "settings": settings,
        "versions": {name: version(name) for name in _PACKAGES},
        "blocks": [_of_block(block) | search.report(block) for block in blocks],
        "structure": structure.facts,
    }
    if not search.inner:
        facts["channels"] = [widths.get(unit.index, 0) for unit in units]
    return Survey(Atlas(facts, maps, by_name, scores, means), kept, rows, structure.state())


def _of_model(model: nn.Module, units: Sequence[Unit]) -> dict[str, Any]:
    return {
        "model": {
            "source": getattr(model.config, "name_or_path", "") or None,
            "revision": getattr(model.config, "_commit_hash", None),
            "architecture": type(model).__name__,
            "fingerprint": fingerprint_model(model),
            "widths": [unit.width for unit in units],
            "weights": [fingerprint_unit(unit) for unit in units],
        }
    }


def _of_block(block: BlockNetworks) -> dict[str, Any]:
    return {
        "name": block.name,
        "layers": list(block.layers),
        "networks": len(block.maps),
        "explained_variance": plain(block.explained),
    }
