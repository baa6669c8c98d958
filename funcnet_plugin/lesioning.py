"""Studies lesions as `funcnet lesion` does: networks against random neurons, on texts and tasks."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, redirect_stderr
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

from loguru import logger

from funcnet_plugin.atlas import Atlas, read_atlas
from funcnet_plugin.atlas.checks import check_depth, check_shape, check_weights
from funcnet_plugin.atlas.files import ATLAS
from funcnet_plugin.bars import bar
from funcnet_plugin.checkpoints.loading import load_tokenizer
from funcnet_plugin.digests import digest_of_file
from funcnet_plugin.errors import AtlasError, FuncnetError, NumbersError
from funcnet_plugin.evaluation.lm_eval_tasks import Tasks
from funcnet_plugin.evaluation.perplexity import perplexity, text_windows
from funcnet_plugin.evaluation.rows import KeptRows, Row
from funcnet_plugin.evaluation.task_files import digest_of_tasks
from funcnet_plugin.inspection import inspect_model
from funcnet_plugin.lesions import Lesion, lesion_of, select
from funcnet_plugin.lesions.choice import HURTING, hurting
from funcnet_plugin.lesions.controls import random_like
from funcnet_plugin.lesions.effects import read_effects
from funcnet_plugin.lesions.enough import Wanted, fewest, ranked, wanted
from funcnet_plugin.lesions.study import Study
from funcnet_plugin.measure.fingerprint import fingerprint_model
from funcnet_plugin.measure.hooks import hooked
from funcnet_plugin.output import check_directory

if TYPE_CHECKING:
    from torch import Tensor

_PATIENCE = 5.0  # seconds without a bar


def lesion_study(
    model: str | Path,
    atlas: str | Path,
    out: Path,
    study: Study,
    progress: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Measure a model with every lesion, and with random neurons in the place of its networks.

    Args:
        model: checkpoint directory or hub name.
        atlas: directory of its atlas.
        out: rows.jsonl is written there, one row after another; a row that is there is not measured
            again, if model, atlas, texts and settings were the same.
        progress: called with every row, found or measured.

    Returns:
        rows: `lesion`, its label, None for the model as it is; `draw`, None for networks and the
        number of a draw for random neurons; `networks`, `mode`, `gain`, `add`, `threshold`,
        `neurons`, `share` of all; `texts` and `tasks`, name -> figure.

    Raises:
        FuncnetError: one sentence on what cannot be done, before anything is measured; or a lesion
            makes the model predict NaN.
    """
    check_directory(out)
    if not study.texts and not study.tasks:
        raise FuncnetError("lesions are measured on texts and tasks; give --text or --task.")
    known = read_atlas(atlas)
    shape = inspect_model(model)
    check_shape(known, dict(enumerate(shape.widths)), str(atlas))
    check_depth(known, len(shape.widths), str(atlas))
    _check_together(study, out)
    lesions = _lesions(known, study)
    for text in study.sets:
        if (kept := wanted(text)) is not None and kept.task not in study.tasks:
            raise AtlasError(f"{text} needs the task {kept.task}; give it with --task.")
    tasks = Tasks(study.tasks, study.include_path, study.limit)
    if losses := tasks.losses():
        raise FuncnetError(
            f"{', '.join(losses)} measures something that is better the lower it is, and lesions "
            "are compared by scores; give its text with --text NAME=FILE."
        )
    window = min(study.window, shape.max_length or study.window)
    tokenizer = load_tokenizer(model)
    texts = {
        name: text_windows(file, study.text_column, tokenizer, window, study.windows)
        for name, file in study.texts.items()
    }
    rows = KeptRows(out / "rows.jsonl")
    bench = _Bench(model, study.model_args, known, str(atlas), texts, tasks)
    common = {
        "model": bench.fingerprint,
        "atlas": digest_of_file(Path(atlas) / ATLAS),
        "texts": {name: _digest(windows) for name, windows in texts.items()},
        "tasks": [list(tasks.names), study.limit, study.model_args],
    }
    if study.tasks and study.include_path is not None:
        common["questions"] = digest_of_tasks(Path(study.include_path))

    def once(key: Row, lesion: Lesion | None) -> Row:
        mark = json.dumps(key | common, sort_keys=True)
        row = rows.find(mark)
        if row is None:
            row = key | bench.measure(lesion)
            rows.add(mark, row)
        progress(row)
        return row

    found = [once({"lesion": None, "draw": None, "networks": [], "mode": None}, None)]
    _warn_of_chance(tasks, found[0]["tasks"])
    for text, threshold in product(study.sets, study.thresholds):
        if (kept := wanted(text)) is not None:
            label = _label(text, "keep", None, threshold, study)
            lesions[label] = _enough(known, kept, threshold, label, found[0], once)
    widths = {layer: len(mean) for layer, mean in known.means.items()}
    todo = [
        (label, key, lesion, draw)
        for label, (key, lesion) in lesions.items()
        for draw in (None, *range(study.draws))
    ]
    for label, key, lesion, draw in bar(todo, "lesions", "lesion"):
        key = {"lesion": label, "draw": draw, **key}
        if draw is not None:
            key["seed"] = study.seed
            others = random_like(lesion.neurons, widths, _seed(study, label, draw))
            lesion = lesion.of_others(others)
        found.append(once(key, lesion))
    return found


