"""Makes an atlas as `funcnet atlas` does: the networks of a model, with what moves each.

Every mistake is found before the weights are loaded, and the directory appears complete or not at
all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from funcnet_plugin.atlas import Atlas, write_atlas
from funcnet_plugin.errors import RecipeError
from funcnet_plugin.output import check_output
from funcnet_plugin.text.sources import load_sources
from funcnet_plugin.text.windows import check_ids, make_loader, mixed_windows

# Two groups of samples tell how well networks are found again in other text.
_GROUPS = 2


def make_atlas(
    model: str | Path,
    data: str | Path | Sequence[Any] | Mapping[str, float],
    out: str | Path,
    *,
    parameters: Mapping[str, Any] | None = None,
    samples: int = 160,
    window: int = 512,
    text_column: str = "text",
    seed: int = 0,
) -> Atlas:
    """Find the functional networks of a model and write its atlas.

    Args:
        model: checkpoint directory or hub name.
        data: see `text.sources.load_sources`.
        out: directory to write; it must not exist or be empty.
        parameters: of the scorer `networks`; 64 networks and two groups of samples if not given.
            `signals` may also name modules of a decoder layer, see `survey.taps.Tap`.
        samples: windows of text.
        window: tokens per window; cut down to what the model can take.
        text_column: see `text.sources.load_documents`.
        seed: decides which windows, and the random starts.

    Raises:
        FuncnetError: one sentence on what cannot be done; nothing is written then.
    """
    from funcnet_plugin.adapters import bind
    from funcnet_plugin.checkpoints.loading import (
        load_config,
        load_tokenizer,
        max_length,
        model_without_weights,
    )
    from funcnet_plugin.checkpoints.weights import check_weights
    from funcnet_plugin.score.scorer import Setting
    from funcnet_plugin.survey.wanted import Wanted

    out = Path(out)
    check_output(out)
    given = {"n_components": 64, "samples_per_group": max(1, samples // _GROUPS)}
    wanted = Wanted.of(given | dict(parameters or {}))
    scorer, setting = wanted.scorer, Setting(seed=seed, n_samples=samples)
    shapes = model_without_weights(model)
    planned = wanted.plan(shapes, bind(shapes, try_mlps=False).blocks)
    if planned:
        scorer.check(planned, samples, setting)
    check_weights(model, load_config(model))
    tokenizer = load_tokenizer(model)
    drawn = mixed_windows(
        load_sources(data, text_column, tokenizer),
        tokenizer,
        window=min(window, max_length(shapes) or window),
        samples=samples,
        seed=seed,
    )
    windows = [one.tokens for one in drawn]
    check_ids(windows, shapes, len(tokenizer))
    if len(windows) < scorer.samples_per_group:
        raise RecipeError(
            f"the text fills {len(windows)} windows of {len(windows[0])} tokens and one group has "
            f"samples_per_group={scorer.samples_per_group}; give more text, a shorter window or "
            "fewer samples."
        )
    if planned:
        scorer.check_lengths(planned, list(map(len, windows)), shared=False)

    from transformers import AutoModelForCausalLM

    from funcnet_plugin.survey import survey
    from funcnet_plugin.text.batches import read_calibration

    network = AutoModelForCausalLM.from_pretrained(
        model, dtype="auto", trust_remote_code=False
    ).eval()
    text = read_calibration(make_loader(windows), network, may_join=True)
    units = bind(network).blocks
    found = survey(
        network,
        units,
        text,
        scorer,
        setting,
        decode=lambda token: tokenizer.decode([token]),
        wanted=wanted.there(network, units),
        document_at=lambda sample, position: drawn[sample].document_at(position),
    )
    write_atlas(out, found.atlas, found.courses, found.contexts, found.connectivity)
    return found.atlas
