"""What the first layer's neurons answer to: every token of the vocabulary, one by one.

Neurons of the first layer are close to detectors of single tokens. One whose tokens the calibration
text does not hold looks idle there, and text that holds them is ruined without it. Which tokens
there are is known without any text.
"""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor, nn

from funcnet_plugin.adapters import MLPBlock
from funcnet_plugin.pruning.finite import check_finite
from funcnet_plugin.pruning.whole_model import on_gpu

_AT_ONCE = 512  # tokens per pass


class _SeenError(Exception):
    """The first layer has answered; the others are not needed."""


@torch.no_grad()
def strongest_answers(model: nn.Module, block: MLPBlock) -> Tensor:
    """How strongly each neuron answers to the token it answers to most.

    Args:
        model: in memory; only its layers up to `block` are run.
        block: the first layer's MLP. A token alone says little about what reaches later ones.

    Returns:
        (width,), float64: maximum over the vocabulary of the squared inner activation (the input of
        the down projection), each token being a sequence of its own.
    """
    strongest = torch.zeros(block.width, dtype=torch.float64, device=block.down.weight.device)

    def before_down(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        check_finite(
            args[0],
            f"layer {block.index}: token_share looks at every token of the vocabulary, and the "
            f"inputs of the down projection of {block.name} for tokens {_some(args[0], asked)}",
        )
        peak = args[0].flatten(0, -2).double().square().amax(0)
        torch.maximum(strongest, peak.to(strongest), out=strongest)
        raise _SeenError

    asked = torch.arange(0)
    hook = block.down.register_forward_pre_hook(before_down)
    try:
        with on_gpu(model):
            for ids in torch.arange(model.get_input_embeddings().num_embeddings).split(_AT_ONCE):
                asked = ids
                one_each = ids[:, None].to(model.device)
                with suppress(_SeenError):
                    model(input_ids=one_each, attention_mask=torch.ones_like(one_each))
    finally:
        hook.remove()
    return strongest


def _some(h: Tensor, ids: Tensor) -> list[int]:
    """The first few of the tokens whose activations are not finite."""
    bad = ~torch.isfinite(h.flatten(0, -2)).all(-1)
    return ids[bad.cpu()][:5].tolist()
