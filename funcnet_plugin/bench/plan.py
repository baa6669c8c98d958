"""Says what to bench, and refuses what cannot be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from funcnet_plugin.bench.backends import Runtime, Setting, find_runtime
from funcnet_plugin.bench.load import STANDARD, Load
from funcnet_plugin.bench.models import Model, check_same_tokenizer, find_models
from funcnet_plugin.errors import FuncnetError

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Bench:
    """Says which models to time, in which runtimes, at what.

    Attributes:
        models: directories; all others are compared with the first.
        backends: names, see `backends.find_runtime`; if there are none, llama.cpp where all models
            are GGUF, transformers otherwise.
        loads: if there are none, those of `load.STANDARD` that the models have positions for.
        concurrency: texts at once; each load is made with each.
        repetitions, warm_up: of each model and load; the warm-up is not counted.
        aligned: beside a model whose widths are no multiples of one of these, a twin with random
            weights is timed whose widths are rounded up to it.
        texts: name -> file, see `evaluation.perplexity.text_windows`.
        text_column: field of a record with the text.
        window, windows: tokens per test window, test windows per text.
        dtype: of transformers and vLLM, one of `DTYPES`.
        threads: of the CPU.
        vllm: the command, if it is not on the PATH.
    """

    models: Sequence[Path]
    backends: Sequence[str] = ()
    loads: Sequence[Load] = ()
    concurrency: Sequence[int] = (1,)
    repetitions: int = 30
    warm_up: int = 2
    aligned: Sequence[int] = (128,)
    texts: Mapping[str, str] = field(default_factory=dict)
    text_column: str = "text"
    window: int = 512
    windows: int = 16
    dtype: str = "auto"
    threads: int = 1
    vllm: str | None = None


@dataclass(frozen=True)
class Ready:
    """Holds a bench that was checked.

    Attributes:
        models: the first is what others are compared with.
        runtimes: with the version of each.
        setting: of all models.
    """

    models: list[Model]
    runtimes: dict[Runtime, str]
    setting: Setting


def ready(plan: Bench) -> Ready:
    """Check what is asked, and find the runtimes.

    Raises:
        FuncnetError: one sentence on what cannot be benched, before a model is loaded.
    """
    if plan.dtype not in DTYPES:
        raise FuncnetError(f"dtype is one of {', '.join(DTYPES)}, not {plan.dtype!r}.")
    models = find_models(list(plan.models))
    names = plan.backends or (
        ("llama.cpp",) if all(m.kind == "gguf" for m in models) else ("transformers",)
    )
    runtimes = [find_runtime(name) for name in dict.fromkeys(names)]
    check_same_tokenizer(models)
    loads = _fitting(models, plan.loads)
    setting = Setting(
        threads=plan.threads,
        dtype=plan.dtype,
        loads=tuple(
            replace(load, concurrency=n)
            for load, n in product(loads, dict.fromkeys(plan.concurrency))
        ),
        vllm=plan.vllm,
    )
    return Ready(models, {runtime: runtime.check(setting) for runtime in runtimes}, setting)


def _fitting(models: list[Model], asked: Sequence[Load]) -> list[Load]:
    """Keep the loads that all models have positions for; one that was asked for must fit."""
    room, name = min(
        ((model.shape.positions or float("inf"), model.name) for model in models),
        key=lambda found: found[0],
    )
    fit = [load for load in asked or STANDARD if load.length <= room]
    if len(fit) < len(asked) or not fit:
        wide = next(load for load in asked or STANDARD if load.length > room)
        raise FuncnetError(
            f"{name} has {room} positions and {wide} needs {wide.length}; give shorter lengths, "
            "like --lengths 32/32."
        )
    return fit
