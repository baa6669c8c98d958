"""What the tests of repairs are made with."""

import torch

HIDDEN, WIDTH, TOKENS = 8, 20, 400


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
