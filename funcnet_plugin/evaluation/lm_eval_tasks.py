"""Scores models by lm-eval's tasks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from funcnet_plugin.errors import FuncnetError

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks.manager import TaskDict

_FEWSHOT_SEED = 1234  # lm-eval's own
_NAMES = {"task", "group", "task_alias", "group_alias"}


class Tasks:
    """Knows some tasks, and scores checkpoints with them.

    lm-eval's index of all its tasks takes seconds to read, so it is read once, and not at all where
    the tasks are those of `include_path`.

    Args:
        tasks: names of lm-eval.
        include_path: where lm-eval looks for tasks besides its own.
        limit: questions of each; None for all.

    Attributes:
        names: of the tasks; tags, and groups without a score of their own, by their members.

    Raises:
        FuncnetError: lm-eval does not know a task, or a group runs its members with other settings
            than their own.
    """

    def __init__(
        self, tasks: Sequence[str], include_path: str | None = None, limit: int | None = None
    ) -> None:
        self.names: tuple[str, ...] = ()
        self._limit = limit
        if tasks:
            self._manager = _manager(tasks, include_path)
            members = _members(tasks, self._manager.task_index)
            self.names = tuple(dict.fromkeys(members))

    @cached_property
    def _loaded(self) -> TaskDict:
        return self._manager.load(list(self.names))

    def at_chance(self, scores: Mapping[str, float]) -> dict[str, float]:
        """Find the tasks whose score guessing might give: what is lost from there says nothing.

        Args:
            scores: task -> share of right answers, over the questions that `scores` asks.

        Returns:
            task -> what guessing gives, one over the number of answers. The score is less than two
            standard errors of guessing above that. Tasks without a choice of answers are not
            looked at, and no task whose first metric is not an accuracy.
        """
        if not self.names:
            return {}
        found = {}
        for name, task in self._loaded["tasks"].items():
            metrics = task.config.metric_list or [{"metric": "acc"}]  # what lm-eval takes then
            if name not in scores or task.OUTPUT_TYPE != "multiple_choice":
                continue
            if metrics[0]["metric"] not in ("acc", "acc_norm"):
                continue
            asked = list(task.eval_docs)[: self._limit]
            chance = mean(1 / len(task.doc_to_choice(question)) for question in asked)
            error = math.sqrt(chance * (1 - chance) / len(asked))
            if scores[name] < chance + 2 * error:
                found[name] = chance
        return found

    def losses(self) -> list[str]:
        """List the tasks whose first metric is better the lower it is, such as a perplexity."""
        if not self.names:
            return []
        better = {name: task.higher_is_better() for name, task in self._loaded["tasks"].items()}
        return [name for name, of in better.items() if of and not next(iter(of.values()))]

    def scores(self, model: str | Path | LM) -> dict[str, float]:
        """Measure the first metric of each task (`acc`, a perplexity), of a group its aggregate.

        Args:
            model: a checkpoint, measured in its own dtype, so that `lm_eval --model funcnet` finds
                the same; or one that lm-eval holds in memory.
        """
        if not self.names:
            return {}
        if isinstance(model, str | Path):
            results = self._of_checkpoint(str(model))
        else:
            results = self._of_held(model)
        return {name: _first_metric(results[name]) for name in self.names}

    def _of_checkpoint(self, model: str) -> Mapping[str, Any]:
        from lm_eval import simple_evaluate

        return simple_evaluate(
            model="funcnet",
            model_args={"pretrained": model},
            tasks=list(self.names),
            task_manager=self._manager,
            limit=self._limit,
            batch_size=16,
            bootstrap_iters=0,
            log_samples=False,
        )["results"]

    def _of_held(self, model: LM) -> Mapping[str, Any]:
        """Do what `simple_evaluate` does, without what takes seconds every time.

        It reads the data again, and lists all packages of the machine.
        """
        from lm_eval import evaluate

        for task in self._loaded["tasks"].values():
            if task.get_config("num_fewshot") is None:
                task.set_config("num_fewshot", 0)
            task.set_fewshot_seed(seed=_FEWSHOT_SEED)
        return evaluate(
            model, self._loaded, limit=self._limit, bootstrap_iters=0, log_samples=False
        )["results"]


def _manager(tasks: Sequence[str], include_path: str | None) -> TaskManager:
    """Index the tasks of a directory, and lm-eval's own if one that is needed is not there."""
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        manager = TaskManager(include_path=include_path, include_defaults=False)
        if all(_is_there(task, manager.task_index) for task in tasks):
            return manager
    return TaskManager(include_path=include_path)


def _is_there(task: Any, index: Mapping[str, Any]) -> bool:
    """Tell whether an index has a task, or a group with all its members."""
    entry = index.get(task) if isinstance(task, str) else None
    if entry is None or entry.kind.name == "TAG":  # lm-eval's own may have the same tag
        return False
    if entry.kind.name != "GROUP":
        return True
    members = entry.cfg["task"]
    return all(
        _is_there(member, index) for member in ([members] if isinstance(members, str) else members)
    )


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
