"""Writes and reads an atlas.

| file | what it holds |
|---|---|
| atlas.json | model, data, settings, versions; blocks and networks with what was found of each |
| networks.safetensors | sparse maps, by block; scores and mean activities, by layer |
| courses.safetensors | time courses, by block; the tokens that they are over |
| connectivity.safetensors | correlation and partial correlation of all networks |
| contexts.parquet | text around the tokens that move each network most, and least |

atlas.json holds a digest of itself and of the other files, so what was edited or cut short is
refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from funcnet_plugin.atlas.atlas import Atlas, Network, widths_of
from funcnet_plugin.atlas.maps import SparseMaps
from funcnet_plugin.atlas.structure import Structure, structure_of
from funcnet_plugin.digests import digest_of_file
from funcnet_plugin.errors import AtlasError
from funcnet_plugin.output import staged

FORMAT = 1
ATLAS, NETWORKS, COURSES, CONTEXTS, CONNECTIVITY = (
    "atlas.json", "networks.safetensors", "courses.safetensors", "contexts.parquet",
    "connectivity.safetensors",
)  # fmt: skip
_SCORES, _MEANS = "scores", "means"


def write_atlas(
    directory: Path,
    atlas: Atlas,
    courses: Mapping[str, Tensor],
    contexts: Sequence[Mapping[str, Any]],
    connectivity: Mapping[str, Tensor],
) -> None:
    """Write an atlas, whole or not at all.

    Args:
        directory: new, or empty.
        courses: tensors of courses.safetensors.
        contexts: rows of contexts.parquet.
        connectivity: see `Structure.state`.

    Raises:
        CheckpointError: the directory cannot be written, or the disk is full.
    """
    import pyarrow
    from pyarrow import parquet

    tensors = {
        f"{kind}/{layer}": tensor
        for kind, of_layers in ((_SCORES, atlas.scores), (_MEANS, atlas.means))
        for layer, tensor in of_layers.items()
    }
    for block, maps in atlas.maps.items():
        tensors |= {f"{block}/{key}": tensor for key, tensor in maps.state().items()}
    networks = [
        {"name": n.name, "block": n.block, "number": n.number, **n.facts}
        for n in atlas.networks.values()
    ]
    with staged(directory) as staging:
        _save(staging / NETWORKS, tensors)
        _save(staging / COURSES, courses)
        parquet.write_table(pyarrow.Table.from_pylist(list(contexts)), staging / CONTEXTS)
        _save(staging / CONNECTIVITY, connectivity)
        written = (NETWORKS, COURSES, CONTEXTS, CONNECTIVITY)
        digests = {name: digest_of_file(staging / name) for name in written}
        content = {"format": FORMAT, "files": digests, **atlas.facts, "networks": networks}
        content["digest"] = _digest_of(content)
        (staging / ATLAS).write_text(json.dumps(content, indent=1) + "\n")


def read_atlas(directory: str | Path) -> Atlas:
    """Read an atlas; time courses and contexts are left where they are.

    Raises:
        AtlasError: there is none, it is of another version, or it was edited or cut short.
    """
    directory = Path(directory)
    content = _content(directory)
    _check_digest(directory, content, NETWORKS)
    try:
        widths = widths_of(content)
        with safe_open(directory / NETWORKS, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        scores, means = (_of_layers(tensors, kind, widths) for kind in (_SCORES, _MEANS))
        maps = {}
        for block in content["blocks"]:
            prefix = f"{block['name']}/"
            mine = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            maps[block["name"]] = SparseMaps.from_state(mine, widths)
        networks = {
            entry["name"]: Network(
                entry["name"], entry["block"], entry["number"],
                {k: v for k, v in entry.items() if k not in ("name", "block", "number")},
            )
            for entry in content["networks"]
        }  # fmt: skip
        for network in networks.values():
            if not 0 <= network.number < len(maps[network.block]):
                raise ValueError(f"{network.name} has no map")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, IndexError) as error:
        raise AtlasError(f"{directory} is no whole atlas ({error}); make it again.") from error
    facts = {k: v for k, v in content.items() if k not in ("format", "files", "networks", "digest")}
    return Atlas(facts, maps, networks, scores, means)


def _of_layers(
    tensors: Mapping[str, Tensor], kind: str, widths: Sequence[int]
) -> dict[int, Tensor]:
    """Pick what there is one of for each layer, one figure for each neuron.

    Raises:
        ValueError: the figures are not as many as the neurons.
    """
    found = {
        int(key.partition("/")[2]): tensor
        for key, tensor in tensors.items()
        if key.startswith(f"{kind}/")
    }
    for layer, tensor in found.items():
        if tensor.shape != (widths[layer],):
            raise ValueError(f"the {kind} of layer {layer} are not as many as its neurons")
    return found


def read_courses(directory: str | Path) -> dict[str, Tensor]:
    """Read the time courses: block -> (n_tokens, k), float16, standardised; and `tokens`, ids.

    Raises:
        AtlasError: as `read_atlas`.
    """
    directory = Path(directory)
    _check_digest(directory, _content(directory), COURSES)
    with safe_open(directory / COURSES, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def read_contexts(directory: str | Path) -> list[dict[str, Any]]:
    """Read the contexts of all networks, see `survey.contexts`.

    Raises:
        AtlasError: as `read_atlas`.
    """
    from pyarrow import parquet

    directory = Path(directory)
    _check_digest(directory, _content(directory), CONTEXTS)
    return parquet.read_table(directory / CONTEXTS).to_pylist()


def read_structure(directory: str | Path, atlas: Atlas) -> Structure:
    """Read how networks act together; found anew for an atlas that was made before it was kept.

    Args:
        atlas: what `read_atlas` read there.

    Raises:
        AtlasError: as `read_atlas`.
    """
    directory = Path(directory)
    content = _content(directory)
    if CONNECTIVITY not in content["files"]:
        courses = read_courses(directory)
        return structure_of([courses[block] for block in atlas.maps])
    _check_digest(directory, content, CONNECTIVITY)
    try:
        with safe_open(directory / CONNECTIVITY, framework="pt") as file:
            matrices = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
        clusters = torch.tensor([network.facts["cluster"] for network in atlas.networks.values()])
        return Structure(**matrices, clusters=clusters, facts=dict(atlas.facts["structure"]))
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise AtlasError(f"{directory} is no whole atlas ({error}); make it again.") from error


def _content(directory: Path) -> dict[str, Any]:
    path = directory / ATLAS
    try:
        content = json.loads(path.read_text())
        version = content["format"]
    except OSError as error:
        raise AtlasError(
            f"there is no atlas at {directory} ({error.strerror}: {ATLAS}); make one with "
            "funcnet atlas."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise AtlasError(f"{path} is not the file of an atlas ({error}); make it again.") from error
    if version != FORMAT:
        raise AtlasError(
            f"{path} is of format {version} and this version reads {FORMAT}; make it again."
        )
    if content.get("digest", known := _digest_of(content)) != known:  # older ones have none
        raise AtlasError(f"{path} is not what was written: it was edited; make the atlas again.")
    return content


def _check_digest(directory: Path, content: Mapping[str, Any], name: str) -> None:
    """Refuse a file that is not the one that was written; only names of ours are opened."""
    path = directory / name
    try:
        known, found = content["files"][name], digest_of_file(path)
    except (OSError, KeyError, TypeError) as error:
        raise AtlasError(f"the atlas {directory} lacks {name}; make it again.") from error
    if found != known:
        raise AtlasError(
            f"{path} is not what was written with {ATLAS}: it was edited or cut short; make the "
            "atlas again."
        )


def _digest_of(content: Mapping[str, Any]) -> str:
    """Give the digest of what atlas.json holds, the digest itself left out."""
    held = {key: value for key, value in content.items() if key != "digest"}
    plain = json.loads(json.dumps(held))  # as it is read
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, path)
