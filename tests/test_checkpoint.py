import json

import pytest

from funcnet_plugin.checkpoint import config_changes, patch_saved_config, read_block, update_config
from funcnet_plugin.errors import CheckpointError
from tests.conftest import make_llama


def test_config_changes():
    assert config_changes("intermediate_size", [32, 32], None) == {"intermediate_size": 32}
    changes = config_changes("ffn", [32, 32], "mlp_bias")
    assert changes == {"ffn": 32, "mlp_bias": True}


def test_per_layer_widths_are_not_saved_as_something_that_cannot_be_loaded(tmp_path):
    model = make_llama()
    patch_saved_config(model, lambda: config_changes("intermediate_size", [32, 48], None))
    with pytest.raises(CheckpointError, match="use allocation: uniform"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_patching_twice_writes_the_latest_changes(tmp_path):
    model = make_llama()
    patch_saved_config(model, lambda: {"functional_network": {"run": 1}, "only_first": True})
    patch_saved_config(model, lambda: {"functional_network": {"run": 2}})
    model.save_pretrained(tmp_path)
    assert read_block(tmp_path) == {"run": 2}
    assert "only_first" not in json.loads((tmp_path / "config.json").read_text())


def test_update_leaves_the_rest_and_no_temporary_file(tmp_path):
    (tmp_path / "config.json").write_text('{"a": 1, "b": 2}')
    update_config(tmp_path, {"b": 3})
    assert json.loads((tmp_path / "config.json").read_text()) == {"a": 1, "b": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_reading_the_block(checkpoint, tmp_path):
    assert read_block(checkpoint) is None
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        read_block(tmp_path / "nowhere")
