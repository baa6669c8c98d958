"""Exported models run by llama.cpp itself: tokens, logits and what is written are transformers'.

`make test-runtimes` installs llama-cpp-python (it compiles for minutes) and runs these.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from funcnet_plugin.bench import Bench, Load, bench
from funcnet_plugin.bench.backends.llama_cpp import Decoding
from funcnet_plugin.bench.load import prompts
from funcnet_plugin.export import export_model
from tests.conftest import make_llama
from tests.export.test_gguf import byte_pairs, checkpoint

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
# Keys and values are kept in float16 otherwise, which is what differs then.
FLOAT32_CACHE = {"type_k": 0, "type_v": 0}
TEXT = "the cat sat on 12 mats, with other cats.\n\nthe mat is not a cat: it isn't 3-4 years old  "
SHAPE = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 64, "initializer_range": 0.1}


def qwen2():
    torch.manual_seed(0)
    sizes = SHAPE | {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, max_position_embeddings=128)).eval()
    for name, bias in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(bias, std=0.3)
    return model


def llama(**changes):
    model = make_llama(**SHAPE | {"mlp_bias": True} | changes)
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.mlp.down_proj.bias, std=0.3)
    return model


LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
MODELS = {
    "llama": lambda: (llama(), None),
    "llama, per layer": lambda: (llama(), (64, 32, 47)),
    "llama, head size of its own": lambda: (llama(head_dim=32), (64, 32, 47)),
    "llama 3 positions": lambda: (llama(rope_parameters=LLAMA_3), None),
    "linear positions": lambda: (llama(rope_parameters=LINEAR), (64, 32, 47)),
    "qwen2": lambda: (qwen2(), None),
    "qwen2, per layer": lambda: (qwen2(), (64, 32, 47)),
}


def run(path: Path, ids: list[int], written: int) -> tuple[np.ndarray, list[int]]:
    """Give the logits of every token, and what is written greedily behind them."""
    model = llama_cpp.Llama(
        str(path / "model.gguf"), n_ctx=128, logits_all=True, verbose=False, n_threads=1,
        **FLOAT32_CACHE,
    )  # fmt: skip
    model.eval(ids)
    logits = np.array(model.scores[: len(ids)])
    found = []
    for _ in range(written):
        found.append(int(np.argmax(model.scores[model.n_tokens - 1])))
        model.eval(found[-1:])
    return logits, found


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_what_transformers_does(tmp_path, name):
    model, widths = MODELS[name]()
    source = checkpoint(tmp_path / "model", model, widths)
    export_model(source, tmp_path / "gguf", "gguf:f32")
    tokenizer = AutoTokenizer.from_pretrained(source)
    ids = tokenizer(TEXT)["input_ids"]
    loaded = AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        expected = loaded(torch.tensor([ids])).logits[0].numpy()
        continued = loaded.generate(
            torch.tensor([ids]), max_new_tokens=32, min_new_tokens=32, do_sample=False
        )[0, len(ids) :].tolist()
    logits, found = run(tmp_path / "gguf", ids, 32)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
    assert found == continued


def test_llama_cpp_splits_text_the_same(tmp_path):
    source = checkpoint(tmp_path / "model", llama())
    export_model(source, tmp_path / "gguf", "gguf:f32")
    model = llama_cpp.Llama(str(tmp_path / "gguf" / "model.gguf"), vocab_only=True, verbose=False)
    expected = byte_pairs()(TEXT)["input_ids"]
    assert model.tokenize(TEXT.encode(), add_bos=False) == expected
    assert model.detokenize(expected) == TEXT.encode()
    assert "tokenizer.chat_template" in model.metadata


@pytest.mark.parametrize("load", [Load(40, 9), Load(12, 5, 3)])
def test_a_bench_writes_the_tokens_that_transformers_writes(tmp_path, load):
    model = llama()
    source = checkpoint(tmp_path / "model", model, (64, 32, 47))
    export_model(source, tmp_path / "gguf", "gguf:f32")
    backend = Decoding(tmp_path / "gguf", threads=1)
    timings = backend.run(load, 2)
    assert len(timings) == 2 and all(t.first > 0 and t.rest > 0 for t in timings)
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(source).generate(
            torch.tensor(prompts(300, load)), max_new_tokens=load.written, do_sample=False,
            min_new_tokens=load.written,
        )  # fmt: skip
    assert backend.last == expected[:, -1].tolist()
    backend.run(Load(3, 3), 1)  # another load takes another cache
    backend.close()


def test_bench_of_quantized_files(tmp_path, monkeypatch):
    """Checkpoints are exported for it; what is a GGUF already is taken as it is."""
    monkeypatch.setattr("funcnet_plugin.bench.run.peak_memory", lambda *args: 1)  # takes seconds
    dense = checkpoint(tmp_path / "dense", llama())
    pruned = checkpoint(tmp_path / "pruned", llama(), (32, 32, 32))
    plan = Bench([dense, pruned], ["llama.cpp:q8_0", "llama.cpp:q4_0"], [Load(8, 4)],
                 repetitions=2, aligned=(1,))  # fmt: skip
    rows = bench(plan, tmp_path / "out")["rows"]
    assert [row["model"] for row in rows] == ["dense", "pruned"] * 2
    q8, _, q4, less = (row["weight_bytes"] for row in rows)
    assert less < q4 < q8
    export_model(pruned, tmp_path / "gguf", "gguf:q4_0")
    (row,) = bench(Bench([tmp_path / "gguf"], loads=[Load(8, 4)], repetitions=2),
                   tmp_path / "out2")["rows"]  # fmt: skip
    assert row["backend"] == "llama.cpp" and row["weight_bytes"] == less
