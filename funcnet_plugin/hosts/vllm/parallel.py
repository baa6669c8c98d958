"""Refuses widths that tensor-parallel processes cannot share, before any of them is started."""

from __future__ import annotations

from functools import wraps
from math import gcd
from typing import Any

from funcnet_plugin.checkpoints.per_layer import is_ours


def enable(model_config: type) -> None:
    """Let vLLM's own check of a model against the number of processes look at every layer.

    Args:
        model_config: vLLM's `ModelConfig`; `verify_with_parallel_config` is wrapped, once.
    """
    verify = model_config.verify_with_parallel_config
    if getattr(verify, "_funcnet", False):
        return

    @wraps(verify)
    def verify_with_parallel_config(self, parallel_config, *args, **kwargs):
        refuse_unshareable(self.hf_text_config, parallel_config.tensor_parallel_size)
        return verify(self, parallel_config, *args, **kwargs)

    verify_with_parallel_config._funcnet = True
    model_config.verify_with_parallel_config = verify_with_parallel_config


def refuse_unshareable(config: Any, processes: int) -> None:
    """Refuse a config of ours with a layer that so many processes cannot share.

    Raises:
        ValueError: a width is not divisible by the number of processes.
    """
    if processes == 1 or not is_ours(config):
        return
    widths = config.functional_network["kept_widths"]
    unit = gcd(*widths)
    for index, width in enumerate(widths):
        if width % processes:
            size = "of 1" if unit == 1 else f"that divides {unit}"
            raise ValueError(
                f"layer {index} is {width} neurons wide, which {processes} tensor-parallel "
                f"processes cannot share; take a tensor parallel size {size}, or prune with an "
                f"`align` that {processes} divides."
            )
