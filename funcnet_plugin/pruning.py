"""Prunes as `funcnet prune` does: a thin layer over llm-compressor's `oneshot`.

Every mistake is found before the weights are loaded, calibration text comes in exact, reproducible
windows, and the output directory appears complete or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from funcnet_plugin.checkpoints.block import make_readable_for_older_versions, read_block
from funcnet_plugin.checkpoints.saving import check_tokenizer
from funcnet_plugin.disk import saying_full
from funcnet_plugin.errors import CheckpointError, FuncnetError
from funcnet_plugin.export import exporter
from funcnet_plugin.measure.workload import Workload
from funcnet_plugin.output import check_output, staged
from funcnet_plugin.preflight import check_request
from funcnet_plugin.recipe import (
    dump_recipe,
    load_recipe,
    override,
    pruning_modifier,
    recipe_path,
    scored_by_atlas,
)
from funcnet_plugin.text.sources import load_sources
from funcnet_plugin.text.windows import check_ids, make_loader, mixed_windows


def prune(
    model: str | Path,
    data: str | Path | Sequence[Any] | Mapping[str, float],
    out: str | Path,
    *,
    ratio: float | None = None,
    recipe: str | Path | None = None,
    overrides: dict[str, Any] | None = None,
    samples: int = 160,
    window: int = 512,
    batch_size: int | None = None,
    text_column: str = "text",
    export: str | None = None,
    from_atlas: str | Path | None = None,
) -> dict[str, Any]:
    """Prune a model and save it.

    Args:
        model: checkpoint directory or hub name.
        data: see `text.sources.load_sources`.
        out: directory to write; it must not exist or be empty.
        ratio: pruning_ratio, instead of the recipe's.
        recipe: file or YAML text; the packaged `ica_prune` if not given.
        overrides: other fields of the pruning modifier, see `recipe.override`.
        samples: calibration windows.
        window: tokens per window; cut down to what the model can take.
        batch_size: windows per forward pass; if not given, as many as make it fast and memory
            holds. It does not change which neurons are kept.
        text_column: see `text.sources.load_documents`.
        export: write another form than the checkpoint, see `export.FORMATS`.
        from_atlas: an atlas of the model, from which the scores of networks are taken.

    Returns:
        the `functional_network` block of the saved config.json.

    Raises:
        FuncnetError: one sentence on what cannot be done; nothing is written then, but for a pruned
            model that cannot be exported, which is left as a plain checkpoint.
    """
    from funcnet_plugin.checkpoints.loading import load_tokenizer, max_length

    out = Path(out).expanduser()
    check_output(out)
    convert = exporter(export) if export else None
    fields = dict(overrides or {})
    if ratio is not None:
        fields["pruning_ratio"] = ratio
    plan = load_recipe(recipe or recipe_path("ica_prune"))
    if from_atlas is not None:
        plan = scored_by_atlas(plan, from_atlas)
    plan = override(plan, fields)
    workload = Workload(samples, window, min(batch_size or 1, samples), joined=batch_size is None)
    shapes = check_request(model, plan, workload, export, out)
    tokenizer = load_tokenizer(model)
    check_tokenizer(tokenizer)
    sources = load_sources(data, text_column, tokenizer)
    drawn = mixed_windows(
        sources,
        tokenizer,
        window=min(window, max_length(shapes) or window),
        samples=samples,
        seed=int(pruning_modifier(plan)[1].get("seed", 0)),
    )
    windows = [one.tokens for one in drawn]
    check_ids(windows, shapes, len(tokenizer))

    from llmcompressor import oneshot

    from funcnet_plugin.hosts.llmcompressor.summary import going_to

    with saying_full(out), going_to(out), staged(out) as staging:
        oneshot(
            model=str(model),
            tokenizer=tokenizer,
            recipe=dump_recipe(plan),
            dataset=make_loader(windows, batch_size),
            output_dir=str(staging),
        )
        block = read_block(staging)
        if block is None:
            raise CheckpointError("the run ended without a pruned model; nothing was written.")
        make_readable_for_older_versions(staging)
        failed = None
        if convert is not None:
            try:
                with staged(staging / "export") as converted:
                    convert(staging, converted)
            except Exception as error:  # of any library: hours of work must not go with it
                failed = " ".join(str(error).split()).replace(str(staging), str(out))
            else:
                _replace_by(staging, "export")
    if failed:
        raise FuncnetError(f"{out} holds the pruned model, but not as {export}: {failed}")
    return block


def _replace_by(directory: Path, inner: str) -> None:
    """Leave only what is in directory/inner, one level up."""
    for path in directory.iterdir():
        if path.name != inner:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (directory / inner).iterdir():
        path.rename(directory / path.name)
    (directory / inner).rmdir()
