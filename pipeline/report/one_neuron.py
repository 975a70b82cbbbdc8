"""One neuron in the terminal: its statistics, scores and excerpts, shaded by activation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.records import LAST_OCTAVE, Excerpt, Records, histogram_edges
from pipeline.artifacts.scores import Scores
from pipeline.artifacts.tokens import TokenSplit
from pipeline.artifacts.vocabulary import token_strings
from pipeline.report.text import METRICS

SHADE = (194, 65, 13)  # of the strongest token
BARS = "▁▂▃▄▅▆▇█"


def print_neuron(inputs: Mapping[str, Artifact], layer: int | str, neuron: int, n_excerpts: int = 5) -> None:
    """Print a neuron. `inputs`: `tokens`, `records` (activations or features) and, where they were judged, `scores`.

    `layer` may be a site's name, to tell SAEs of one layer apart. Raises ConfigError when there is no such neuron.
    """
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    record = Records(inputs["records"]).neuron(layer, neuron)
    console.print(f"[bold]{record.site}, neuron {record.neuron}[/]  " + facts(record.statistics))
    console.print("activations: " + histogram(record.statistics["histogram"]))
    for row in _scores(inputs.get("scores"), record.site, neuron):
        said = f"{100 * row['score']:.1f}" if row["score"] is not None else row["status"]
        console.print(
            f"{METRICS.get(row['metric'], row['metric'])}: [bold]{said}[/]  {row['explanation'] or ''}", markup=True
        )
    if "scores" in inputs:
        console.print(f"judge: {Scores(inputs['scores']).judge}", markup=False)
    split, strings = TokenSplit(inputs["tokens"], "val"), token_strings()
    for width, kinds in record.excerpts.items():
        for (kind, number), excerpts in kinds.items():
            name = f"{kind} {number}" if kind == "quantile" else kind
            console.print(f"\n[bold]{name}[/], {width} tokens ({len(excerpts)})")
            for excerpt in excerpts[:n_excerpts]:
                console.print(shaded(excerpt, split, strings, float(record.statistics["maximum"])))


def facts(statistics: Mapping[str, Any]) -> str:
    """A neuron's statistics in one line."""
    active, maximum = statistics["fraction_nonzero"], statistics["maximum"]
    return f"fires on {100 * active:.3g} % of tokens, at most {maximum:.3g}, {moments(statistics)}"


def moments(statistics: Mapping[str, Any]) -> str:
    names = ("mean", "variance", "skewness", "kurtosis")  # the last two are null where the variance is 0
    return ", ".join(f"{n} {'-' if statistics[n] is None else format(statistics[n], '.3g')}" for n in names)


def histogram(counts: Sequence[int]) -> str:
    """The shares below zero and at zero, then a bar a power of two, as high as its share of the fullest one."""
    total, positive = sum(counts), np.array(counts[2:])
    shares = f"{100 * counts[0] / total:.3g} % below 0, {100 * counts[1] / total:.3g} % zero"
    filled = np.flatnonzero(positive)
    if not len(filled):
        return shares
    first, last = filled[0], filled[-1]
    bars = "".join(_bar(count / positive.max()) for count in positive[first : last + 1])
    edges = [*histogram_edges(), 2.0**LAST_OCTAVE][2:]
    return f"{shares}, from {edges[first]:.2g} {bars} to {edges[last + 1]:.2g}, a bar for each doubling"


def _bar(share: float) -> str:
    return BARS[min(int(share * len(BARS)), len(BARS) - 1)] if share else " "


def shaded(excerpt: Excerpt, split: TokenSplit, strings: list[str], maximum: float) -> Any:
    """An excerpt as rich text; the background tells the activation, as a share of the neuron's maximum."""
    from rich.text import Text

    text = Text("  ")
    ids = split.read(excerpt.start, len(excerpt.activations)).tolist()
    for token, value in zip(ids, excerpt.activations, strict=True):
        share = min(1.0, max(0.0, float(value) / maximum)) if maximum > 0 else 0.0
        red, green, blue = (round(255 + (part - 255) * share) for part in SHADE)
        style = f"black on rgb({red},{green},{blue})" if share > 0.02 else ""
        text.append(strings[token].replace("\n", "\N{RETURN SYMBOL}"), style=style)
    return text


def _scores(made: Artifact | None, site: str, neuron: int) -> list[dict[str, Any]]:
    if made is None:
        return []
    return [row for row in Scores(made).neurons(site=site).to_pylist() if row["neuron"] == neuron]
