"""Says which widths are fast: what kept widths should be multiples of."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

from funcnet_plugin.errors import RecipeError

AUTO = "auto"
FILE_KEY = "align"  # in what `funcnet bench --widths` writes
# Where nothing was measured. A GPU multiplies half precision in tiles that are up to 128 wide; 32
# is a block of the GGUF quantizations q8_0 and q4_0, and what vector units of CPUs divide.
_OF_DEVICE = {"cuda": 128, "cpu": 32}


def resolve(align: int | str, device: str, divisors: Iterable[int]) -> int:
    """Give the number that kept widths are multiples of.

    Args:
        align: that number; `auto`, by what is known of the device; or a file that
            `funcnet bench --widths` wrote, by what was measured.
        device: type of the device, `cuda` or `cpu`.
        divisors: what the rest of the recipe needs widths to be multiples of, groups of a
            quantization; heeded unless `align` is a number.

    Raises:
        RecipeError: there is no such file, or it is another one.
    """
    if isinstance(align, int):
        return align
    step = _OF_DEVICE.get(device, 128) if align == AUTO else _measured(Path(align))
    return math.lcm(step, *divisors)


def _measured(path: Path) -> int:
    try:
        found = json.loads(path.read_text())[FILE_KEY]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"align: {path} is no number, not {AUTO}, and no widths.json that funcnet bench "
            "--widths wrote; give one of these."
        ) from error
    if not isinstance(found, int) or found < 1:
        raise RecipeError(f"{path} says align: {found!r}; measure again with funcnet bench.")
    return found
