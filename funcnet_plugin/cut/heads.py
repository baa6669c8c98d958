"""Decides how many heads every layer keeps: one number for all, which the config can say."""

from __future__ import annotations

from loguru import logger
from torch import nn

from funcnet_plugin.adapters.attention import bind_attention
from funcnet_plugin.adapters.head_counts import possible_groups
from funcnet_plugin.cut.budget import far_from_asked
from funcnet_plugin.errors import BudgetError


class HeadPlan:
    """Holds the groups of heads of a model's layers before and after.

    Args:
        model: before pruning; may be on the meta device.
        layers: path of the list of decoder layers.

    Attributes:
        units: of all layers, which follow when they are cut.
        original: groups of every layer before the cut.
        possible: numbers of groups that may be kept, ascending.
        kept: the one that is; None until it is decided.

    Raises:
        AdapterError: the heads of this architecture, or of this model, cannot be cut.
    """

    def __init__(self, model: nn.Module, layers: str) -> None:
        self.units = bind_attention(model, layers)
        self.possible = possible_groups(model, self.units)
        self.original = self.units[0].width
        self.kept: int | None = None

    def removed(self, kept: int) -> int:
        """Count the parameters that go when every layer keeps so many groups."""
        return sum((self.original - kept) * unit.parameters_per_piece for unit in self.units)

    def decide_by_share(self, share: float) -> None:
        """Decide on the number that comes nearest to a share of all heads.

        Raises:
            BudgetError: the smallest step is more than twice as much.
        """
        shares = {kept: 1 - kept / self.original for kept in self.possible}
        kept = min(shares, key=lambda k: (abs(shares[k] - share), -k))
        numbers = " or ".join(str(k) for k in [*self.possible, self.original])
        why = f"this model may have {numbers} key-value heads with their queries"
        if shares[kept] > 2 * share:
            raise BudgetError(
                f"heads_ratio={share:g} is far less than one step: {why}, so {shares[kept]:.4f} go "
                "at least; ask for about that much, or leave heads_ratio out."
            )
        if far := far_from_asked(share, shares[kept], why):
            logger.warning(f"heads_ratio: {far}")
        self.kept = kept

    def inputs(self, kept: int) -> dict[str, tuple[nn.Module, int]]:
        """Give path -> output projection, and how many inputs it has with so many groups."""
        return {
            unit.path_of(unit.out): (unit.out, unit.n_columns * kept // unit.width)
            for unit in self.units
        }

    def said(self) -> str:
        """Say what is kept."""
        each, size = self.units[0].query_heads, self.units[0].head_size
        return (
            f"{self.kept} of {self.original} key-value heads with {each} query heads each, of size "
            f"{size}"
        )
