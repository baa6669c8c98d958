"""The demo as a user runs it, with few questions, and the model that ships with it."""

import json
import subprocess
import sys

import pytest
import torch
from rich.console import Console
from sklearn.decomposition import fastica as sklearn_fastica
from transformers import AutoModelForCausalLM, AutoTokenizer

from funcnet_plugin.demo.run import MODEL, run_demo
from funcnet_plugin.demo.skills import SKILLS, documents, examples
from funcnet_plugin.ica import reduce_time, standardise, whiten
from funcnet_plugin.ica.contrast import negentropy
from funcnet_plugin.ica.fastica import fastica
from funcnet_plugin.ica.runs import initial_unmixing
from tests.hosting import WITHOUT_US

RELOAD = """
import sys
from transformers import AutoModelForCausalLM
print(AutoModelForCausalLM.from_pretrained(sys.argv[1]).num_parameters())
assert "funcnet_plugin" not in sys.modules
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    return out, run_demo(out, console=Console(quiet=True), limit=10)


def test_it_leaves_a_checkpoint_a_page_and_figures(demo):
    out, results = demo
    assert json.loads((out / "results.json").read_text()) == results
    page = (out / "report.html").read_text()
    assert all(about.title in page for about in SKILLS.values())
    assert (out / "skills.png").exists() and (out / "widths.png").exists()
    code = subprocess.run(
        [sys.executable, "-c", RELOAD, str(out / "pruned")],
        check=True, capture_output=True, text=True, env=WITHOUT_US,
    )  # fmt: skip
    assert int(code.stdout) == results["pruned"]["parameters"]


def test_the_pruned_model_is_smaller_by_the_ratio_and_still_able(demo):
    _, results = demo
    dense, pruned = results["dense"], results["pruned"]
    block = results["functional_network"]
    assert block["pruning_ratio_reached"] == pytest.approx(
        1 - pruned["parameters"] / dense["parameters"], rel=1e-12
    )
    assert abs(block["pruning_ratio_reached"] - 0.5) <= 8 * 3 * 128 * 4 / dense["parameters"]
    assert pruned["bytes_on_disk"] < dense["bytes_on_disk"]
    assert 1 < dense["byte_perplexity"] < pruned["byte_perplexity"] < 2 * dense["byte_perplexity"]
    # chance is 0.25; a model cut at random or broken on the way would be near it
    assert sum(pruned["accuracy"].values()) / len(SKILLS) > 0.6


def test_the_shipped_model_has_its_skills(demo):
    _, results = demo
    for skill, accuracy in results["dense"]["accuracy"].items():
        assert accuracy >= 0.4, skill
    assert sum(results["dense"]["accuracy"].values()) / len(SKILLS) > 0.85


def test_a_network_of_the_shipped_model_carries_agreement(demo):
    _, results = demo
    assert "agreement" in results["networks"]["carried"]


def test_prompt_and_answer_share_no_token():
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    for skill in SKILLS:
        example = examples(skill, 1, seed=0)[0]
        whole = tokenizer(example.prompt + example.answer + "\n")["input_ids"]
        parts = tokenizer(example.prompt)["input_ids"]
        parts = parts + tokenizer(example.answer + "\n", add_special_tokens=False)["input_ids"]
        assert whole == parts and tokenizer.unk_token_id not in whole


@pytest.fixture(scope="module")
def white():
    """Whitened signals of one layer of the demo model, (32, 1024)."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    seen = {}
    mlp = model.model.layers[2].mlp
    mlp.act_fn.register_forward_hook(lambda m, a, out: seen.update(act=out))
    mlp.up_proj.register_forward_hook(lambda m, a, out: seen.update(up=out))
    texts = documents(40, seed=5, split="train")
    ids = torch.tensor([row[:100] for row in tokenizer(texts)["input_ids"] if len(row) >= 100])
    with torch.no_grad():
        model(ids)
    X = torch.cat([seen["act"].flatten(0, 1), seen["up"].flatten(0, 1)], dim=1)
    return whiten(reduce_time(standardise(X), 32)[0])


@pytest.mark.filterwarnings("ignore:FastICA did not converge")  # ours need not either
@pytest.mark.parametrize("contrast", ["cube", "logcosh", "exp"])
def test_on_real_signals_the_solver_is_scikit_learns_from_the_same_start(white, contrast):
    """The same steps, as far as rounding lets two programs go together: ours after ten is
    the best of theirs. And where the iteration turns chaotic (by step 50, and differently on
    every kind of processor), a contrast that is not worse by more than the starts scatter."""

    def start(i: int) -> torch.Tensor:
        return initial_unmixing(32, seed=0, start=i)

    def ours(i: int, max_iter: int) -> torch.Tensor:
        return fastica(white, contrast=contrast, w_init=start(i), max_iter=max_iter).W[0]

    def theirs(i: int, max_iter: int) -> torch.Tensor:
        _, W, _ = sklearn_fastica(
            white.T.numpy(), fun=contrast, whiten=False, w_init=start(i).numpy(), max_iter=max_iter
        )
        return torch.from_numpy(W)

    def reached(W: torch.Tensor) -> float:
        return float(negentropy(W @ white, contrast))

    best = max((theirs(0, steps) for steps in range(1, 11)), key=reached)
    torch.testing.assert_close(ours(0, 10), best, atol=1e-6, rtol=0)
    ahead = torch.tensor([reached(ours(i, 300)) - reached(theirs(i, 300)) for i in range(6)])
    assert ahead.mean() >= -2.0 * ahead.std() / len(ahead) ** 0.5
