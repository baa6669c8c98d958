"""`funcnet prune` as a function: a thin layer over llm-compressor's `oneshot`.

What it adds: every mistake is found before the weights are loaded, calibration text comes in exact,
reproducible windows, and the output directory appears complete or not at all.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from funcnet_plugin.calibration import load_texts, make_loader, token_windows
from funcnet_plugin.checkpoint import read_block
from funcnet_plugin.errors import CheckpointError
from funcnet_plugin.recipe import dump_recipe, load_recipe, override, recipe_path


def prune(
    model: str | Path,
    data: str | Path | Sequence[str],
    out: str | Path,
    *,
    ratio: float | None = None,
    recipe: str | Path | None = None,
    overrides: dict[str, Any] | None = None,
    samples: int = 160,
    window: int = 512,
    batch_size: int = 1,
    text_column: str = "text",
) -> dict[str, Any]:
    """Prune a model and save it.

    Args:
        model: checkpoint directory or hub name.
        data: see `calibration.load_texts`.
        out: directory to write; it must not exist or be empty.
        ratio: pruning_ratio, instead of the recipe's.
        recipe: file or YAML text; the packaged `ica_prune` if not given.
        overrides: other fields of the pruning modifier, instead of the recipe's.
        samples: calibration windows.
        window: tokens per window; cut down to what the model can take.
        batch_size: windows per forward pass; does not change which neurons are kept.
        text_column: see `calibration.load_texts`.

    Returns:
        the `functional_network` block of the saved config.json.

    Raises:
        FuncnetError: one sentence on what cannot be done; nothing is written then.
    """
    import funcnet_plugin.inspect as inspection

    out = Path(out)
    check_output(out)
    fields = dict(overrides or {})
    if ratio is not None:
        fields["pruning_ratio"] = ratio
    plan = override(load_recipe(recipe or recipe_path("ica_prune")), fields)
    _check_fields(plan)
    shape = inspection.inspect_model(model)
    texts = load_texts(data, text_column)
    tokenizer = inspection.load_tokenizer(model)
    windows = token_windows(
        texts,
        tokenizer,
        window=min(window, shape.max_length or window),
        samples=samples,
        seed=int(fields.get("seed", 0)),
    )

    from llmcompressor import oneshot

    # Beside `out`, so that the last step is a rename on one file system.
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
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
        staging.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        if out.exists():
            out.rmdir()
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return block


def check_output(out: Path) -> None:
    """Refuse to mix a checkpoint with other files.

    Raises:
        CheckpointError: `out` is a file, holds something, or cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file; give a directory for the pruned model.")
    if out.exists() and any(out.iterdir()):
        raise CheckpointError(f"{out} is not empty; give a new directory for the pruned model.")
    parent = next(p for p in (out, *out.absolute().parents) if p.exists())
    if not os.access(parent, os.W_OK):
        raise CheckpointError(f"{parent} is not writable; give another output directory.")


def _check_fields(plan: dict[str, Any]) -> None:
    """Let llm-compressor build the modifiers now: a wrong field ends here, not after loading.

    Raises:
        RecipeError: a field is wrong.
    """
    from llmcompressor.recipe import Recipe

    Recipe.create_instance(dump_recipe(plan))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
