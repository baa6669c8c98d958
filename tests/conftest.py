"""Models and text made on the spot: nothing is downloaded, nothing is stored."""

from __future__ import annotations

import os
import random
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# In pytest the console is captured; the hosts' progress bars would only slow the log down.
os.environ.setdefault("TQDM_DISABLE", "1")
# A command in a test shall not change what the next test sees of the log.
os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "INFO")

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

LETTERS = " abcdefghijklmnopqrstuvwxyz.\n"


def make_llama(**changes) -> LlamaForCausalLM:
    """A random LLaMA: 3 layers of width 48, hidden 24, float32 unless said otherwise."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": 32,
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.3,
    }
    model = LlamaForCausalLM(LlamaConfig(**(settings | changes)))
    return model.eval()


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {s: i for i, s in enumerate(("<pad>", "<s>", "</s>", *LETTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture(scope="session")
def texts() -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choices(LETTERS, k=600)) for _ in range(12)]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A saved random LLaMA with a tokenizer: what a user's model directory looks like."""
    path = tmp_path / "model"
    make_llama().save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def fresh(tmp_path_factory):
    """Loads the same random LLaMA again and again. From a directory: llm-compressor reads the
    config at the model's name_or_path."""
    path = tmp_path_factory.mktemp("fresh")
    make_llama().save_pretrained(path)
    return lambda: AutoModelForCausalLM.from_pretrained(path)


@pytest.fixture
def forget_the_session():
    """llm-compressor's session is global; the next test must not see this one's modifiers."""
    from llmcompressor.core import active_session

    yield
    active_session().lifecycle.recipe.modifiers = []
    active_session().reset()


def shared_data(*parts: str) -> Path:
    """Measuring data that lies beside a developer's checkout; skips where it does not."""
    relative = Path("shared", "data", *parts)
    path = Path(__file__).parents[2] / relative
    if not path.exists():
        pytest.skip(f"{relative} does not lie beside the checkout")
    return path
