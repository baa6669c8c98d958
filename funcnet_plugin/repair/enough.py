"""Says where a repair has too little text to be better than none."""

from __future__ import annotations

# Below that a repair was worse than none in some of the runs of docs/experiments/small-models.md.
_TOKENS_PER_NEURON = 6
_FEWEST_SAMPLES = 32


def too_little_text(tokens: int, width: int, samples: int | None = None) -> str | None:
    """Say where a repair has too little to learn from; None where it has enough.

    Least squares on few tokens for each neuron fit what is particular to them. A repair by gradient
    steps needs many samples as well (docs/experiments/small-models.md).

    Args:
        tokens: that the repair reads.
        width: neurons that are kept.
        samples: of the tokens, where they matter.
    """
    few_tokens = tokens < _TOKENS_PER_NEURON * width
    few_samples = samples is not None and samples < _FEWEST_SAMPLES
    if not (few_tokens or few_samples):
        return None
    read = f"{tokens} tokens" if samples is None else f"{tokens} tokens of {samples} samples"
    enough = f"{_TOKENS_PER_NEURON} tokens for each neuron ({_TOKENS_PER_NEURON * width})"
    if samples is not None:
        enough += f" and {_FEWEST_SAMPLES} samples"
    return (
        f"the repair reads {read} for {width} kept neurons and may be worse than none: it should "
        f"have {enough}; give more samples, or take repair: none"
    )
