"""How many excerpts of a metric the settings can give at most: told before anything runs, and not judged for nothing."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.artifacts.records import quantile_bins
from pipeline.config import ActivationsConfig, Config
from pipeline.errors import ConfigError
from pipeline.interpret.basis import Part
from pipeline.interpret.excerpts import SELECTIONS, Metric, Pick, Selection

MOST_RANKS = 50  # no metric asks for a later one


def check(config: Config) -> Sequence[str]:
    """Sentences about metrics that no neuron can have a score of. Raises ConfigError where that is all of them."""
    found = {metric: why for metric in config.interpret.metrics if (why := _why_not(config, metric))}
    if not found:
        return ()
    fix = "Set these in the configuration, or leave the metric out of interpret.metrics."
    if len(found) == len(config.interpret.metrics):
        raise ConfigError("no neuron can have a score: " + "; ".join(found.values()), fix=fix)
    return [f"no neuron will have a score of {why}" for why in found.values()]


def scorable(config: Config) -> tuple[Metric, ...]:
    """The metrics that a neuron can have a score of."""
    return tuple(metric for metric in config.interpret.metrics if not _why_not(config, metric))


def at_most(config: Config, metric: Metric) -> dict[Part, int]:
    """Excerpts that a neuron can have of each part of a metric."""
    selection = _selection(metric)
    kept = _kept(config, selection.long)
    bins, width = _bins_and_width(config.activations, selection)
    spare = config.interpret.protocol == "corrected"
    return {pick.part(bins, width): _had(pick, kept[pick.kind], spare) for pick in selection.picks_of(metric)}


def _selection(metric: Metric) -> Selection:
    return next(selection for selection in SELECTIONS if metric in selection.metrics())


def _bins_and_width(asked: ActivationsConfig, selection: Selection) -> tuple[int, int]:
    return quantile_bins(asked.protocol, selection.long), asked.window if selection.long else asked.window_short


def _kept(config: Config, long: bool) -> dict[str, list[int]]:
    """Excerpts kept of each kind, of quantile ones a number a bin."""
    asked = config.activations
    bins = quantile_bins(asked.protocol, long)
    top, random, of_bins = asked.top, asked.random, asked.per_quantile * bins
    if (
        asked.protocol == "corrected"
    ):  # a row gives one excerpt: to the top ones first, and the bins take turns in the rest
        rows = _rows(config, long)
        top = min(top, rows)
        random = min(random, rows - top)
        of_bins = min(of_bins, rows - top - random)
    quantile = [of_bins // bins + (bin_ < of_bins % bins) for bin_ in range(bins)]
    return {"top": [top], "random": [random], "quantile": quantile}


def _rows(config: Config, long: bool) -> int:
    tokens = config.activations.tokens if long else config.activations.tokens_short
    return max(1, tokens // config.model.n_ctx)


def _had(pick: Pick, kept: Sequence[int], spare: bool) -> int:
    ranks = pick.ranks + (pick.reserve if spare else ())
    return sum(min(len(pick.ranks), sum(rank < count for rank in ranks)) for count in kept)


def _why_not(config: Config, metric: Metric) -> str:
    """What a metric lacks and what it needs; empty where it can be scored."""
    short = [(part, count) for part, count in at_most(config, metric).items() if not part.enough(count)]
    if not short:
        return ""
    lacks = [f"{count} of {p.asked} {p.kind} excerpts to {'explain' if p.explained else 'score'}" for p, count in short]
    needs = [f"activations.{name} {value}" for name, value in _needs(config, metric).items()]
    return f"{metric}, which can have {', '.join(lacks)}, and needs at least {', '.join(needs)}"


def _needs(config: Config, metric: Metric) -> dict[str, int]:
    """The least settings, where they are above those that there are, by which a neuron can have enough."""
    selection, asked = _selection(metric), config.activations
    bins, width = _bins_and_width(asked, selection)
    spare = config.interpret.protocol == "corrected"
    least: dict[str, int] = {}
    for kind, name in (("top", "top"), ("random", "random"), ("quantile", "per_quantile")):
        picks = [pick for pick in selection.picks_of(metric) if pick.kind == kind]
        of = bins if kind == "quantile" else 1
        enough = (
            count
            for count in range(MOST_RANKS)
            if all(pick.part(bins, width).enough(_had(pick, [count] * of, spare)) for pick in picks)
        )
        least[name] = next(enough)
    needed = {name: value for name, value in least.items() if value > getattr(asked, name)}
    rows = max(asked.top, least["top"]) + max(asked.random, least["random"]) + bins * least["per_quantile"]
    if asked.protocol == "corrected" and rows > _rows(config, selection.long):
        needed["tokens" if selection.long else "tokens_short"] = rows * config.model.n_ctx
    return needed
