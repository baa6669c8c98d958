"""What `test_distributed.py` starts in every process: runs of `oneshot` by torchrun, on CPUs.

All runs are in one start: importing the hosts takes longer than any of them.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from llmcompressor import oneshot
from llmcompressor.core import active_session
from transformers import AutoModelForCausalLM

from funcnet_plugin.errors import FuncnetError
from tests.conftest import make_tokenizer
from tests.hosting import as_dataset, loader, offload_layers, recipe


def sampled(texts: list[str], shuffled: bool) -> dict:
    """A dataset that llm-compressor samples itself."""
    return {
        "dataset": as_dataset(loader(texts)),
        "num_calibration_samples": 20,
        "shuffle_calibration_samples": shuffled,
    }


def run_job(folder: Path) -> None:
    """One run; its weights in rank-N.pt, or what it was refused with in refused-N.txt."""
    job = json.loads((folder / "job.json").read_text())
    texts, kind, rank = job["texts"], job["kind"], dist.get_rank()
    if kind in ("loader", "offloaded"):
        data = {"dataset": loader(texts, samples=job["samples"])}
    else:
        data = sampled(texts, kind == "shuffled")
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    if kind == "offloaded":  # as load_offloaded_model leaves a model that does not fit
        offload_layers(model, "disk", offload_dir=str(folder / "cache"))
    try:
        oneshot(
            model=model, recipe=recipe(**job["fields"]), tokenizer=make_tokenizer(),
            output_dir=str(folder / "out"), **data,
        )  # fmt: skip
    except FuncnetError as error:
        (folder / f"refused-{rank}.txt").write_text(str(error))
        active_session().lifecycle.recipe.modifiers = []
        active_session().reset()
        return
    widths = [layer.mlp.down_proj.in_features for layer in model.model.layers]
    torch.save([widths, model.state_dict()], folder / f"rank-{rank}.pt")


def main(folders: list[str]) -> None:
    dist.init_process_group("gloo")
    for folder in folders:
        run_job(Path(folder))
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
