import json

import pytest
from transformers import LlamaConfig

from funcnet_plugin.checkpoints.block import (
    patch_save_pretrained,
    read_block,
    read_config,
    read_kept,
    saved_keys,
    set_widths,
    update_json,
    write_kept,
)
from funcnet_plugin.errors import CheckpointError
from tests.conftest import make_llama


def config(**fields) -> LlamaConfig:
    return LlamaConfig(num_hidden_layers=3, intermediate_size=48, **fields)


def test_one_width_stands_under_the_architectures_own_key():
    changed = config()
    set_widths(changed, "intermediate_size", [32, 32, 32])
    assert changed.intermediate_size == 32 and "per_layer_config" not in changed.to_dict()


def test_different_widths_stand_in_transformers_schema_and_other_settings_stay():
    changed = config(
        per_layer_config={"0": {"num_key_value_heads": 8}, "2": {"intermediate_size": 16}}
    )
    set_widths(changed, "intermediate_size", [40, 48, 32])
    assert [layer.intermediate_size for layer in changed.per_layer_config] == [40, 48, 32]
    assert changed.per_layer_config[0].num_key_value_heads == 8
    set_widths(changed, "intermediate_size", [24, 24, 24])
    assert [layer.intermediate_size for layer in changed.per_layer_config] == [24, 24, 24]
    assert changed.intermediate_size == 24 and changed.per_layer_config[0].num_key_value_heads == 8


def test_older_readers_find_the_rotary_settings_under_the_names_they_know():
    plain = config(rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    assert saved_keys(plain, [])["rope_theta"] == 500000.0
    assert "rope_scaling" not in saved_keys(plain, [])
    scaled = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    entries = saved_keys(config(rope_parameters=scaled), [])
    assert entries["rope_scaling"] == {k: v for k, v in scaled.items() if k != "rope_theta"}
    both = LlamaConfig(rope_parameters=scaled, rope_theta=500000.0,
                       rope_scaling=entries["rope_scaling"])  # fmt: skip
    assert both.rope_parameters == scaled


def test_a_sentencepiece_vocabulary_stays_beside_the_model(tmp_path):
    """Tokenizers of transformers 5 do not save it, and GGUF is written from it."""
    model = make_llama()
    model.save_pretrained(tmp_path / "source")
    (tmp_path / "source" / "tokenizer.model").write_bytes(b"pieces")
    model.config.name_or_path = str(tmp_path / "source")
    patch_save_pretrained(model, dict)
    model.save_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == b"pieces"


def test_patching_twice_writes_the_latest_changes(tmp_path):
    model = make_llama()
    for run in (1, 2):
        block = {"run": run, "original_widths": [2, 2, 2]}
        patch_save_pretrained(
            model, lambda block=block: {"functional_network": block}, [[1], None, [0]]
        )
    model.save_pretrained(tmp_path)
    assert read_block(tmp_path)["run"] == 2
    assert read_kept(tmp_path) == ([2, 2, 2], [[1], [0, 1], [0]])


def test_update_leaves_the_rest_and_no_temporary_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"a": 1, "b": 2, "c": null, "d": 4}')
    update_json(path, {"b": 3, "d": None})
    assert json.loads(path.read_text()) == {"a": 1, "b": 3, "c": None}
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_reading_the_block(checkpoint, tmp_path):
    assert read_block(checkpoint) is None
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        read_block(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "nonsense",
        '{"widths": [4]}',
        '{"widths": [4], "kept": [[0], [1]]}',
        '{"widths": [4], "kept": [[4]]}',
        '{"widths": [4], "kept": [[2, 1]]}',
        '{"widths": [4], "kept": [[]]}',
    ],
)
def test_a_file_that_does_not_hold_kept_neurons_is_named(tmp_path, content):
    path = tmp_path / "mask.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=r"mask\.json is not a file of kept neurons"):
        read_kept(path)
    with pytest.raises(CheckpointError, match="no kept neurons at"):
        read_kept(tmp_path)


def test_kept_neurons_come_back(tmp_path):
    write_kept(tmp_path, [3, 2], [[0, 2], None])
    assert read_kept(tmp_path) == ([3, 2], [[0, 2], [0, 1]])
    assert read_kept(tmp_path / "kept_neurons.json") == ([3, 2], [[0, 2], [0, 1]])
