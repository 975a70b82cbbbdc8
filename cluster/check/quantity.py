"""Kubernetes quantities: `1500m`, `64Gi`, `8`."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

PATTERN = re.compile(r"([+-]?[0-9]+(?:\.[0-9]*)?|[+-]?\.[0-9]+)(?:([eE][+-]?[0-9]+)|([numkMGTPE]|[KMGTPE]i)?)")
POWERS = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}


def parse_quantity(text: Any) -> Decimal | None:
    """The number it stands for; None when it is no quantity."""
    found = PATTERN.fullmatch(str(text)) if isinstance(text, str | int | float) and not isinstance(text, bool) else None
    if not found:
        return None
    number, exponent, suffix = found.groups()
    if exponent:
        return Decimal(number + exponent)
    if suffix and suffix.endswith("i"):
        return Decimal(number) * 1024 ** ("KMGTPE".index(suffix[0]) + 1)
    return Decimal(number).scaleb(POWERS.get(suffix or "", 0))
