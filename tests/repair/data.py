"""What the tests of repairs are made with."""

import torch

from funcnet_plugin.adapters import bind

FIELDS = {
    "name": "WidthPruningModifier",
    "scorer": "effect",
    "allocation": "threshold",
    "repair": "refitted",
}
HIDDEN, WIDTH, TOKENS = 8, 20, 400
# what comes out of their MLPs is normalised before it joins the stream
BEHIND_A_NORM = {"gemma2", "gemma3", "olmo2", "olmo3", "exaone4", "glm4"}


def correlated():
    """Make activations (tokens, width), a weight (hidden, width) and the kept positions."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(12, WIDTH, generator=generator)
    h = torch.randn(TOKENS, 12, generator=generator) @ mixing + 0.5
    h = h + 0.1 * torch.randn(TOKENS, WIDTH, generator=generator)
    W = torch.randn(HIDDEN, WIDTH, generator=generator)
    keep = torch.randperm(WIDTH, generator=generator)[:13].sort().values
    return h, W, keep


def padded_batches():
    """Make two batches of two samples, the second sample of each shorter and padded on the left."""
    ids = torch.randint(3, 30, (4, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1::2, :5] = 0
    return [
        {"input_ids": part, "attention_mask": seen}
        for part, seen in zip(ids.split(2), mask.split(2), strict=True)
    ]


def seen_by(model, batches, module_of):
    """Give what enters a module of every block, and what its layer gives, over all real tokens."""
    inputs, outputs, hooks = {}, {}, []
    for block in bind(model).blocks:
        for module, found, take in (
            (module_of(block), inputs, lambda a, o: a[0]),
            (block.decoder_layer, outputs, lambda a, o: o[0] if isinstance(o, tuple) else o),
        ):
            hooks.append(
                module.register_forward_hook(
                    lambda m, a, o, i=block.index, f=found, t=take: f.setdefault(i, []).append(
                        t(a, o).flatten(0, -2)
                    )
                )
            )
    with torch.no_grad():
        for batch in batches:
            model(**batch, use_cache=False)
    for hook in hooks:
        hook.remove()
    real = torch.cat([batch["attention_mask"].flatten().bool() for batch in batches])
    return [{i: torch.cat(parts)[real] for i, parts in f.items()} for f in (inputs, outputs)]
