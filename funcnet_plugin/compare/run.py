"""Prunes with every method and setting, measures each result, and keeps what is done."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from funcnet_plugin.checkpoints.loading import load_config, load_tokenizer
from funcnet_plugin.checkpoints.weights import check_weights
from funcnet_plugin.compare.fingerprint import fingerprint, warn_of_overlap
from funcnet_plugin.compare.measure import measure
from funcnet_plugin.compare.plan import Comparison, Run, runs
from funcnet_plugin.errors import FuncnetError
from funcnet_plugin.evaluation.lm_eval_tasks import Tasks
from funcnet_plugin.evaluation.perplexity import text_windows
from funcnet_plugin.evaluation.rows import KeptRows, Row
from funcnet_plugin.evaluation.usage import Usage
from funcnet_plugin.inspection import inspect_model
from funcnet_plugin.output import check_directory
from funcnet_plugin.pruning import prune


def compare(
    plan: Comparison, out: Path, progress: Callable[[Row], None] = lambda row: None
) -> list[Row]:
    """Measure everything that `out` does not hold yet.

    Args:
        plan: what to compare.
        out: rows.jsonl is written there, one row after another; a row that is there is not measured
            again, if model, data, texts and settings were the same. Beside each stand the versions
            of what measured it.
        progress: called with every row, found or measured.

    Returns:
        the rows of this plan, the dense model first. Ratios of perplexity are to the dense model;
        `gm` is their geometric mean over all texts, `worst` the largest. `seconds` and `peak_mb`
        are those of the whole pruning; a row that used what another ratio had measured has none.

    Raises:
        FuncnetError: one sentence on what cannot be compared, before anything is pruned.
    """
    check_directory(out)
    todo = runs(plan)
    if todo and not plan.texts:
        raise FuncnetError("methods are compared by perplexity and no text is given to measure it.")
    together = _together(todo)
    shape = inspect_model(plan.model)
    check_weights(plan.model, load_config(plan.model))
    window = min(plan.window, shape.max_length or plan.window)
    tokenizer = load_tokenizer(plan.model)
    texts = {
        name: text_windows(source, plan.text_column, tokenizer, window, plan.windows)
        for name, source in plan.texts.items()
    }
    tasks = Tasks(plan.tasks, plan.include_path, plan.limit)
    plan = replace(plan, tasks=tasks.names)
    warn_of_overlap(plan, tokenizer)
    common = fingerprint(plan, window, tokenizer)
    done = KeptRows(out / "rows.jsonl")

    def mark_of(key: Row) -> str:
        return json.dumps(key | {"common": common}, sort_keys=True)

    def once(key: Row, measured: Callable[[], Row]) -> Row:
        mark = mark_of(key)
        row = before = done.find(mark)
        if row is None or "refused" in row:  # what it lacked may be installed by now
            row = key | measured()
            if row != before:
                done.add(mark, row)
        progress(row)
        return row

    def dense_row() -> Row:
        found = measure(plan.model, texts, tasks)
        return {"parameters": shape.parameters, "gm": 1.0, "worst": 1.0, **found}

    dense = once({"method": "dense"}, dense_row)

    def pruned_row(run: Run, measured: Path | None) -> Row:
        fields, of_the_cut_alone = run.fields, False
        if measured is not None:
            fields = fields | {"resume_dir": str(measured)}
            of_the_cut_alone = measured.exists()
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "pruned"
            with Usage() as usage:
                block = prune(
                    plan.model, plan.data, checkpoint, recipe=run.recipe, overrides=fields,
                    samples=run.samples, window=window, text_column=plan.text_column,
                )  # fmt: skip
            found = measure(checkpoint, texts, tasks)
        cost = {"seconds": usage.seconds, "peak_mb": usage.peak_mb}
        relative = [found["perplexity"][name] / dense["perplexity"][name] for name in texts]
        return {
            "parameters": block["parameters_after"],
            "ratio_reached": block["pruning_ratio_reached"],
            "gm": math.exp(sum(map(math.log, relative)) / len(relative)),
            "worst": max(relative),
            **({} if of_the_cut_alone else cost),
            **found,
        }

    for same in together:
        with tempfile.TemporaryDirectory(dir=out, prefix="measured-") as folder:
            measured = Path(folder) / "layers" if len(same) > 1 else None
            for run in same:
                try:
                    once(run.key, lambda run=run, at=measured: pruned_row(run, at))
                except FuncnetError as error:
                    # One method may not fit this model; the others are still worth having.
                    once(run.key, lambda error=error: {"refused": str(error)})
    return [dense, *(done.find(mark_of(run.key)) for run in todo)]


def _together(todo: list[Run]) -> list[list[Run]]:
    """Put runs that measure the same one after another."""
    groups: dict[object, list[Run]] = {}
    for number, run in enumerate(todo):
        groups.setdefault(number if run.measures is None else run.measures, []).append(run)
    return list(groups.values())
