"""Code of a checkpoint is not run, and tokens that its model has not are named."""

import json

import pytest
import torch

from funcnet_plugin.checkpoints.loading import load_tokenizer
from funcnet_plugin.errors import CalibrationError, CheckpointError
from funcnet_plugin.evaluation.perplexity import perplexities
from funcnet_plugin.hosts.lm_eval import FuncnetLM
from funcnet_plugin.pruning import prune
from funcnet_plugin.text import own
from tests.checkpoints.doors import refused_everywhere
from tests.conftest import make_tokenizer
from tests.hosting import logged, recipe


def no_prompt(monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("asked at a prompt"))
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.signal.alarm", lambda *a: pytest.fail("asked")
    )


def test_code_of_a_checkpoint_is_refused_without_asking(checkpoint, texts, tmp_path, monkeypatch):
    no_prompt(monkeypatch)
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"model_type": "nobodys", "auto_map": {
        "AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}  # fmt: skip
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "mine.py").write_text("raise SystemExit('ran')\n")
    refused_everywhere("code of its own", checkpoint, texts, tmp_path)


def test_code_of_a_tokenizer_is_refused_without_asking(checkpoint, monkeypatch):
    no_prompt(monkeypatch)
    path = checkpoint / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {
        "tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}  # fmt: skip
    path.write_text(json.dumps(config))
    (checkpoint / "tokenizer.json").unlink()
    for load in (load_tokenizer, lambda path: FuncnetLM(str(path))):
        with pytest.raises(CheckpointError, match=r"the tokenizer of .* code of its own"):
            load(checkpoint)


def test_a_tokenizer_with_more_tokens_than_the_model_is_said_and_writes_none_of_them(
    checkpoint, texts, tmp_path, monkeypatch
):
    written = []

    def kept(*args, **options):
        written.extend(write(*args, **options))
        return written

    write = own.write
    monkeypatch.setattr(own, "write", kept)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<more{i}>" for i in range(400)])
    tokenizer.save_pretrained(checkpoint)
    with logged() as lines:
        prune(
            checkpoint, texts, tmp_path / "o", recipe=recipe("WidthPruningModifier", own_text=0.3),
            samples=8, window=32,
        )  # fmt: skip
    assert any("432 tokens and the model 32" in line for line in lines)
    assert written and max(map(max, written)) < 32


def test_lm_eval_names_a_token_that_the_model_has_not(checkpoint):
    model = FuncnetLM(str(checkpoint))
    with pytest.raises(CalibrationError, match="gives token 32 and the model has 32"):
        model._model_call(torch.tensor([[3, 32]]))
    with pytest.raises(CalibrationError, match="gives token 40 and the model has 32"):
        model._model_generate(torch.tensor([[40, 3]]), 8, ["."])


def test_test_text_with_tokens_that_the_model_has_not_is_refused(checkpoint):
    with pytest.raises(ValueError, match="token 32 and the model has 32"):
        perplexities(checkpoint, {"t": torch.full((1, 8), 32)})
