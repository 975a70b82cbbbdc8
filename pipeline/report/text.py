"""Numbers and names as people read them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

METRICS = {
    "top_and_random": "Top and random",
    "random_only": "Random only",
    "anthropic": "Anthropic",
}
METRIC_NOTES = {
    "top_and_random": "correlation over five top and five random 64-token excerpts",
    "random_only": "correlation over five random 64-token excerpts alone",
    "anthropic": "correlation over short 8-token excerpts from all quantiles",
}
for _metric in tuple(
    METRICS
):  # a judge that writes numbers is asked another thing: `interpret.simulator: http_numbers`
    METRICS[f"{_metric}_generated"] = f"{METRICS[_metric]}, generated"
    METRIC_NOTES[f"{_metric}_generated"] = f"{METRIC_NOTES[_metric]}, of numbers that the judge wrote"
UNITS = ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def amount(value: float) -> str:
    """1234567 -> 1.23M; three digits at most."""
    for size, unit in UNITS:
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def ranges(values: list[int]) -> str:
    """[1, 2, 3, 6] -> "1 to 3, 6"."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    parts = [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return ", ".join(parts)


def points(score: float | None) -> str:
    """A correlation as the published tables show it, times 100."""
    return "-" if score is None else f"{100 * score:.1f}"


def family_name(family: str) -> str:
    """`code` -> neurons, `code-16x` -> SAE 16x."""
    return "neurons" if family in ("code", "") else "SAE " + family.removeprefix("code-")


def is_of_autoencoder(family: str) -> bool:
    """Whether what is scored are features (`code-16x`) and not neurons (`code`, `out`)."""
    return re.search(r"-\d+x", family) is not None


def unit_kind(edit: Mapping[str, Any]) -> str:
    """`neuron` or `feature`: a neuron's site is its layer (`code-l0`), a feature's an autoencoder (`code-l0-16x`)."""
    return "neuron" if edit["site"] == f"code-l{edit['layer']}" else "feature"


def edit_name(edit: Mapping[str, Any]) -> str:
    """`L0 neuron 12: clamp 5`."""
    value = "" if edit["how"] == "ablate" else f" {edit['value']:.3g}"
    return f"L{edit['layer']} {unit_kind(edit)} {edit['neuron']}: {edit['how']}{value}"


def token_label(token: str, most: int = 12) -> str:
    """A token in quotes, as any type can write it: what is no Latin letter or common sign is escaped; long ones are cut."""
    cut = token if len(token) <= most else token[: most - 1] + "…"
    shown = (c if c in "…�" or (c.isprintable() and ord(c) < 0x250) else ascii(c)[1:-1] for c in cut)
    return f"“{''.join(shown)}”"
