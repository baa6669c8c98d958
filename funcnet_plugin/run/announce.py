"""Says what a run will take, before its long work begins, and refuses one that cannot fit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from loguru import logger

from funcnet_plugin.measure.free_memory import free_memory
from funcnet_plugin.measure.text import Text
from funcnet_plugin.measure.workload import Workload
from funcnet_plugin.run.fitting import check_fits
from funcnet_plugin.run.forecast import plan_table
from funcnet_plugin.run.memory import memory
from funcnet_plugin.run.pace import estimate, layer_seconds, product_pace
from funcnet_plugin.run.run import Run
from funcnet_plugin.run.sizes import Sizes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def announce(run: Run, model: PreTrainedModel, text: Text) -> None:
    """Log the plan of a run: its stages, their memory, and about how long they take.

    Args:
        run: planned.
        model: dense, loaded.
        text: the calibration data; without batches nothing can be said.

    Raises:
        RoomError: it clearly does not fit.
    """
    if not text.batches or not run.plan.prunable:
        return
    request, plan, free = run.request, run.plan, free_memory()
    work, units = Workload.of(text), plan.layout.blocks
    sizes = Sizes.of(model, len(units))
    warning = check_fits(request, plan, model, work, free, loaded=sizes.weights)
    ids = text.batches[0]["input_ids"]
    gpu = free.gpu is not None
    per_token = layer_seconds(model, units, ids) / ids.numel()
    pace = product_pace(torch.device("cuda" if gpu else "cpu"))
    times = estimate(request, plan, model, work, free, per_token, pace)
    loaded = replace(free, host=free.host + sizes.weights)
    stages = memory(request, plan, model, work, gpu=gpu, free=loaded)
    logger.info(
        f"the plan for {work.samples} samples of {work.length} tokens:\n"
        + plan_table(stages, times, gpu=gpu)
    )
    if warning is not None:
        logger.warning(warning)
