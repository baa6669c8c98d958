"""The plugin for vLLM without vLLM: small fakes hold the parts that it relies on.

They are a package of the same module names, `make_layers` as vLLM 0.32 has it, the current config,
and the check of a model against the number of processes. What vLLM does with them is tested by
`integration_tests/test_vllm.py`, which runs vLLM.
"""

import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
from transformers import GPT2Config, LlamaConfig

from funcnet_plugin.checkpoints.block import set_widths
from funcnet_plugin.hosts import arrivals, autoload
from funcnet_plugin.hosts.vllm import layers, parallel
from tests.hosting import WITHOUT_US

WIDTHS = [64, 48, 16, 32]
FAKE = {
    "__init__.py": "__version__ = '0.32.0'\n",
    "config/__init__.py": """
from vllm.config.model import ModelConfig

def get_current_vllm_config_or_none():
    return None
""",
    "config/model.py": """
class ModelConfig:
    def verify_with_parallel_config(self, parallel_config):
        return "verified"
""",
    "model_executor/__init__.py": "",
    "model_executor/models/__init__.py": "",
    "model_executor/models/utils.py": """
def make_layers(num_hidden_layers, layer_fn, prefix):
    return [layer_fn(prefix=f"{prefix}.{i}") for i in range(num_hidden_layers)]
""",
    "model_executor/models/llama.py": "from .utils import make_layers\n",
}


def per_layer(config=None, widths=WIDTHS, key="intermediate_size", ours=True):
    """A config as our checkpoints have it; another package's if it is not `ours`."""
    config = config or LlamaConfig(num_hidden_layers=len(widths), intermediate_size=64)
    set_widths(config, key, widths)
    if ours:
        config.functional_network = {"kept_widths": list(widths)}
    return config


def models_utils(first=0, end=None) -> ModuleType:
    """vLLM's module with `make_layers`, on the stage of a pipeline that has layers first to end."""

    def make_layers(num_hidden_layers, layer_fn, prefix):
        last = num_hidden_layers if end is None else end
        return first, last, [layer_fn(prefix=f"{prefix}.{i}") for i in range(first, last)]

    module = ModuleType("vllm.model_executor.models.utils")
    module.make_layers = make_layers
    return module


@pytest.fixture
def serve(monkeypatch):
    """Sets the config of the model that vLLM builds."""
    ours, theirs = ModuleType("vllm"), ModuleType("vllm.config")
    current = SimpleNamespace(model_config=None)
    theirs.get_current_vllm_config_or_none = lambda: current
    monkeypatch.setitem(sys.modules, "vllm", ours)
    monkeypatch.setitem(sys.modules, "vllm.config", theirs)

    def set_current(config, version="0.32.0", text=None):
        arrivals.say_if_untested.cache_clear()
        ours.__version__ = version
        current.model_config = SimpleNamespace(hf_config=config, hf_text_config=text or config)
        return config

    return set_current


@pytest.mark.parametrize(("first", "end"), [(0, 4), (1, 3)])
def test_every_layer_reads_its_own_width_from_the_shared_config(serve, first, end):
    config = serve(per_layer())
    before = config.to_dict()
    utils = models_utils(first, end)
    layers.enable(utils)
    found = utils.make_layers(
        4, lambda prefix: (prefix, config.intermediate_size), prefix="model.layers"
    )
    expected = [(f"model.layers.{i}", WIDTHS[i]) for i in range(first, end)]
    assert found == (first, end, expected)
    assert config.to_dict() == before
    with pytest.raises(RuntimeError, match="per-layer attribute"):
        _ = config.intermediate_size


def test_the_width_is_read_under_the_name_that_the_architecture_has_for_it(serve):
    config = serve(per_layer(GPT2Config(n_layer=4, n_inner=64), key="n_inner"))
    utils = models_utils()
    layers.enable(utils)
    assert utils.make_layers(4, lambda prefix: config.n_inner, prefix="h")[2] == WIDTHS


def test_the_config_is_as_it_was_where_a_layer_cannot_be_built(serve):
    config = serve(per_layer())
    before = config.to_dict()
    utils = models_utils()
    layers.enable(utils)

    def fail(prefix):
        raise ValueError(f"no kernel for {config.intermediate_size}")

    with pytest.raises(ValueError, match="no kernel for 64"):
        utils.make_layers(4, fail, prefix="model.layers")
    assert config.to_dict() == before and config.is_heterogeneous


def test_a_text_model_within_another_is_told_too(serve):
    text = per_layer()
    serve(SimpleNamespace(text_config=text), text=text)
    utils = models_utils()
    layers.enable(utils)
    assert utils.make_layers(4, lambda prefix: text.intermediate_size, prefix="l")[2] == WIDTHS


def per_layer_values(config):
    return config and config.to_dict().get("per_layer_config")


@pytest.mark.parametrize(
    ("config", "layers_of_it"),
    [
        (None, 4),  # no model at all
        (LlamaConfig(num_hidden_layers=4), 4),  # of one width
        (per_layer(ours=False), 4),  # of another package
        (per_layer(), 7),  # another stack of the same model, its image encoder for instance
    ],
    ids=["none", "uniform", "another's", "another stack"],
)
def test_other_layers_are_built_as_before(serve, config, layers_of_it):
    serve(config)
    given = []
    utils = ModuleType("utils")

    def make_layers(num_hidden_layers, layer_fn, prefix):
        given.append((num_hidden_layers, layer_fn, prefix, per_layer_values(config)))

    utils.make_layers = make_layers
    layers.enable(utils)
    utils.make_layers(layers_of_it, given.append, "model.layers")
    assert given == [(layers_of_it, given.append, "model.layers", per_layer_values(config))]


