"""The field's multiple-choice tasks and LAMBADA, from local files, as lm-eval scores them.

Each file is called after its task and has a question a line: `query`, `choices`, `gold`, in
lm-eval's wording; WinoGrande's has `contexts` and `continuation`, LAMBADA's `text`, whose last word
is to be found. `acc_norm` is accuracy by likelihood per character of the answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from funcnet_plugin.tasks import metric, write_task

ACC, ACC_NORM = (metric(name, "mean", higher_is_better=True) for name in ("acc", "acc_norm"))


def _choices(metrics: list[dict[str, Any]], **other: Any) -> dict[str, Any]:
    return {
        "output_type": "multiple_choice",
        "doc_to_text": "query",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "num_fewshot": 0,
        "metric_list": metrics,
        **other,
    }


# The first metric is the one that LLM-Pruner and those after it report.
TASKS: dict[str, dict[str, Any]] = {
    "piqa": _choices([ACC, ACC_NORM]),
    "hellaswag": _choices([ACC_NORM, ACC]),
    # the same continuation behind one context or the other: lm-eval's form of this task
    "winogrande": _choices(
        [ACC], doc_to_text="gold", doc_to_choice="contexts", doc_to_target="continuation",
        target_delimiter="",
    ),
    "arc_easy": _choices([ACC, ACC_NORM]),
    "arc_challenge": _choices([ACC_NORM, ACC]),
    "openbookqa": _choices([ACC_NORM, ACC]),
    "boolq": _choices([ACC], target_delimiter=""),
    "lambada": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
        "doc_to_target": "{{' '+text.split(' ')[-1]}}",
        "target_delimiter": "",
        "num_fewshot": 0,
        "metric_list": [ACC],
    },
}  # fmt: skip


def write_real_tasks(data: Path, folder: Path) -> list[str]:
    """Write the tasks whose file is in `data`, for `--include-path folder`; return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: data / f"{name}.jsonl" for name in TASKS}
    return [
        write_task(folder, f"real_{name}", path, TASKS[name])
        for name, path in files.items()
        if path.exists()
    ]
