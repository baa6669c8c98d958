"""The cut of all layers with repair of the residual stream, layer by layer behind pruned ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from loguru import logger
from torch import Tensor, nn

from funcnet_plugin.adapters import MLPBlock
from funcnet_plugin.adapters.projection import oriented
from funcnet_plugin.bars import bar
from funcnet_plugin.hosts.own_calibration import PER_SAMPLE, continuation_windows, own_batches
from funcnet_plugin.hosts.resume import Record
from funcnet_plugin.pruning.compensation import too_little_text
from funcnet_plugin.pruning.processes import Processes
from funcnet_plugin.pruning.reconstruction import Examples, mlp_output, reconstruct
from funcnet_plugin.pruning.residual import ResidualFit, residual_gain
from funcnet_plugin.pruning.streams import Streams
from funcnet_plugin.pruning.surgery import set_down, set_projections

Batches = Iterable[dict[str, Any]]
# Tokens that a reconstruction reads, drawn from all: a layer's inputs and targets wait in memory.
_MOST_TOKENS = 2**18


@dataclass(frozen=True)
class Text:
    """What a repair reads.

    Attributes:
        batches: calibration data, or what the model wrote.
        share: what it counts, of the whole.
        per_sample: how many in a row belong to one calibration sample.
    """

    batches: Batches
    share: float
    per_sample: int = 1


@dataclass
class ResidualRepair:
    """What a run repairs with, once all layers are measured.

    Attributes:
        texts: calibration data first, then what the model wrote; their shares sum to 1.
        gain: see `residual_gain`.
        ridge: see `ResidualFit`.
        epochs: of `reconstruct` after that; 0, and only the down projection changes.
        seed: see `reconstruct`.
        processes: others that read other batches.
    """

    texts: Sequence[Text]
    gain: float
    ridge: float
    epochs: int
    seed: int
    processes: Processes | None

    @torch.no_grad()
    def prune(
        self,
        model: nn.Module,
        blocks: Sequence[MLPBlock],
        cuts: Mapping[int, Callable[[], None]],
    ) -> dict[int, dict[str, float]]:
        """Cut layer after layer, each made up for by its own MLP.

        Args:
            model: dense yet.
            blocks: of all layers, in order.
            cuts: layer -> what cuts it; layers that are not named are left as they are.

        Returns:
            layer -> what was found while it was repaired, by name.
        """
        found: dict[int, dict[str, float]] = {}
        logger.info("repairing the residual stream behind every pruned layer")
        with torch.random.fork_rng(devices=[]):
            read = [Streams(model, blocks, t.batches, t.per_sample) for t in self.texts]
        # with what each token of them counts
        streams = {
            stream: text.share / self._total(stream.n_tokens)
            for stream, text in zip(read, self.texts, strict=True)
        }
        for block in bar(blocks, "repairing layers", "layer"):
            for stream in streams:
                stream.pass_dense(block)
            if block.index in cuts:
                cuts[block.index]()
                if not found:
                    self._warn_of_little_text(read, block.width)
                self._fit_down(block, streams)
                found[block.index] = self._reconstruct(block, streams) if self.epochs else {}
            for stream in streams:
                stream.pass_pruned(block)
        return found

    def _warn_of_little_text(self, read: Sequence[Streams], width: int) -> None:
        """Of the first layer that is cut, which stands for all."""
        tokens, samples = (
            sum(self._total(getattr(stream, name)) for stream in read)
            for name in ("n_tokens", "n_windows")
        )
        if few := too_little_text(tokens, width, samples):
            logger.warning(few)

    def _fit_down(self, block: MLPBlock, streams: Mapping[Streams, float]) -> None:
        # before `merge`, by which all processes have read it: they share one offloaded copy
        weight = oriented(block.down, block.down.weight).to(torch.float64, copy=True)
        fit = ResidualFit(*reversed(weight.shape), self.gain, weight.device)
        for stream, of_token in streams.items():
            for missing in stream.differences(block):
                fit.add(missing.h, missing.error, of_token)
        if self.processes is not None:
            fit.merge(self.processes)
        set_down(block, weight + fit.change(self.ridge))

    def _reconstruct(self, block: MLPBlock, streams: Mapping[Streams, float]) -> dict[str, float]:
        total = sum(self._total(stream.n_tokens) for stream in streams)
        generator = torch.Generator().manual_seed(self.seed)
        weights = [oriented(module, module.weight) for module in block.projections]
        examples = []
        for stream, of_token in streams.items():
            for missing in stream.differences(block):
                drawn = torch.rand(len(missing.sample), generator=generator) * total < _MOST_TOKENS
                x, error = (t[drawn.to(t.device)] for t in (missing.x, missing.error))
                # as precise as the stream that it is added to
                target = (mlp_output(block, weights, x) + error / self.gain).to(x.dtype)
                examples.append(Examples(x.cpu(), target.cpu(), missing.sample[drawn], of_token))
        found = reconstruct(
            block, examples, epochs=self.epochs, seed=self.seed, processes=self.processes
        )
        set_projections(block, found.weights)
        logger.info(
            f"layer {block.index}: reconstructed, error on held-out samples "
            f"{found.error_before:.4f} -> {found.error:.4f} of the target"
        )
        return {"error": found.error, "error_before_reconstruction": found.error_before}

    def _total(self, n_tokens: int) -> int:
        return n_tokens if self.processes is None else sum(self.processes.gather(n_tokens))


def plan_repair(
    model: nn.Module,
    blocks: Sequence[MLPBlock],
    calibration: Batches,
    own: Tensor | None,
    *,
    own_text: float,
    continuations: int,
    ridge: float,
    epochs: int,
    seed: int,
    processes: Processes | None,
    record: Record | None,
) -> ResidualRepair | None:
    """The repair of a run; None, with a warning, for a model whose stream cannot be repaired.

    Args:
        model: dense, in memory.
        blocks: of all layers, in order.
        calibration: batches as the run reads them.
        own: (n_windows, window), what the model wrote, if anything.
        own_text, continuations, ridge: see `WidthPruningModifier`.
        epochs, seed: see `ResidualRepair`.
        processes: others that read other samples.
        record: of the run, if it keeps one.
    """
    with torch.random.fork_rng(devices=[]):
        gain = residual_gain(model, blocks, next(iter(calibration)))
    if gain is None:
        logger.warning(
            f"{type(model).__name__} does not add its MLPs' output to the residual stream as it "
            "is, so each MLP's own output is repaired only, as by compensation: least_squares."
        )
        return None
    share = 1.0 - own_text if own is not None else 1.0
    texts = [Text(calibration, share / (1 + continuations))]
    if continuations:  # as long as the samples, so its tokens count as theirs
        windows = continuation_windows(model, calibration, continuations, seed, processes, record)
        part = share - texts[0].share
        texts.append(Text(own_batches(windows), part, per_sample=continuations))
    if own is not None:
        # one window per sample serves the repair as well as all of them, only choosing needs more
        texts.append(Text(own_batches(own[::PER_SAMPLE]), own_text))
    return ResidualRepair(texts, gain, ridge, epochs, seed, processes)