def test_make_layers_is_wrapped_once_and_wherever_it_is_already(serve, monkeypatch):
    utils, user = models_utils(), ModuleType("vllm.model_executor.models.llama")
    user.make_layers = utils.make_layers
    for module in (utils, user):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    layers.enable(utils)
    wrapped = utils.make_layers
    layers.enable(utils)
    assert utils.make_layers is user.make_layers is wrapped


def test_an_untested_version_is_named_when_a_model_of_ours_is_built(serve, recwarn):
    utils = models_utils()
    layers.enable(utils)
    serve(LlamaConfig(num_hidden_layers=4), version="0.99.0")
    utils.make_layers(4, lambda prefix: prefix, prefix="l")
    assert not recwarn.list
    for version in ("0.99.0", "dev"):
        serve(per_layer(), version=version)
        with pytest.warns(UserWarning, match=rf"vllm {version} is outside the range") as caught:
            for _ in range(2):
                utils.make_layers(4, lambda prefix: prefix, prefix="l")
        assert len(caught) == 1


@pytest.mark.parametrize("what", ["make_layers takes count, build", "cannot import name"])
def test_a_vllm_with_other_parts_is_left_alone_with_one_warning(serve, monkeypatch, what):
    def another(count, build):
        raise AssertionError

    utils = models_utils()
    if what.startswith("make_layers"):
        utils.make_layers = another
    else:
        del sys.modules["vllm.config"].get_current_vllm_config_or_none
    make_layers = utils.make_layers
    utils.__spec__ = SimpleNamespace(_initializing=False)
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    monkeypatch.setattr(autoload, "WATCHED", {})
    with pytest.warns(UserWarning, match=what) as caught:
        for _ in range(2):
            autoload.watch(utils.__name__, layers.enable)
    assert len(caught) == 1 and utils.make_layers is make_layers


def checked(config):
    """vLLM's config of a model, with our part in its check."""

    class ModelConfig:
        hf_text_config = config

        def verify_with_parallel_config(self, parallel_config):
            return f"verified for {parallel_config.tensor_parallel_size}"

    parallel.enable(ModelConfig)
    once = ModelConfig.verify_with_parallel_config
    parallel.enable(ModelConfig)
    assert ModelConfig.verify_with_parallel_config is once
    return lambda size: ModelConfig().verify_with_parallel_config(
        SimpleNamespace(tensor_parallel_size=size)
    )


def test_widths_that_processes_cannot_share_are_refused():
    check = checked(per_layer())
    for size in (1, 2, 8, 16):
        assert check(size) == f"verified for {size}"
    message = "layer 1 is 48 neurons wide, which 32 tensor-parallel .* that divides 16, or"
    with pytest.raises(ValueError, match=message):
        check(32)
    with pytest.raises(ValueError, match=r"layer 1 is 47 neurons wide, .* size of 1, or"):
        checked(per_layer(widths=[64, 47, 16, 32]))(2)


@pytest.mark.parametrize("config", [LlamaConfig(), per_layer(ours=False)])
def test_vllm_itself_checks_other_models(config):
    assert checked(config)(3) == "verified for 3"


def in_a_process(tmp_path, code, env=None):
    for name, content in FAKE.items():
        path = tmp_path / "vllm" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    code = f"import sys; sys.path[0] = {str(tmp_path)!r}\n{code}"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True, text=True, env=os.environ | (env or {}),
    )  # fmt: skip


SAY = (
    "import vllm.config, vllm.model_executor.models.llama as llama\n"
    "print(hasattr(llama.make_layers, '_funcnet'),"
    " hasattr(vllm.config.ModelConfig.verify_with_parallel_config, '_funcnet'))\n"
)
REGISTER = "from funcnet_plugin_boot import boot_in_vllm\nboot_in_vllm()\n"


@pytest.mark.parametrize("before", ["", "import vllm.config\n", SAY.partition("print")[0]])
def test_vllm_is_changed_whenever_it_is_imported(tmp_path, before):
    done = in_a_process(tmp_path, before + REGISTER + REGISTER + SAY)
    assert (done.stdout, done.returncode) == ("True True\n", 0), done.stderr


def test_the_plugin_imports_nothing(tmp_path):
    heavy = "{'torch', 'transformers', 'llmcompressor', 'lm_eval', 'yaml', 'numpy'}"
    done = in_a_process(
        tmp_path,
        f"{REGISTER}assert 'vllm' not in sys.modules\n{SAY}assert not set(sys.modules) & {heavy}\n",
    )
    assert (done.stdout, done.returncode) == ("True True\n", 0), done.stderr


def test_the_switch_keeps_the_plugin_out(tmp_path):
    code = f"{REGISTER}{SAY}assert 'funcnet_plugin' not in sys.modules"
    done = in_a_process(tmp_path, code, WITHOUT_US)
    assert (done.stdout, done.returncode) == ("False False\n", 0), done.stderr
