"""Times models, and keeps what is done."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from funcnet_plugin import __version__
from funcnet_plugin.bars import counter, ticking
from funcnet_plugin.bench.alone import peak_memory
from funcnet_plugin.bench.backends import Backend, Runtime
from funcnet_plugin.bench.load import Load, Timing
from funcnet_plugin.bench.models import size_on_disk
from funcnet_plugin.bench.plan import Bench, Ready, ready
from funcnet_plugin.bench.results import Measured, document, machine
from funcnet_plugin.bench.rounds import Timings, measure, rounds_of
from funcnet_plugin.bench.twins import twins_of
from funcnet_plugin.errors import CheckpointError, FuncnetError
from funcnet_plugin.evaluation.rows import KeptRows
from funcnet_plugin.output import check_directory

ROWS = "rows.jsonl"


def bench(plan: Bench, out: Path) -> dict[str, Any]:
    """Time everything that `out` does not hold yet.

    Args:
        plan: what to time.
        out: every round is written to rows.jsonl there when it is done; a round that is there is
            not made again. Nothing else is written.

    Returns:
        the results, see `results.document`.

    Raises:
        FuncnetError: one sentence on what cannot be benched, before anything is timed.
    """
    _check_place(out)
    made_ready = ready(plan)
    kept = _rows_of_this(plan, made_ready, out)
    quality = _quality(plan, made_ready, kept)
    with tempfile.TemporaryDirectory() as folder:
        models = []
        for number, model in enumerate(made_ready.models):
            place = Path(folder) / str(number)
            place.mkdir()
            with ticking(f"aligned twins of {model.name}"):
                models += [model, *twins_of(model, plan.aligned, place)]
        made_ready = replace(made_ready, models=models)
        found = [
            measured
            for runtime in made_ready.runtimes
            for measured in _run_all(runtime, made_ready, plan, kept, Path(folder))
        ]
        if not any(measured.timings for measured in found):
            raise FuncnetError(f"no backend runs these models: {found[0].refused}")
        return document(plan, made_ready, found, quality, machine())


def _run_all(
    runtime: Runtime, todo: Ready, plan: Bench, kept: KeptRows, folder: Path
) -> Iterator[Measured]:
    """Time all models in one runtime; what it does not take is said, and the rest goes on."""
    with _opened(runtime, todo, folder) as (backends, refused):
        for name, why in refused.items():
            yield Measured(runtime.name, name, refused=why)
        if not backends:
            return
        longest = [str(load) for load in todo.setting.loads]  # the peak is of the longest of them
        facts = {
            name: _once(
                kept,
                {"facts": name, "backend": runtime.name, "loads": longest},
                lambda n=name, b=backend: {
                    "peak_memory_bytes": peak_memory(n, b.source, runtime, todo.setting),
                    "weight_bytes": b.weight_bytes,
                    "disk_bytes": size_on_disk(b.source),
                },
            )
            for name, backend in backends.items()
        }
        for load in todo.setting.loads:
            timings = _timed(runtime, backends, load, plan, kept)
            for name, of_model in timings.items():
                yield Measured(runtime.name, name, load, tuple(of_model), facts[name])


@contextmanager
def _opened(
    runtime: Runtime, todo: Ready, folder: Path
) -> Iterator[tuple[dict[str, Backend], dict[str, str]]]:
    """Load and try all models in a runtime; of those that it does not take, say why."""
    backends: dict[str, Backend] = {}
    refused: dict[str, str] = {}
    shortest = min(todo.setting.loads, key=lambda load: load.length * load.concurrency)
    try:
        for model in todo.models:
            place = Path(tempfile.mkdtemp(dir=folder))
            with ticking(f"loading {model.name}, {runtime.name}"):
                try:
                    backends[model.name] = runtime.open(model, todo.setting, place)
                    backends[model.name].run(shortest, 1)
                except FuncnetError as error:
                    refused[model.name] = str(error)
                    if model.name in backends:
                        backends.pop(model.name).close()
        yield backends, refused
    finally:
        for backend in backends.values():
            backend.close()


def _timed(
    runtime: Runtime, backends: dict[str, Backend], load: Load, plan: Bench, kept: KeptRows
) -> Timings:
    names = list(backends)
    title = f"{runtime.name} {load}"
    total = len(rounds_of(backends, plan.repetitions))
    warm = False
    with counter(total, title, "round") as progress:

        def once(number: int, measured: Callable[[], Timings]) -> Timings:
            nonlocal warm
            key = {"backend": runtime.name, "load": asdict(load), "round": number, "models": names}
            mark = json.dumps(key | {"count": rounds_of(backends, plan.repetitions)[number]})
            row = kept.find(mark)
            if row is None:
                if not warm:
                    for name in names:
                        if backends[name].at_once > 1:
                            continue  # it warms up by itself, in each of its processes
                        with ticking(f"warm-up of {name}"):
                            backends[name].run(load, plan.warm_up)
                    warm = True
                with ticking(f"round {number + 1}, {', '.join(names)}"):
                    found = measured()
                row = key | {"seconds": {n: [asdict(t) for t in ts] for n, ts in found.items()}}
                kept.add(mark, row)
            progress.update()
            return {n: [Timing(**t) for t in ts] for n, ts in row["seconds"].items()}

        return measure(backends, load, plan.repetitions, once)


def _once(kept: KeptRows, key: Mapping[str, Any], measured: Callable[[], Any]) -> Any:
    """Give what is kept under a key, or measure and keep it."""
    mark = json.dumps(key, sort_keys=True)
    row = kept.find(mark)
    if row is None:
        row = dict(key) | {"found": measured()}
        kept.add(mark, row)
    return row["found"]


def _check_place(out: Path) -> None:
    check_directory(out)
    others = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if others and ROWS not in others:
        raise CheckpointError(f"{out} is no bench, it holds {others[0]}; give a new directory.")


def _rows_of_this(plan: Bench, made_ready: Ready, out: Path) -> KeptRows:
    """Open what is done, if it was done with the same models and settings.

    Raises:
        FuncnetError: it was another bench.
    """
    same = {
        "version": __version__,
        "models": {m.name: [str(m.path), _files_of(m.path)] for m in made_ready.models},
        "dtype": plan.dtype,
        "threads": plan.threads,
    }
    path = out / ROWS
    kept = KeptRows(path)
    before = kept.find("bench")
    if before is None and path.exists() and path.stat().st_size:
        raise FuncnetError(f"{path} is of no bench; give a new directory.")
    if before is None:
        kept.add("bench", same)
    elif before != same:
        changed = next(name for name in same if before.get(name) != same[name])
        raise FuncnetError(
            f"{out} holds a bench with other {changed}, whose times are not to be mixed with "
            "these; give a new directory."
        )
    return kept


def _files_of(path: Path) -> list[list[Any]]:
    """Tell files apart without reading them: name, bytes, time of the last change."""
    found = ((file, file.stat()) for file in sorted(path.iterdir()) if file.is_file())
    return [[file.name, stat.st_size, stat.st_mtime_ns] for file, stat in found]


def _quality(plan: Bench, made_ready: Ready, kept: KeptRows) -> dict[str, dict[str, float]]:
    """Measure the perplexity of every checkpoint on every text, in float32."""
    from funcnet_plugin.checkpoints.loading import load_tokenizer
    from funcnet_plugin.compare.digest import digest
    from funcnet_plugin.evaluation.perplexity import perplexities, text_windows

    found = {}
    for model in made_ready.models if plan.texts else ():
        if model.kind != "checkpoint":
            continue
        tokenizer = load_tokenizer(model.path)
        window = min(plan.window, model.shape.positions or plan.window)
        texts = {
            name: text_windows(source, plan.text_column, tokenizer, window, plan.windows)
            for name, source in plan.texts.items()
        }
        digests = {name: digest(str(windows.tolist())) for name, windows in texts.items()}
        found[model.name] = _once(
            kept,
            {"quality": model.name, "texts": digests},
            lambda m=model, t=texts: perplexities(m.path, t).by_text,
        )
    return found
