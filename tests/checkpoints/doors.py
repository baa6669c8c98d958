"""Everything of ours that loads a checkpoint."""

import pytest
import torch

from funcnet_plugin.compare.plan import Comparison
from funcnet_plugin.compare.run import compare
from funcnet_plugin.errors import CheckpointError
from funcnet_plugin.evaluation.perplexity import perplexities
from funcnet_plugin.export import export_model
from funcnet_plugin.hosts.lm_eval import FuncnetLM
from funcnet_plugin.inspection import inspect_model
from funcnet_plugin.pruning import prune
from tests.hosting import recipe


def doors(checkpoint, texts, tmp_path):
    """Everything of ours that loads a checkpoint."""
    (tmp_path / "t.txt").write_text("\n".join(texts))
    text = str(tmp_path / "t.txt")
    plan = Comparison(str(checkpoint), {text: 1.0}, {"t": text}, ["effect"])
    tokens = {"t": torch.randint(3, 30, (1, 20))}
    return {
        "prune": lambda: prune(checkpoint, texts, tmp_path / "o", recipe=recipe()),
        "compare": lambda: compare(plan, tmp_path / "c"),
        "inspect": lambda: inspect_model(checkpoint),
        "lm_eval": lambda: FuncnetLM(pretrained=str(checkpoint)),
        "perplexity": lambda: perplexities(checkpoint, tokens),
        "export": lambda: export_model(checkpoint, tmp_path / "e", "padded"),
    }


def refused_everywhere(match, checkpoint, texts, tmp_path):
    for name, door in doors(checkpoint, texts, tmp_path).items():
        with pytest.raises(CheckpointError, match=match):
            door()
            pytest.fail(f"{name} took it")
