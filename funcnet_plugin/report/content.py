"""Gathers what the page shows: plain values, as small as they can be read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from funcnet_plugin.atlas import Atlas, read_atlas
from funcnet_plugin.atlas.atlas import MEMBER
from funcnet_plugin.atlas.checks import check_neurons
from funcnet_plugin.atlas.files import read_contexts, read_structure
from funcnet_plugin.bars import ticking
from funcnet_plugin.errors import AtlasError
from funcnet_plugin.lesions.effects import as_plain, read_effects
from funcnet_plugin.report.matrix import packed

_MOST, _LEAST = 4, 1  # contexts of a network, of those that move it most and least
_FIGURES = (
    "variance", "kurtosis", "stability_starts", "stability_groups", "density", "position",
    "frequency",
)  # fmt: skip


def content_of(
    atlas: Path, lesions: Path | None = None, kept: Sequence[Sequence[int]] | None = None
) -> dict[str, Any]:
    """Gather everything of one page.

    Args:
        atlas: directory.
        lesions: directory of a study, see `lesioning.lesion_study`.
        kept: layer -> neurons that a pruned model kept.

    Raises:
        AtlasError: the atlas or the study cannot be read, or they do not go together.
    """
    known = read_atlas(atlas)
    if kept is not None:
        check_neurons(known, str(atlas))
    if kept is not None and len(kept) != len(known.widths):
        raise AtlasError(
            f"the pruned model has {len(kept)} layers and the atlas is of {len(known.widths)}; "
            "give the atlas of the model that was cut."
        )
    by_network = defaultdict(list)
    for row in read_contexts(atlas):
        by_network[row["network"]].append(row)
    names = list(known.blocks)
    with ticking("how networks act together"):
        structure = read_structure(atlas, known)
    clusters = structure.clusters.tolist()
    effects = None if lesions is None else as_plain(read_effects(lesions))
    return {
        "model": {k: known.facts["model"][k] for k in ("source", "architecture", "widths")},
        "data": {k: known.facts["data"][k] for k in ("samples", "tokens")},
        "settings": known.facts["settings"],
        "pieces": "neurons" if known.of_neurons else "channels",
        "versions": known.facts["versions"],
        "blocks": [
            {"name": name, "networks": len(networks)} for name, networks in known.blocks.items()
        ],
        "networks": [
            {
                "name": network.name,
                "block": names.index(network.block),
                "cluster": cluster,
                "figures": {key: _short(network.facts[key]) for key in _FIGURES},
                "layers": {
                    layer: [of["members"], _short(of["energy"])]
                    for layer, of in network.facts["layers"].items()
                },
                "raises": network.facts["raises"],
                "lowers": network.facts["lowers"],
                "contexts": [_context(row) for row in _shown(by_network[network.name])],
                "kept": None if kept is None else _share_kept(known, network.name, kept),
            }
            for network, cluster in zip(known.networks.values(), clusters, strict=True)
        ],
        "silhouette": _short(structure.facts["silhouette"]),
        "connectivity": {
            "correlation": packed(structure.correlation),
            "partial correlation": packed(structure.partial),
        },
        "lesions": effects,
    }


def _shown(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    ranks = [*range(1, _MOST + 1), *range(-1, -_LEAST - 1, -1)]
    by_rank = {row["rank"]: row for row in rows}
    return [by_rank[rank] for rank in ranks if rank in by_rank]


def _context(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "rank": row["rank"],
        "sample": row["sample"],
        "position": row["position"],
        "document": _document(row),
        "at": row["at"],
        "tokens": row["tokens"],
        "tenths": [round(10 * value) for value in row["activities"]],
    }


def _document(row: Mapping[str, Any]) -> str | None:
    """Name the document of a context; an atlas of a pruning run, or an old one, has none."""
    source, record, title = (row.get(key) for key in ("source", "record", "title"))
    if source is None:
        return None
    named = Path(source).name if record is None else f"{Path(source).name}, record {record}"
    return named if title is None else f"{named}: {title}"


def _share_kept(atlas: Atlas, name: str, kept: Sequence[Sequence[int]]) -> list[int]:
    """Count the members of a network that a pruned model kept, and all of them."""
    members = atlas.neurons([name], max(MEMBER, atlas.cut))
    stayed = sum(
        len(set(neurons.tolist()) & set(kept[layer])) for layer, neurons in members.items()
    )
    return [stayed, sum(map(len, members.values()))]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")
