"""lm-eval's tasks in a comparison: which are scored, and what they say of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from funcnet_plugin.compare.plan import Comparison
from funcnet_plugin.errors import FuncnetError

_NAMES = {"task", "group", "task_alias", "group_alias"}


class Tasks:
    """Knows the tasks of a comparison, and scores checkpoints with them.

    lm-eval's index of all its tasks takes seconds to read, so it is read once.

    Args:
        plan: of the comparison.

    Attributes:
        names: of the plan's tasks; tags, and groups without a score of their own, by their members.

    Raises:
        FuncnetError: lm-eval does not know a task, or a group runs its members with other settings
            than their own.
    """

    def __init__(self, plan: Comparison) -> None:
        self.names: tuple[str, ...] = ()
        self._limit = plan.limit
        if plan.tasks:
            from lm_eval.tasks import TaskManager

            self._manager = TaskManager(include_path=plan.include_path)
            members = _members(plan.tasks, self._manager.task_index)
            self.names = tuple(dict.fromkeys(members))

    def scores(self, checkpoint: str | Path) -> dict[str, float]:
        """Measure the first metric of each task (`acc`, a perplexity), of a group its aggregate.

        In the checkpoint's own dtype, so that `lm_eval --model funcnet` finds the same.
        """
        if not self.names:
            return {}
        from lm_eval import simple_evaluate

        results = simple_evaluate(
            model="funcnet",
            model_args={"pretrained": str(checkpoint)},
            tasks=list(self.names),
            task_manager=self._manager,
            limit=self._limit,
            batch_size=16,
            bootstrap_iters=0,
            log_samples=False,
        )["results"]
        return {name: _first_metric(results[name]) for name in self.names}


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


def _first_metric(result: Mapping[str, Any]) -> float:
    """Pick the first metric, called `metric,filter`: `acc,none`, `exact_match,strict-match`."""
    return next(
        float(value)
        for key, value in result.items()
        if "," in key and "_stderr" not in key and isinstance(value, int | float)
    )
