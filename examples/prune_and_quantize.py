"""Prunes a model and quantizes it to four bits in one call of llm-compressor.

python examples/prune_and_quantize.py
"""

import tempfile
from pathlib import Path

from common import MODEL, text
from datasets import load_dataset
from llmcompressor import oneshot

from funcnet_plugin.runtimes import read_checkpoint

RECIPE = """
prune_stage:
  pruning_modifiers:
    FunctionalNetworkModifier:
      pruning_ratio: 0.3
      align: 64
quantize_stage:
  quantization_modifiers:
    GPTQModifier:
      targets: [Linear]
      ignore: [lm_head]
      config_groups:
        int4:
          targets: [Linear]
          weights: {num_bits: 4, type: int, strategy: group, group_size: 64}
"""


def main(folder: Path) -> None:
    data = text(folder / "train.jsonl", "train")
    oneshot(
        model=MODEL,
        recipe=RECIPE,
        dataset=load_dataset("json", data_files=str(data), split="train"),
        num_calibration_samples=64,
        max_seq_length=128,
        output_dir=str(folder / "pruned"),
    )
    checkpoint = read_checkpoint(folder / "pruned")
    print(f"widths {checkpoint.widths}, weights and activations {checkpoint.scheme}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
