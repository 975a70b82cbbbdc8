"""Numbers and names as people read them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

METRICS = {
    "top_and_random": "Top and random",
    "random_only": "Random only",
    "anthropic": "Anthropic",
}
for _metric in tuple(
    METRICS
):  # a judge that writes numbers is asked another thing: `interpret.simulator: http_numbers`
    METRICS[f"{_metric}_generated"] = f"{METRICS[_metric]}, generated"
UNITS = ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def amount(value: float) -> str:
    """1234567 -> 1.23M; three digits at most."""
    for size, unit in UNITS:
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def read_on(rows: Sequence[Mapping[str, Any]], column: str = "n_tokens") -> str:
    """`4.1k to 8.19M tokens`: what the rows of a table were measured on."""
    return tokens_between([row[column] for row in rows])


def tokens_between(counts: Sequence[float]) -> str:
    """From the fewest to the most: `65.5k tokens`, `65.5k to 131k tokens`."""
    return f"{' to '.join(dict.fromkeys(map(amount, (min(counts), max(counts)))))} tokens"


def scored_on(metric: str, parts: list[Mapping[str, Any]]) -> str:
    """`5 top and 4.2 of 5 random excerpts` ...: what a metric's scores stand on, by the scores' summaries of some models."""
    kinds: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for part in parts:
        if not part["explained"] and part["mean"] is not None:
            kinds.setdefault((part["kind"], part["tokens"]), []).append(part)
    found = []
    for (kind, tokens), own in kinds.items():
        had = sorted({f"{part['mean']:.3g}" for part in own}, key=float)
        asked = " or ".join(sorted({str(part["asked"]) for part in own}))
        count = asked if had == [asked] else f"{' to '.join(dict.fromkeys((had[0], had[-1])))} of {asked}"
        found.append(f"{count} {kind} ({tokens} tokens each)")
    written = ", of numbers that the judge wrote" if metric.endswith("_generated") else ""
    return f"correlation over a neuron's excerpts, on average: {', '.join(found)}{written}"


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
