"""Keys of candidates for excerpts: int64, in the upper half a priority, in the lower the token's position. Smaller is better.

No two candidates of a group are equal, so that which are kept does not depend on the order of their arrival.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

EMPTY = 2**63 - 2  # key of a free place
NONE = 2**63 - 1  # key of a candidate that is none: never takes a place
POSITION_BITS = 32
POSITION_MASK = (1 << POSITION_BITS) - 1


def keys_of(priorities: Tensor, positions: Tensor) -> Tensor:
    """From int32 priorities and int64 positions."""
    return (priorities.long() << POSITION_BITS) | positions
