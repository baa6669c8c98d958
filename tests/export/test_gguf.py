"""GGUF files, read back with the package that llama.cpp's own converter writes them with."""

import io
import json

import gguf
import numpy as np
import pytest
import sentencepiece
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from funcnet_plugin.adapters import bind
from funcnet_plugin.checkpoints.block import set_widths
from funcnet_plugin.cut.surgery import cut
from funcnet_plugin.errors import CheckpointError, FuncnetError
from funcnet_plugin.export import export_model, exporter
from funcnet_plugin.export import gguf as ours
from funcnet_plugin.export.gguf_vocabulary import _OF_PATTERN, read_vocabulary
from tests.conftest import make_llama, make_tokenizer
from tests.families import FAMILIES

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
TEXTS = ["the cat sat on the mat with 12 other cats"] * 9
PLAIN_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def byte_pairs(splitter=BYTES, texts=TEXTS, vocabulary=290) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = splitter, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<s>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(texts, trainer)
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")
    found.chat_template = "{{ messages[0]['content'] }}"
    return found


def checkpoint(folder, model, widths=None, tokenizer=None):
    """Save a model, its layers cut to the given widths, with a tokenizer."""
    if widths is not None:
        layout = bind(model)
        for block, width in zip(layout.blocks, widths, strict=True):
            cut(block, torch.arange(width))
        set_widths(model.config, layout.adapter.width_key, list(widths))
        model.config.functional_network = {"kept_widths": list(widths)}
    model.save_pretrained(folder)
    (tokenizer or byte_pairs()).save_pretrained(folder)
    return folder


def wide_llama():
    """Rows of 64: q8_0 holds blocks of 32."""
    return make_llama(vocab_size=300, hidden_size=64, intermediate_size=64)


def read(folder):
    reader = gguf.GGUFReader(folder / "model.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: tensor for tensor in reader.tensors}


def values(tensor) -> np.ndarray:
    return gguf.dequantize(tensor.data, tensor.tensor_type)


@pytest.mark.parametrize("widths", [(32, 32, 32), (32, 16, 24)])
def test_every_number_of_the_checkpoint_is_in_the_file(tmp_path, widths):
    source = checkpoint(tmp_path / "model", make_llama(vocab_size=300, mlp_bias=True), widths)
    export_model(source, tmp_path / "out", "gguf")
    fields, tensors = read(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(source)
    heads, one_width = model.config.num_attention_heads, len(set(widths)) == 1
    name = "llama" if one_width else "deci"
    assert fields["general.architecture"] == name
    assert fields[f"{name}.feed_forward_length"] == (32 if one_width else list(widths))
    assert fields[f"{name}.block_count"] == 3 and fields[f"{name}.vocab_size"] == 300
    assert fields[f"{name}.context_length"] == model.config.max_position_embeddings
    pairs = {"blk.{}.attn_q": "self_attn.q_proj", "blk.{}.attn_k": "self_attn.k_proj"}
    same = {
        "blk.{}.attn_v": "self_attn.v_proj", "blk.{}.attn_output": "self_attn.o_proj",
        "blk.{}.ffn_gate": "mlp.gate_proj", "blk.{}.ffn_up": "mlp.up_proj",
        "blk.{}.ffn_down": "mlp.down_proj", "blk.{}.attn_norm": "input_layernorm",
        "blk.{}.ffn_norm": "post_attention_layernorm",
    }  # fmt: skip
    seen = set()
    for layer in range(3):
        for there, here in (same | pairs).items():
            for kind, expected in model.model.layers[layer].get_submodule(here).named_parameters():
                key = f"{there.format(layer)}.{kind}"
                seen.add(key)
                found = torch.from_numpy(values(tensors[key]).copy())
                if there in pairs:  # the rotary pairs stand side by side
                    count = heads if here.endswith("q_proj") else model.config.num_key_value_heads
                    first, second = expected.view(count, 2, -1, expected.shape[-1]).unbind(1)
                    expected = torch.stack([first, second], 2).flatten(0, 2)
                torch.testing.assert_close(found, expected, atol=0, rtol=0)
    assert set(tensors) - seen == {"token_embd.weight", "output_norm.weight"} | (
        set() if model.config.tie_word_embeddings else {"output.weight"}
    )
    assert np.array_equal(
        values(tensors["token_embd.weight"]), model.get_input_embeddings().weight.detach().numpy()
    )


def test_tokens_merges_and_the_chat_template_are_inside(tmp_path):
    source = checkpoint(tmp_path / "model", make_llama(vocab_size=300))
    export_model(source, tmp_path / "out", "gguf")
    fields, _ = read(tmp_path / "out")
    tokenizer = byte_pairs()
    tokens = fields["tokenizer.ggml.tokens"]
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert tokens[len(tokenizer) :] == [f"[PAD{i}]" for i in range(len(tokenizer), 300)]
    types = fields["tokenizer.ggml.token_type"]
    assert types[0] == gguf.TokenType.CONTROL and types[1] == gguf.TokenType.NORMAL
    assert types[299] == gguf.TokenType.UNUSED
    assert fields["tokenizer.ggml.model"] == "gpt2" and fields["tokenizer.ggml.pre"] == "gpt-2"
    merges = json.loads((source / "tokenizer.json").read_text())["model"]["merges"]
    assert fields["tokenizer.ggml.merges"] == [" ".join(merge) for merge in merges]
    assert fields["tokenizer.ggml.bos_token_id"] == 0
    assert fields["tokenizer.chat_template"] == tokenizer.chat_template


def test_variants_hold_the_matrices_and_leave_norms_alone(tmp_path):
    model = wide_llama().bfloat16()
    source = checkpoint(tmp_path / "model", model, (64, 32, 32))
    errors = {None: 0, "bf16": 0, "f32": 0, "f16": 1e-3, "q8_0": 1e-2, "q4_0": 0.13}
    for variant, error in errors.items():
        out = tmp_path / str(variant)
        export_model(source, out, "gguf" if variant is None else f"gguf:{variant}")
        _, tensors = read(out)
        down = tensors["blk.0.ffn_down.weight"]
        assert down.tensor_type.name == (variant or "bf16").upper()
        expected = model.model.layers[0].mlp.down_proj.weight.detach().float().numpy()
        assert np.abs(values(down) - expected).max() <= error * np.abs(expected).max()
        assert tensors["output_norm.weight"].tensor_type.name == "F32"


@pytest.mark.parametrize(
    ("splitter", "name"),
    [
        (BYTES, "gpt-2"),
        (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES]), "smollm"),
        *(
            (
                pre_tokenizers.Sequence(
                    [pre_tokenizers.Split(Regex(pattern), "isolated"), PLAIN_BYTES]
                ),
                name,
            )
            for pattern, name in _OF_PATTERN.items()
        ),
    ],
)
def test_ways_to_split_text_have_llama_cpps_names(tmp_path, splitter, name):
    byte_pairs(splitter).save_pretrained(tmp_path)
    assert read_vocabulary(tmp_path, 300).pre == name


