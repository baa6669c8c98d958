"""Tasks are scored the same on a checkpoint and on the model held in memory, however often."""

import json

import pytest
import yaml

from funcnet_plugin.evaluation import lm_eval_tasks
from funcnet_plugin.evaluation.lm_eval_tasks import Tasks
from funcnet_plugin.hosts.lm_eval import FuncnetLM
from funcnet_plugin.tasks import write_local_tasks, write_mean
from tests.conftest import make_llama, make_tokenizer


@pytest.fixture
def folder(tmp_path, texts):
    pairs = [{"sentence_good": t[:20], "sentence_bad": t[20:40]} for t in texts]
    for name, some in (("order", pairs[:7]), ("more", pairs[7:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(p) + "\n" for p in some))
    files = [tmp_path / "order.jsonl", tmp_path / "more.jsonl"]
    write_mean(tmp_path, "both", write_local_tasks(tmp_path, {}, files, "text"), "acc")
    make_llama().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path


def test_a_model_in_memory_scores_as_its_checkpoint(folder):
    order = yaml.safe_load((folder / "pairs_order.yaml").read_text())
    shots = order | {"task": "shots", "num_fewshot": 2, "fewshot_split": "test"}
    (folder / "shots.yaml").write_text(yaml.safe_dump(shots))
    tasks = Tasks(["pairs_order", "pairs_more", "shots"], str(folder))
    of_checkpoint = tasks.scores(folder / "model")
    held = FuncnetLM(str(folder / "model"), batch_size=16)
    assert tasks.scores(held) == of_checkpoint
    assert tasks.scores(held) == of_checkpoint  # the same examples are shown again
    assert len(set(of_checkpoint.values())) > 1


def test_a_mean_counts_every_task_the_same(folder):
    members = Tasks(["pairs_order", "pairs_more"], str(folder)).scores(folder / "model")
    held = FuncnetLM(str(folder / "model"), batch_size=16)
    (mean,) = Tasks(["both"], str(folder)).scores(held).values()
    assert mean == pytest.approx(sum(members.values()) / 2)


def test_lm_evals_own_tasks_are_read_only_if_one_is_asked_for(folder):
    alone = Tasks(["both", "pairs_order"], str(folder))
    assert set(alone._manager.all_tasks) == {"both", "pairs_order", "pairs_more"}
    group = {"group": "mixed", "task": ["pairs_order", "piqa"]}
    (folder / "mixed.yaml").write_text(yaml.safe_dump(group))
    assert Tasks(["mixed"], str(folder)).names == ("pairs_order", "piqa")
    assert lm_eval_tasks._is_there("mixed", alone._manager.task_index) is False
