"""ChatGLM in its original format: read, pruned, written back, and left for stock `glm`."""

import io
import json
import shutil
import subprocess
import sys

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from funcnet_plugin.adapters import bind
from funcnet_plugin.checkpoints.block import set_widths
from funcnet_plugin.cut.surgery import cut
from funcnet_plugin.errors import CheckpointError
from funcnet_plugin.export import export_model
from funcnet_plugin.inspection import inspect_model
from funcnet_plugin.models.chatglm.configuration import ChatGLMConfig
from tests.conftest import shared_data
from tests.families import FAMILIES, WIDTH
from tests.hosting import IDS, WITHOUT_US, logits, recipe, reload_without_us, run
from tests.hosts.llmcompressor.test_quantization import W8A8

pytestmark = pytest.mark.usefixtures("forget_the_session")

TEXTS = ("networks of neurons", " two  spaces\tand é, 🙂", "[MASK] sop </s> are only text", "")


@pytest.fixture(scope="module")
def sentencepiece_model(texts) -> bytes:
    """BPE with byte fallback that changes no whitespace, like ChatGLM's."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXTS[:2], "networks of neurons act together", *texts]),
        model_writer=written, vocab_size=320, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    return written.getvalue()


@pytest.fixture
def original(tmp_path, sentencepiece_model):
    """A directory as published: fused tensors, original keys, code that does not run any more."""
    path = tmp_path / "original"
    FAMILIES["chatglm"].build().save_pretrained(path)
    (path / "tokenizer.model").write_bytes(sentencepiece_model)
    for name in ("configuration", "modeling", "tokenization"):
        (path / f"{name}_chatglm.py").write_text("raise RuntimeError('written for transformers 4')")
    write_json(
        path / "config.json",
        {
            "auto_map": {
                "AutoConfig": "configuration_chatglm.ChatGLMConfig",
                "AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
            }
        },
    )
    write_json(
        path / "tokenizer_config.json",
        {
            "tokenizer_class": "ChatGLMTokenizer",
            "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
        },
    )
    return path


def write_json(path, changes):
    data = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(data | changes))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A tiny ChatGLM3 with what the original code computed for it."""
    source = shared_data("chatglm3-tiny")
    path = tmp_path_factory.mktemp("chatglm3")
    for name in ("config.json", "tokenizer.model"):
        (path / name).write_bytes((source / name).read_bytes())
    (path / "model.safetensors").write_bytes((source / "original.safetensors").read_bytes())
    return path, load_file(source / "io.safetensors"), source / "tokenizer_ref.json"


@torch.no_grad()
def test_logits_and_tokens_are_those_of_the_original_code(reference):
    path, expected, _ = reference
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    for i in range(3):
        found = model(expected[f"input_ids_{i}"]).logits
        torch.testing.assert_close(found, expected[f"logits_{i}"], atol=2e-5, rtol=0)
    mask = expected["padded_attention_mask"]
    found = model(expected["padded_input_ids"], attention_mask=mask).logits
    real = mask.bool()
    torch.testing.assert_close(found[real], expected["padded_logits"][real], atol=2e-5, rtol=0)
    ids = expected["input_ids_2"]
    new = expected["greedy_2"].shape[1] - ids.shape[1]
    generated = model.generate(ids, max_new_tokens=new, do_sample=False)
    assert torch.equal(generated, expected["greedy_2"])
    loss = model(expected["input_ids_0"], labels=expected["input_ids_0"]).loss
    torch.testing.assert_close(loss, expected["loss_0"][0], atol=1e-5, rtol=0)


def test_token_ids_are_those_of_the_original_code(reference):
    path, _, ids = reference
    tokenizer = AutoTokenizer.from_pretrained(path)
    for text, expected in json.loads(ids.read_text()):
        assert tokenizer(text)["input_ids"] == expected
        assert tokenizer.decode(expected, skip_special_tokens=True) == text


