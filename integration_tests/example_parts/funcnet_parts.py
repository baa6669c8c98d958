"""A complete plugin of parts: a scorer, a repair and a decomposer, each with a parameter.

The fields of a class are its parameters. A recipe writes them beside the name::

    scorer:
      - {name: networks, decomposer: {name: varimax, max_iter: 50}}
      - {name: peak, deviations: 2}
    repair: {name: rescale, limit: 1.5}
"""

import torch
from pydantic import Field

from funcnet_plugin import Decomposer, Repair, Scorer, hookimpl
from funcnet_plugin.errors import DecompositionError
from funcnet_plugin.ica import ICAResult, RunReport
from funcnet_plugin.repair.repair import Cut, Repaired
from funcnet_plugin.score.scorer import Evidence


class Peak(Scorer):
    """Scores a neuron by how much it adds to the output when it is far from its mean.

    :param deviations: how far, in standard deviations.
    """

    name = "peak"
    needs = frozenset({"moments"})

    deviations: float = Field(default=3.0, ge=0.0)

    def score(self, evidence: Evidence) -> torch.Tensor:
        moments = evidence.moments
        reached = moments.mean.abs() + self.deviations * moments.variance.sqrt()
        norm = evidence.unit.output_weight.detach().double().norm(dim=0)
        return reached.to(norm.device) * norm


class Rescale(Repair):
    """Scales what is kept of each output, so that its mean square is that of the dense MLP.

    :param limit: the largest factor.
    """

    name = "rescale"
    needs = frozenset({"moments"})

    limit: float = Field(default=2.0, ge=1.0)

    def repaired(self, cut: Cut) -> Repaired:
        weight = cut.unit.output_weight.detach().double()
        second = cut.moments.second.to(weight.device)
        keep = cut.columns
        kept = weight[:, keep]
        before = ((weight @ second) * weight).sum(1)
        after = ((kept @ second[keep][:, keep]) * kept).sum(1)
        tiny = torch.finfo(torch.float64).tiny
        factor = (before / after.clamp_min(tiny)).sqrt().clamp_max(self.limit)
        return Repaired(output_weight=kept * factor.unsqueeze(1))


class Varimax(Decomposer):
    """Rotates principal components so that each has few large values (Kaiser 1958).

    :param max_iter: steps of the rotation.
    """

    name = "varimax"
    source = "doi:10.1007/BF02289233"
    max_iter: int = Field(default=200, ge=1)

    def rotate(self, white: torch.Tensor, seed: int) -> ICAResult:
        # It begins at the principal components, so the seed decides nothing.
        W = torch.eye(len(white), dtype=white.dtype, device=white.device)
        steps, turned = 0, 1.0
        while turned > 1e-4 and steps < self.max_iter:
            cubes = (W @ white) ** 3 @ white.T / white.shape[1]
            left, _, right = torch.linalg.svd(cubes)
            before, W = W, left @ right
            turned = float((1.0 - (W * before).sum(1).abs()).abs().max())
            steps += 1
        if not torch.isfinite(W).all():
            raise DecompositionError("varimax gave NaN maps; take the decomposer canica.")
        run = RunReport(converged=turned <= 1e-4, n_iter=steps, final_tolerance=turned)
        return ICAResult(W.unsqueeze(0), (run,))


@hookimpl
def funcnet_scorers():
    return [Peak]


@hookimpl
def funcnet_repairs():
    return [Rescale]


@hookimpl
def funcnet_decomposers():
    return [Varimax]
