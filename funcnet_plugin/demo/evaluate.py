"""Scores demo checkpoints: accuracy per skill and perplexity with lm-eval, and speed."""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from funcnet_plugin.demo.skills import SKILLS, documents, examples
from funcnet_plugin.tasks import metric, text_task, write_mean, write_task

TASK = "funcnet_demo"  # a skill's task is funcnet_demo_<skill>, the documents' funcnet_demo_text
GROUP = f"{TASK}_skills"  # the mean of all skills
DOCUMENTS = 100
_SPEED_SHAPE = (16, 128)  # sequences x tokens of one timed forward pass
_SPEED_ROUNDS = 9


@dataclass(frozen=True)
class Evaluation:
    """Holds what one checkpoint reached.

    Attributes:
        accuracy, stderr: skill -> share of questions whose answer has the largest log-likelihood
            of its four choices (lm-eval `acc`, chance 0.25), and its standard error.
        questions: skill -> number of questions.
        byte_perplexity: lm-eval `byte_perplexity` over test documents. Tokens are characters here,
            so it is also the perplexity per token, each document from its own beginning.
        parameters: of the loaded model, shared tensors once.
        bytes_on_disk: of the weights file.
    """

    accuracy: dict[str, float]
    stderr: dict[str, float]
    questions: dict[str, int]
    byte_perplexity: float
    parameters: int
    bytes_on_disk: int


def write_tasks(folder: Path, limit: int, first: int = 0) -> list[str]:
    """Write the questions as jsonl and the lm-eval tasks as YAML; returns the task names.

    `GROUP` is written too, and not returned.

    Args:
        folder: an existing directory.
        limit: questions per skill; fewer where it has fewer.
        first: how many of the questions are passed over.
    """
    names = skill_tasks()
    for skill, name in zip(SKILLS, names, strict=True):
        drawn = examples(skill, min(first + limit, SKILLS[skill].questions), seed=0)
        rows = [
            # with the end of the line: "bark" alone is always likelier than "barks"
            {
                "prompt": e.prompt,
                "choices": [f"{choice}\n" for choice in e.choices],
                "label": e.choices.index(e.answer),
            }
            for e in drawn[first:]
        ]
        task = {
            "output_type": "multiple_choice",
            "doc_to_text": "{{prompt}}",
            "doc_to_choice": "choices",
            "doc_to_target": "label",
            "target_delimiter": "",  # the choices begin with their space
            "metric_list": [metric("acc", "mean", higher_is_better=True)],
        }
        write_task(folder, name, _write_rows(folder, skill, rows), task)
    write_mean(folder, GROUP, names, "acc")
    rows = [{"text": text} for text in documents(DOCUMENTS, seed=0, split="test")]
    task = text_task("text", metrics=("byte_perplexity",))
    return [*names, write_task(folder, f"{TASK}_text", _write_rows(folder, "text", rows), task)]


def skill_tasks() -> list[str]:
    """List the names of the skills' tasks, in the order of the skills."""
    return [f"{TASK}_{skill}" for skill in SKILLS]


def _write_rows(folder: Path, name: str, rows: list[dict]) -> Path:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluate(
    checkpoint: Path, folder: Path, *, limit: int = 100, batch_size: int = 64
) -> Evaluation:
    """Load a checkpoint with stock transformers, through lm-eval's own `hf` model, and score it.

    Args:
        checkpoint: directory.
        folder: where `write_tasks` puts questions and tasks; the same ones every time.
        limit: questions per skill.
        batch_size: sequences per forward pass.
    """
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    folder.mkdir(parents=True, exist_ok=True)
    names = write_tasks(folder, limit)
    # add_bos_token: the model has never seen a line without the beginning of its document
    lm = HFLM(
        pretrained=str(checkpoint),
        dtype="float32",
        device="cuda" if torch.cuda.is_available() else "cpu",
        add_bos_token=True,
        batch_size=batch_size,
    )
    output = simple_evaluate(
        model=lm,
        tasks=names,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=1,  # 0 would also drop the closed-form standard error of `acc`
        log_samples=False,
    )
    results = output["results"]
    return Evaluation(
        accuracy={s: results[f"{TASK}_{s}"]["acc,none"] for s in SKILLS},
        stderr={s: results[f"{TASK}_{s}"]["acc_stderr,none"] for s in SKILLS},
        questions={s: output["n-samples"][f"{TASK}_{s}"]["effective"] for s in SKILLS},
        byte_perplexity=results[f"{TASK}_text"]["byte_perplexity,none"],
        parameters=lm.model.num_parameters(),
        bytes_on_disk=sum(f.stat().st_size for f in Path(checkpoint).glob("*.safetensors")),
    )


def measure_speed(checkpoints: list[Path]) -> list[float]:
    """Measure tokens per second of forward passes of 16 x 128 tokens, for each checkpoint.

    The models take turns, so that a change in the machine's load hits all of them; median of nine
    rounds after a warm-up.
    """
    import torch
    from transformers import AutoModelForCausalLM

    models = [AutoModelForCausalLM.from_pretrained(c, dtype=torch.float32) for c in checkpoints]
    ids = torch.randint(4, models[0].config.vocab_size, _SPEED_SHAPE)
    seconds: list[list[float]] = [[] for _ in models]
    with torch.no_grad():
        for turn in range(_SPEED_ROUNDS + 1):
            for model, times in zip(models, seconds, strict=True):
                start = time.perf_counter()
                model(ids, use_cache=False)
                if turn:
                    times.append(time.perf_counter() - start)
    return [ids.numel() / statistics.median(times) for times in seconds]