def test_saving_writes_the_original_format_back(reference, tmp_path):
    path, *_ = reference
    AutoModelForCausalLM.from_pretrained(path).save_pretrained(tmp_path / "again")
    source, again = (load_file(p / "model.safetensors") for p in (path, tmp_path / "again"))
    assert set(source) - set(again) == {"transformer.rotary_pos_emb.inv_freq"}  # computed
    assert all(torch.equal(source[name], tensor) for name, tensor in again.items())
    before, after = (
        json.loads((p / "config.json").read_text()) for p in (path, tmp_path / "again")
    )
    ours = {"_name_or_path", "transformers_version"}
    assert {k: after[k] for k in before if k not in ours} == {
        k: v for k, v in before.items() if k not in ours
    }


def test_bin_shards_are_read(original):
    tensors = load_file(original / "model.safetensors")
    expected = logits(AutoModelForCausalLM.from_pretrained(original))
    (original / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[:9], names[9:]), 1):
        file = f"pytorch_model-0000{i}-of-00002.bin"
        torch.save({name: tensors[name] for name in part}, original / file)
        weight_map |= dict.fromkeys(part, file)
    write_json(
        original / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": weight_map}
    )
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(original)), expected)


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForCausalLM])
def test_the_habit_of_trusting_remote_code_does_no_harm(original, auto_class):
    model = auto_class.from_pretrained(original, trust_remote_code=True)
    assert bind(model).adapter.name == "chatglm"
    tokenizer = AutoTokenizer.from_pretrained(original, trust_remote_code=True)
    assert type(tokenizer).__module__.startswith("funcnet_plugin")


def test_the_tokenizer_does_what_sentencepiece_does(original, sentencepiece_model):
    pieces = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model)
    tokenizer = AutoTokenizer.from_pretrained(original)
    start = [pieces.vocab_size() + 1, pieces.vocab_size() + 3]  # [gMASK] sop
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == start + pieces.encode(text)
    first, second = (pieces.encode(text) for text in TEXTS[:2])
    assert tokenizer(*TEXTS[:2])["input_ids"] == [*start, *first, *second, pieces.eos_id()]
    batch = tokenizer(list(TEXTS[:2]), padding=True)
    assert [row[0] for row in batch["attention_mask"]].count(0) == 1  # on the left
    assert tokenizer.convert_tokens_to_ids("<|observation|>") == pieces.vocab_size() + 8


def test_the_saved_tokenizer_is_read_without_us_and_by_us(original, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(original)
    tokenizer.save_pretrained(tmp_path / "saved")
    expected = [tokenizer(text)["input_ids"] for text in TEXTS]
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert [again(text)["input_ids"] for text in TEXTS] == expected
    saved, source = (p / "tokenizer.model" for p in (tmp_path / "saved", original))
    assert saved.read_bytes() == source.read_bytes()
    shutil.copy(original / "config.json", tmp_path / "saved")
    write_json(tmp_path / "saved" / "config.json", {"model_type": "glm"})
    code = (
        "import json, sys\n"
        "from transformers import AutoTokenizer\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "print(json.dumps([tokenizer(t)['input_ids'] for t in json.loads(sys.argv[2])]))\n"
        "assert tokenizer.padding_side == 'left' and 'funcnet_plugin' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "saved"), json.dumps(TEXTS)]
    found = subprocess.run(command, check=True, env=WITHOUT_US, capture_output=True, text=True)
    assert json.loads(found.stdout) == expected


@pytest.fixture
def pruned(original, texts, tmp_path):
    model = run(str(original), texts, recipe(align=8), output_dir=str(tmp_path / "pruned"))
    return model, tmp_path / "pruned"


def test_a_pruned_model_keeps_the_original_format(original, pruned):
    model, path = pruned
    (width,) = set(bind(model).widths)
    before, after = (json.loads((p / "config.json").read_text()) for p in (original, path))
    assert after["ffn_hidden_size"] == width < WIDTH == before["ffn_hidden_size"]
    assert "intermediate_size" not in after and after["architectures"] == ["ChatGLMModel"]
    assert after["auto_map"] == before["auto_map"]
    tensors = load_file(path / "model.safetensors")
    assert set(tensors) == set(load_file(original / "model.safetensors"))
    fused = tensors["transformer.encoder.layers.0.mlp.dense_h_to_4h.weight"]
    assert fused.shape[0] == 2 * width
    assert (path / "modeling_chatglm.py").exists()
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(path)), logits(model))