def _check_together(study: Study, out: Path) -> None:
    """Refuse options that would do nothing, or undo what they are to read."""
    if (study.gains or study.add is not None) and "amplify" not in study.modes:
        raise AtlasError("gain and add are for --mode amplify; give it, or leave them out.")
    if study.chosen_by is None:
        return
    if not any(text.startswith(f"{HURTING}:") for text in study.sets):
        raise AtlasError(
            f"an earlier study is for sets that are chosen by it; give --lesion {HURTING}:TASK:N, "
            "or leave --chosen-by out."
        )
    if study.chosen_by.resolve() == out.resolve():
        raise AtlasError(
            f"{out} holds the study that chooses, and would lose it; give another --out."
        )


def _warn_of_chance(tasks: Tasks, dense: Mapping[str, float]) -> None:
    for task, chance in tasks.at_chance(dense).items():
        logger.warning(
            f"without a lesion the model scores {dense[task]:.3f} in {task} and guessing gives "
            f"{chance:.3f}: a lesion that costs this skill cannot be seen here; take another task "
            "or more questions."
        )


def _lesions(atlas: Atlas, study: Study) -> dict[str, tuple[Row, Lesion]]:
    """Make every lesion of a study, by a label that says how it differs from the others."""
    found: dict[str, tuple[Row, Lesion]] = {}
    sets = [text for text in _sets(atlas, study) if wanted(text) is None]  # these are measured for
    for text, mode, threshold in product(sets, study.modes, study.thresholds):
        names = _names(atlas, text, study.chosen_by)
        amplified = mode == "amplify"
        for gain in (study.gains or (None,)) if amplified else (None,):
            add = study.add if amplified else None
            lesion = lesion_of(atlas, names, mode, gain=gain, add=add, threshold=threshold)
            label = _label(text, mode, gain, threshold, study)
            found[label] = (_key(lesion, names, threshold), lesion)
    return found


def _key(lesion: Lesion, names: Sequence[str], threshold: float) -> Row:
    return {
        "networks": list(names), "mode": lesion.mode, "gain": lesion.gain, "add": lesion.add,
        "threshold": threshold, "neurons": lesion.n_neurons, "share": lesion.share,
    }  # fmt: skip