def test_another_tokenizer_is_refused(tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no name for"):
        read_vocabulary(tmp_path, 32)
    byte_pairs(pre_tokenizers.Whitespace()).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no name for"):
        read_vocabulary(tmp_path, 300)
    with pytest.raises(CheckpointError, match=r"neither tokenizer.json nor tokenizer.model"):
        read_vocabulary(tmp_path / "nowhere", 32)


@pytest.mark.parametrize("variant", ["q8_0", "q4_0"])
def test_rows_off_the_grid_of_a_quantization_are_refused(tmp_path, variant):
    source = checkpoint(tmp_path / "model", wide_llama(), (64, 40, 32))
    with pytest.raises(CheckpointError, match=r"layers.1.mlp.down_proj.weight .* rows of 40, .*32"):
        export_model(source, tmp_path / "out", f"gguf:{variant}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "widths", "message"),
    [("gpt2", None, "GGUF is written for"), ("qwen3", "several", "reads one width")],
)
def test_models_that_llama_cpp_cannot_hold_are_refused(tmp_path, family, widths, message):
    model = FAMILIES[family].build()
    if widths:
        whole = bind(model).widths
        widths = [whole[0] - 4, *whole[1:]]
    with pytest.raises(CheckpointError, match=message):
        export_model(checkpoint(tmp_path / "m", model, widths), tmp_path / "out", "gguf")


def test_biases_activations_and_positions_that_are_not_read_are_refused(tmp_path):
    for i, (changes, message) in enumerate(
        [
            ({"hidden_act": "gelu"}, "the activation gelu"),
            (
                {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 10000.0}},
                "of the type yarn",
            ),
        ]
    ):
        source = checkpoint(tmp_path / str(i), make_llama(vocab_size=300, **changes))
        with pytest.raises(CheckpointError, match=message):
            export_model(source, tmp_path / "out", "gguf")


def test_variants_and_the_package_are_asked_for_in_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(FuncnetError, match=r"gguf takes one of f32, .*, q4_0 .* not q2_k"):
        exporter("gguf:q2_k")
    with pytest.raises(FuncnetError, match="padded takes nothing after a colon"):
        exporter("padded:f16")
    monkeypatch.setattr(ours, "find_spec", lambda name: None)
    with pytest.raises(FuncnetError, match=r"install funcnet-plugin\[gguf\]"):
        export_model(checkpoint(tmp_path / "m", make_llama(vocab_size=300)), tmp_path / "o", "gguf")


def test_tokens_added_to_sentencepiece_are_named_and_kept_apart(tmp_path):
    """Fast tokenizers say them in tokenizer.json; what SentencePiece has itself stays as it is."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["networks of neurons act together"] * 20), model_writer=written,
        vocab_size=60, model_type="bpe", hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(written.getvalue())
    n = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue()).vocab_size()
    added = [
        {"id": number, "content": content, "special": special}
        for number, content, special in (
            (0, "<unk>", True), (n, "<|im_start|>", True), (n + 1, "word", False), (n + 9, "x", 1)
        )
    ]  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    found = read_vocabulary(tmp_path, n + 3)
    assert found.tokens[n:] == [b"<|im_start|>", b"word", b"[PAD%d]" % (n + 2)]
    kinds = gguf.TokenType
    assert found.types[n:] == [kinds.CONTROL, kinds.USER_DEFINED, kinds.UNUSED]
    assert found.types[0] == kinds.UNKNOWN


def test_byte_pairs_without_a_row_are_left_out(tmp_path):
    """As where a padding token was added and the embeddings were not resized."""
    tokenizer = byte_pairs()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(tmp_path)
    found = read_vocabulary(tmp_path, len(tokenizer) - 1)
    assert len(found.tokens) == len(tokenizer) - 1 and b"<pad>" not in found.tokens
