"""lm-eval's tasks in a comparison: which are scored, and what they say of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from funcnet_plugin.compare.plan import Comparison
from funcnet_plugin.errors import FuncnetError

_NAMES = {"task", "group", "task_alias", "group_alias"}


def scored_tasks(plan: Comparison) -> tuple[str, ...]:
    """Name the plan's tasks; tags, and groups without a score of their own, by their members.

    Raises:
        FuncnetError: lm-eval does not know a task, or a group runs its members with other settings
            than their own.
    """
    if not plan.tasks:
        return ()
    return tuple(dict.fromkeys(_members(plan.tasks, _task_manager(plan).task_index)))


def _members(tasks: Sequence[Any], index: Mapping[str, Any]) -> Iterator[str]:
    for task in tasks:
        if isinstance(task, Mapping):  # written out inside a group, and has no name in the index
            inner = task.get("task", ())
            if not inner or not set(task) <= _NAMES:
                raise FuncnetError(
                    f"a group of these tasks changes what {inner or dict(task)} is; give the tasks "
                    "one by one, or your own with those settings and --include-path."
                )
            yield from _members([inner] if isinstance(inner, str) else inner, index)
            continue
        entry = index.get(task)
        if entry is None:
            raise FuncnetError(
                f"lm-eval knows no task {task!r}; look for its name with lm_eval ls tasks, or give "
                "the directory of your own with --include-path."
            )
        if entry.kind.name == "TAG":
            yield from _members(sorted(entry.tags), index)
        elif entry.kind.name == "GROUP" and not entry.cfg.get("aggregate_metric_list"):
            yield from _members(entry.cfg["task"], index)
        else:
            yield task


def task_scores(checkpoint: str | Path, plan: Comparison) -> dict[str, float]:
    """Measure the first metric of each task (`acc`, a perplexity), of a group its aggregate."""
    from lm_eval import simple_evaluate

    results = simple_evaluate(
        model="funcnet",
        model_args={"pretrained": str(checkpoint), "dtype": "float32"},
        tasks=list(plan.tasks),
        task_manager=_task_manager(plan),
        limit=plan.limit,
        batch_size=16,
        bootstrap_iters=0,
        log_samples=False,
    )["results"]
    return {name: _first_metric(results[name]) for name in plan.tasks}


def _task_manager(plan: Comparison) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=plan.include_path)


def _first_metric(result: Mapping[str, Any]) -> float:
    """Pick the first metric, called `metric,filter`: `acc,none`, `exact_match,strict-match`."""
    return next(
        float(value)
        for key, value in result.items()
        if "," in key and "_stderr" not in key and isinstance(value, int | float)
    )