def _enough(
    atlas: Atlas,
    kept: Wanted,
    threshold: float,
    label: str,
    dense: Row,
    once: Callable[[Row, Lesion], Row],
) -> tuple[Row, Lesion]:
    """Look for the fewest networks that keep a task; what is measured for it is kept as rows."""

    def lesion(names: Sequence[str]) -> Lesion:
        return lesion_of(atlas, names, "keep", threshold=threshold)

    n_neurons = sum(map(len, atlas.means.values()))

    def keeps(names: Sequence[str]) -> float:
        if sum(map(len, atlas.neurons(names, threshold).values())) == n_neurons:
            return dense["tasks"][kept.task]  # nothing is silenced
        tried = lesion(names)
        about = {"lesion": f"{label} with {len(names)}", "draw": None}
        row = once(about | _key(tried, names, threshold), tried)
        return row["tasks"][kept.task]

    names = [name for name in ranked(atlas) if atlas.neurons([name], threshold)]
    needed = kept.share * dense["tasks"][kept.task]
    found = fewest(names, keeps, needed, label)
    return _key(lesion(found), found, threshold), lesion(found)


def _sets(atlas: Atlas, study: Study) -> Sequence[str]:
    """Give the sets of a study; every network that has members if it names none."""
    if study.sets:
        return study.sets
    highest = max(study.thresholds)
    found = [name for name in atlas.networks if atlas.neurons([name], highest)]
    if not found:
        raise AtlasError(
            f"no network has members with entries of {highest:g} and more; lower the threshold."
        )
    return found


def _names(atlas: Atlas, text: str, chosen_by: Path | None) -> list[str]:
    if not text.startswith(f"{HURTING}:"):
        return select(atlas, text)
    if chosen_by is None:
        raise AtlasError(
            f"{text} chooses by an earlier study of single networks; name its directory with "
            "--chosen-by."
        )
    single = {k: v for k, v in read_effects(chosen_by).items() if k in atlas.networks}
    if not single:
        raise AtlasError(
            f"{chosen_by} holds no study of single networks of this atlas; make one with funcnet "
            "lesion without --lesion."
        )
    return hurting(single, text)


def _label(text: str, mode: str, gain: float | None, threshold: float, study: Study) -> str:
    parts = [text]
    if len(study.modes) > 1 or mode != "zero":
        parts.append(mode if gain is None else f"{mode} {gain:g}")
    if len(study.thresholds) > 1:
        parts.append(f"z {threshold:g}")
    return " ".join(parts)


def _seed(study: Study, label: str, draw: int) -> int:
    return crc32(f"{study.seed}/{label}/{draw}".encode())  # unlike hash(), the same everywhere


def _digest(windows: Tensor) -> str:
    return hashlib.sha256(windows.numpy().tobytes()).hexdigest()


class _Bench:
    """Holds a model in memory, and measures it with one lesion after another."""

    def __init__(
        self,
        model: str | Path,
        model_args: str,
        atlas: Atlas,
        source: str,
        texts: Mapping[str, Tensor],
        tasks: Tasks,
    ) -> None:
        from lm_eval.utils import simple_parse_args_string

        from funcnet_plugin.adapters import bind
        from funcnet_plugin.hosts.lm_eval import FuncnetLM

        self._lm = FuncnetLM(
            str(model), **{"batch_size": 16} | simple_parse_args_string(model_args)
        )
        self._units = bind(self._lm.model).blocks
        check_weights(atlas, self._units, source)
        self.fingerprint = fingerprint_model(self._lm.model)
        self._texts, self._tasks = texts, tasks
        self._seconds = _PATIENCE  # that the last measurement took

    def measure(self, lesion: Lesion | None) -> Row:
        """Measure perplexity of each text, and the tasks' scores.

        Where that is quick, the bars within it are left out: they would flicker by the hundred.
        """
        start = time.monotonic()
        silent = nullcontext() if self._seconds >= _PATIENCE else redirect_stderr(io.StringIO())
        with silent:
            row = self._measure(lesion)
        self._seconds = time.monotonic() - start
        return row

    def _measure(self, lesion: Lesion | None) -> Row:
        with hooked([] if lesion is None else lesion.apply(self._units)):
            texts = {
                name: perplexity(self._lm.model, windows, name)
                for name, windows in self._texts.items()
            }
            for name, value in texts.items():
                if value != value:
                    raise NumbersError(
                        f"with this lesion the model predicts NaN on the text {name}: its "
                        f"activities overflow {self._lm.model.dtype}; take a smaller gain."
                    )
            return {"texts": texts, "tasks": self._tasks.scores(self._lm)}
