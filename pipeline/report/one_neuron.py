"""One neuron in the terminal: its statistics, scores and excerpts, shaded by activation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.artifacts.records import Excerpt, Records
from pipeline.artifacts.scores import Scores
from pipeline.artifacts.store import Artifact
from pipeline.artifacts.tokens import TokenSplit
from pipeline.artifacts.vocabulary import token_strings
from pipeline.report.text import METRICS

SHADE = (194, 65, 13)  # of the strongest token


def print_neuron(inputs: Mapping[str, Artifact], layer: int | str, neuron: int, n_excerpts: int = 5) -> None:
    """Print a neuron. `inputs`: `tokens`, `records` (activations or features) and, where they were judged, `scores`.

    `layer` may be a site's name, to tell SAEs of one layer apart. Raises ConfigError when there is no such neuron.
    """
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    record = Records(inputs["records"]).neuron(layer, neuron)
    console.print(f"[bold]{record.site}, neuron {record.neuron}[/]  " + facts(record.statistics))
    for row in _scores(inputs.get("scores"), record.site, neuron):
        said = f"{100 * row['score']:.1f}" if row["score"] is not None else row["status"]
        console.print(
            f"{METRICS.get(row['metric'], row['metric'])}: [bold]{said}[/]  {row['explanation'] or ''}", markup=True
        )
    split, strings = TokenSplit(inputs["tokens"], "val"), token_strings()
    for width, kinds in record.excerpts.items():
        for (kind, number), excerpts in kinds.items():
            name = f"{kind} {number}" if kind == "quantile" else kind
            console.print(f"\n[bold]{name}[/], {width} tokens ({len(excerpts)})")
            for excerpt in excerpts[:n_excerpts]:
                console.print(shaded(excerpt, split, strings, float(record.statistics["maximum"])))


def facts(statistics: Mapping[str, Any]) -> str:
    """A neuron's statistics in one line."""
    active, maximum, mean = (statistics[name] for name in ("fraction_nonzero", "maximum", "mean"))
    return f"fires on {100 * active:.3g} % of tokens, at most {maximum:.3g}, mean {mean:.3g}"


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
