"""Tells whether two models have a common origin, by what their networks do on the same text.

Time courses know no neurons: their order, their scale and how many there are do not matter. But
any two models that read the same tokens act alike, so what the tokens themselves explain is taken
out first: the mean of a course at each token, behind each token, and at each place in a window.
Of what is left a model explains much in a model that stems from it, and less in others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor

from funcnet_plugin.atlas.files import read_atlas, read_courses
from funcnet_plugin.bars import bar
from funcnet_plugin.errors import AtlasError

_ROUNDS = 3  # of taking out one kind of means after the other; they are not independent
_LEFT = 0.01  # of its variance: a course with less left is that of its tokens, and not compared
_FREE = 10  # free tokens for each network of a block
_SAME = ("n_components", "signals", "strategy", "layers_per_window")  # settings of both atlases
_SINGULAR = 1e-6  # courses are stored to three digits, so smaller eigenvalues are rounding
REFERENCES = 3  # unrelated models that a rate takes at least
# Similarities of unrelated pairs of small models (benchmarks/lineage.py), where none are given.
MEASURED = (
    0.133, 0.135, 0.136, 0.142, 0.294, 0.297, 0.312, 0.313, 0.431, 0.44,
    0.447, 0.46, 0.461, 0.47, 0.477, 0.505, 0.51, 0.511, 0.515, 0.519,
)  # fmt: skip
_STEMS = 0.01  # largest rate of false alarms at which a common origin is called certain


@dataclass(frozen=True)
class Activity:
    """Holds what the networks of a model do beyond what the tokens explain.

    Attributes:
        source: the directory of its atlas.
        settings: of the networks, see `_SAME`.
        tokens: (n_tokens,), int64.
        samples: (n_samples,), int64, how many tokens each has.
        courses: block -> (n_tokens, k), float32, columns of length 1.
        free: tokens less the means that were taken out.
    """

    source: str
    settings: Mapping[str, Any]
    tokens: Tensor
    samples: Tensor
    courses: Mapping[str, Tensor]
    free: int


@dataclass(frozen=True)
class Kinship:
    """Says how much two models do alike.

    Attributes:
        of_first: share of the courses of the first model that one block of the other explains, the
            best one; mean over networks, adjusted for the number of networks that explain.
        of_second: the same the other way round.
        blocks: block of the first -> the block of the second that explains it best, and the share.
    """

    of_first: float
    of_second: float
    blocks: Mapping[str, tuple[str, float]]

    @property
    def similarity(self) -> float:
        """Average both shares; about 0 for unrelated courses, 1 for the same model."""
        return (self.of_first + self.of_second) / 2


def read_activity(directory: str | Path) -> Activity:
    """Read the time courses of an atlas, and take out what the tokens explain.

    Raises:
        AtlasError: there is no whole atlas, it has no time courses, or the text is too short.
    """
    atlas = read_atlas(directory)
    tensors = read_courses(directory)
    if not {"tokens", "samples", *atlas.maps} <= tensors.keys():
        raise AtlasError(f"the atlas {directory} has no time courses; make it again.")
    tokens, samples = tensors.pop("tokens"), tensors.pop("samples")
    kinds = _kinds(tokens, samples)
    free = len(tokens) - sum(int(kind.max()) + 1 for kind in kinds)
    largest = max(course.shape[1] for course in tensors.values())
    if free < _FREE * largest:
        raise AtlasError(
            f"the text of the atlas {directory} is too short: {len(tokens)} tokens leave "
            f"{max(free, 0)} when what each token explains is taken out, and {largest} networks of "
            f"a block need {_FREE * largest}; make it with more --samples or fewer --components."
        )
    courses = {block: _rest(tensors[block].float(), kinds) for block in atlas.maps}  # in order
    found = {block: course for block, course in courses.items() if course.shape[1]}
    if not found:
        raise AtlasError(
            f"the tokens explain all that the networks of {directory} do; make the atlas of a "
            "trained model, with other text."
        )
    settings = {key: atlas.facts["settings"]["scorer"].get(key) for key in _SAME}
    return Activity(str(directory), settings, tokens, samples, found, free)


def kinship(first: Activity, second: Activity, title: str = "") -> Kinship:
    """Compare what two models do on the same text.

    Args:
        title: of a bar over the blocks of the first; none if empty.

    Raises:
        AtlasError: the atlases are of other text, another tokenizer, or networks of another kind.
    """
    _check(first, second)
    inner = {block: _inverse(course) for block, course in second.courses.items()}
    of_first, of_second, blocks = [], {block: [] for block in second.courses}, {}
    for block, mine in bar(first.courses.items(), title, "block", within=True):
        own = _inverse(mine)
        shares = {}
        for other, theirs in second.courses.items():
            common = theirs.T @ mine  # (k', k)
            shares[other] = _explained(common, inner[other], first.free)
            of_second[other].append(_explained(common.T, own, first.free))
        best = max(shares, key=lambda name: float(shares[name].mean()))
        blocks[block] = (best, float(shares[best].mean()))
        of_first.append(torch.stack(list(shares.values())).amax(0))
    backward = [torch.stack(parts).amax(0) for parts in of_second.values()]
    return Kinship(float(torch.cat(of_first).mean()), float(torch.cat(backward).mean()), blocks)


def check_references(n: int) -> None:
    """Refuse fewer unrelated models than a rate takes.

    Raises:
        AtlasError: they are too few.
    """
    if n < REFERENCES:
        raise AtlasError(
            f"a rate of false alarms takes {REFERENCES} unrelated models or more and there are "
            f"{n}; give atlases of others, too."
        )


def false_alarms(similarity: float, unrelated: Sequence[float]) -> float:
    """Estimate how often an unrelated model would be as similar as this, or more.

    The logits of the similarities are taken to be normal, and the next one to be drawn like those
    that are there (Student's t).

    Args:
        similarity: of the model in question.
        unrelated: of models that have no common origin with the first, at least `REFERENCES`.

    Raises:
        AtlasError: they are too few.
    """
    n = len(unrelated)
    check_references(n)
    logits = torch.tensor(unrelated, dtype=torch.float64).logit(1e-6)
    mean, deviation = float(logits.mean()), float(logits.std())
    own = float(torch.tensor(similarity, dtype=torch.float64).logit(1e-6))
    distance = (own - mean) / max(deviation * (1 + 1 / n) ** 0.5, 1e-12)
    return float(student.sf(distance, n - 1))


def verdict(similarity: float, unrelated: Sequence[float]) -> str:
    """Say in words what a similarity means; which model came first it does not tell.

    Args:
        similarity, unrelated: see `false_alarms`.
    """
    if false_alarms(similarity, unrelated) <= _STEMS:
        return "stems from the same model"
    return "unclear" if similarity > max(unrelated) else "no sign of a common origin"


def _kinds(tokens: Tensor, samples: Tensor) -> list[Tensor]:
    """Number the tokens by what each is, by what stands before it, and by its place in a sample."""
    place = torch.cat([torch.arange(length) for length in samples.tolist()])
    before = tokens.roll(1).masked_fill(place == 0, -1)
    return [kind.unique(return_inverse=True)[1] for kind in (tokens, before, place)]


def _rest(courses: Tensor, kinds: Sequence[Tensor]) -> Tensor:
    """Take means out; gives columns of length 1, without those of which next to nothing is left."""
    before = courses.square().sum(0)
    for _ in range(_ROUNDS):
        for kind in kinds:
            counts = torch.bincount(kind)[:, None]
            sums = courses.new_zeros(len(counts), courses.shape[1]).index_add_(0, kind, courses)
            courses = courses - (sums / counts)[kind]
    after = courses.square().sum(0)
    return torch.nn.functional.normalize(courses[:, after > _LEFT * before], dim=0)


def _inverse(courses: Tensor) -> Tensor:
    """Invert the products of the columns, (k, k), float64, where they are not rounding."""
    products = (courses.T @ courses).double()
    return torch.linalg.pinv(products, rtol=_SINGULAR, hermitian=True)


def _explained(common: Tensor, inverse: Tensor, free: int) -> Tensor:
    """Say which share of each course a least-squares fit of others explains, (n,).

    The share is adjusted: courses that have nothing to do with each other explain 0 on average.

    Args:
        common: (k, n), products of those that explain and those that are explained.
        inverse: (k, k), of those that explain.
    """
    common = common.double()
    share = (common * (inverse @ common)).sum(0)
    return 1 - (1 - share) * free / (free - len(common))


def _check(first: Activity, second: Activity) -> None:
    for key in _SAME:
        mine, theirs = first.settings[key], second.settings[key]
        if mine != theirs:
            raise AtlasError(
                f"the atlas {first.source} was made with {key}={_plain(mine)} and "
                f"{second.source} with {key}={_plain(theirs)}; make both alike."
            )
    if not torch.equal(first.samples, second.samples) or not torch.equal(
        first.tokens, second.tokens
    ):
        raise AtlasError(
            f"the atlases {first.source} and {second.source} are of other text, other windows, or "
            "models with another tokenizer, so their time courses cannot be laid side by side; "
            "make both with the same --data, --samples, --window and --seed, of models that share "
            "a tokenizer."
        )


def _plain(value: Any) -> str:
    return f"[{', '.join(value)}]" if isinstance(value, list) else str(value)
