"""Stages `interpret` and `interpret_features`: explain neurons (or SAE features), simulate them, score the explanations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.store import Artifact
from pipeline.config import Config, InterpretConfig
from pipeline.stage import Context, Stage, Summary

if TYPE_CHECKING:
    from pipeline.interpret.layer import SiteScores


@dataclass(frozen=True)
class Settings:
    seed: int
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
    return facts | summary(scored, settings.interpret)


def summary(scored: list[SiteScores], config: InterpretConfig) -> Summary:
    """The manifest's facts: each metric's mean over layers with its interval and coverage, family by family."""
    from pipeline.artifacts.scores import family_of
    from pipeline.interpret.statistics import model_summary

    families: dict[str, Any] = {}
    for name in dict.fromkeys(family_of(site.site) for site in scored):
        layers = [site for site in scored if family_of(site.site) == name]
        families[name] = {
            metric: model_summary([site.rows[metric] for site in layers], [site.bootstraps[metric] for site in layers])
            for metric in layers[0].rows
        }
    last: dict[str, Any] = next(reversed(families.values()), {})
    return {"protocol": config.protocol, "metrics": last, "families": families}


def has_features(config: Config) -> bool:
    return bool(config.sae.expansions)


INTERPRET = Stage("interpret", 3, "cell", ("tokens", "activations"), Settings, run)
INTERPRET_FEATURES = Stage("interpret_features", 3, "cell", ("tokens", "features"), Settings, run, needed=has_features)