def test_a_pruned_model_leaves_for_stock_glm_on_request(pruned, original, tmp_path):
    model, path = pruned
    shutil.copy(original / "tokenizer.model", path)
    export_model(path, tmp_path / "glm", "glm")
    assert torch.equal(reload_without_us(tmp_path / "glm"), logits(model))
    described = json.loads((tmp_path / "glm" / "config.json").read_text())
    assert described["model_type"] == "glm" and described["architectures"] == ["GlmForCausalLM"]
    assert described["functional_network"]["kept_widths"] == bind(model).widths
    named = json.loads((tmp_path / "glm" / "tokenizer_config.json").read_text())
    assert named["tokenizer_class"] == "PreTrainedTokenizerFast" and "auto_map" not in named


def test_per_layer_widths_leave_for_glm_too(original, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(original)
    for block, width in zip(bind(model).blocks, (16, 24, 40), strict=True):
        cut(block, torch.arange(width))
    set_widths(model.config, "intermediate_size", [16, 24, 40])
    model.config.functional_network = {"kept_widths": [16, 24, 40]}
    model.save_pretrained(tmp_path / "widths")
    for form in ("padded", "glm"):
        export_model(tmp_path / "widths", tmp_path / form, form)
        found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / form))
        torch.testing.assert_close(found, logits(model), atol=1e-5, rtol=1e-5)
    export_model(tmp_path / "widths", tmp_path / "remote", "remote-code")
    found = reload_without_us(tmp_path / "remote", trust_remote_code=True)
    torch.testing.assert_close(found, logits(model), atol=1e-5, rtol=1e-5)


def test_a_quantized_model_is_saved_as_glm_pruned_or_not(original, texts, tmp_path):
    quantize = "t_stage:\n  q_modifiers:\n    GPTQModifier: " + json.dumps(W8A8["GPTQModifier"])
    for name, text in {"pruned": recipe(then=W8A8, align=8), "whole": quantize}.items():
        model = run(str(original), texts, text, output_dir=str(tmp_path / name))
        assert json.loads((tmp_path / name / "config.json").read_text())["model_type"] == "glm"
        found = reload_without_us(tmp_path / name)
        torch.testing.assert_close(found, logits(model), atol=1e-3, rtol=1e-3)


def test_chatglm2_is_read_the_same_way():
    config = AutoConfig.for_model("chatglm", num_layers=28, ffn_hidden_size=13696, seq_length=32768)
    assert config.intermediate_size == 13696 and config.num_hidden_layers == 28
    assert config.rope_parameters["rope_theta"] == 10000.0
    assert ChatGLMConfig(rope_ratio=50).rope_parameters["rope_theta"] == 500000.0
    whole = ChatGLMConfig(multi_query_attention=False, num_attention_heads=8)
    assert whole.num_key_value_heads == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_encoding_2d": True}, "first-generation ChatGLM.*use ChatGLM3"),
        ({"rmsnorm": False}, "rmsnorm=False is not supported, only True"),
        ({"quantization_bit": 4}, "quantization_bit=4 is not supported"),
    ],
)
def test_another_network_under_the_same_name_is_refused(original, changes, message):
    write_json(original / "config.json", changes)
    with pytest.raises(CheckpointError, match=message):
        inspect_model(original)
    with pytest.raises(CheckpointError, match=message):
        AutoModelForCausalLM.from_pretrained(original)


def test_generation_with_a_padded_batch(original):
    """Left padding moves the positions of a row, and must not change what it says."""
    model = AutoModelForCausalLM.from_pretrained(original).double().eval()
    row = IDS[:1, :6]
    alone = model.generate(row, max_new_tokens=5, do_sample=False, eos_token_id=None)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), row], dim=1)
    mask = torch.cat([torch.zeros(1, 4, dtype=torch.long), torch.ones_like(row)], dim=1)
    batch = torch.cat([padded, IDS[1:, :10]])
    masks = torch.cat([mask, torch.ones(1, 10, dtype=torch.long)])
    both = model.generate(
        batch, attention_mask=masks, max_new_tokens=5, do_sample=False, eos_token_id=None
    )
    assert torch.equal(both[0, 10:], alone[0, 6:])
