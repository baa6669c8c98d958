"""What `test_distributed.py` starts in every process: `oneshot` by torchrun, on CPUs."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from llmcompressor import oneshot
from transformers import AutoModelForCausalLM

from tests.conftest import make_tokenizer
from tests.hosting import as_dataset, loader, offload_layers, recipe


def sampled(texts: list[str], shuffled: bool) -> dict:
    """A dataset that llm-compressor samples itself."""
    return {
        "dataset": as_dataset(loader(texts)),
        "num_calibration_samples": 20,
        "shuffle_calibration_samples": shuffled,
    }


def main(folder: Path, kind: str) -> None:
    dist.init_process_group("gloo")
    job = json.loads((folder / "job.json").read_text())
    texts = job["texts"]
    if kind in ("loader", "offloaded"):
        data = {"dataset": loader(texts, samples=job["samples"])}
    else:
        data = sampled(texts, kind == "shuffled")
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    if kind == "offloaded":  # as load_offloaded_model leaves a model that does not fit
        offload_layers(model, "disk", offload_dir=str(folder / "cache"))
    oneshot(
        model=model, recipe=recipe(**job["fields"]), tokenizer=make_tokenizer(),
        output_dir=str(folder / "out"), **data,
    )  # fmt: skip
    widths = [layer.mlp.down_proj.in_features for layer in model.model.layers]
    torch.save([widths, model.state_dict()], folder / f"rank-{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
