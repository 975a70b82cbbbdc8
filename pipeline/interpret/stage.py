"""Stages `interpret` and `interpret_features`: explain neurons (or SAE features), simulate them, score the explanations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crate_model.config import ModelConfig
from pipeline.artifacts.artifact import Artifact
from pipeline.config import ActivationsConfig, Config, InterpretConfig
from pipeline.stage import Context, Stage, Summary

if TYPE_CHECKING:
    from pipeline.interpret.layer import SiteScores


@dataclass(frozen=True)
class Settings:
    """`model` and `activations`, which are the records' too, say what a metric should have: all layers, so many excerpts."""

    seed: int
    model: ModelConfig
    activations: ActivationsConfig
    interpret: InterpretConfig


def run(settings: Settings, inputs: Mapping[str, Artifact], out_folder: Path, context: Context) -> Summary:
    from pipeline.artifacts.scores import write_scores
    from pipeline.interpret.on_ray import score_sites_offline
    from pipeline.interpret.reading import sites_of
    from pipeline.interpret.token_table import LABEL

    records = inputs["activations"] if "activations" in inputs else inputs["features"]
    sites = sites_of(records)
    asked = settings.interpret.neurons_per_layer
    n_neurons = sum(min(asked or site.n_neurons, site.n_neurons) for site in sites)
    progress = context.progress(n_neurons, "neurons")
    facts: dict[str, Any] = {"judge": LABEL}
    if settings.interpret.simulator_kind == "token_table":
        scored = score_sites_offline(settings, inputs["tokens"], records, sites, progress)
    else:
        from pipeline.interpret.online import score_sites_online

        scored, facts = score_sites_online(settings, inputs["tokens"], records, sites, context, progress)
    write_scores(out_folder, [site.neurons for site in scored], [row for site in scored for row in site.rows.values()])
    return facts | summary(scored, settings)


def summary(scored: list[SiteScores], settings: Settings) -> Summary:
    """The manifest's facts, family by family: each metric's mean over layers, interval and coverage, and what it stands on."""
    from pipeline.artifacts.scores import family_of
    from pipeline.interpret.basis import by_kind, model_facts
    from pipeline.interpret.statistics import model_summary

    families: dict[str, Any] = {}
    excerpts: dict[str, Any] = {}
    for name in dict.fromkeys(family_of(site.site) for site in scored):
        layers = [site for site in scored if family_of(site.site) == name]
        families[name], excerpts[name] = {}, {}
        for metric in layers[0].rows:
            rows, estimates = [site.rows[metric] for site in layers], [site.estimates[metric] for site in layers]
            families[name][metric] = model_summary(rows, estimates, settings.model.n_layer) | model_facts(rows)
            excerpts[name][metric] = by_kind([site.basis[metric] for site in layers])
    last: dict[str, Any] = next(reversed(families.values()), {})
    return {"protocol": settings.interpret.protocol, "metrics": last, "families": families, "excerpts": excerpts}


def check(config: Config) -> Sequence[str]:
    """Tells metrics that cannot be scored with these settings; raises ConfigError where none can."""
    from pipeline.interpret import limits

    return limits.check(config)


def has_features(config: Config) -> bool:
    return bool(config.sae.expansions)


INTERPRET = Stage("interpret", 5, "cell", ("tokens", "activations"), Settings, run, check=check)
INTERPRET_FEATURES = Stage("interpret_features", 5, "cell", ("tokens", "features"), Settings, run, needed=has_features)
