"""Scoring one site with the built-in token table: the work of one Ray task, seconds long, no model to load."""

from __future__ import annotations

from pipeline.artifacts.store import Artifact
from pipeline.artifacts.tokens import TokenSplit
from pipeline.artifacts.vocabulary import token_strings
from pipeline.config import InterpretConfig
from pipeline.interpret.layer import SiteScores, score_site
from pipeline.interpret.reading import Site, read_excerpts, sampled_neurons
from pipeline.interpret.token_table import TokenTableJudge


def score_offline(config: InterpretConfig, seed: int, tokens: Artifact, records: Artifact, site: Site) -> SiteScores:
    """Explain, simulate and score the neurons of a site."""
    neurons = sampled_neurons(site, config.neurons_per_layer, seed)
    excerpts = read_excerpts(records, site, neurons)
    judge = TokenTableJudge(token_strings())
    return score_site(config, seed, site.name, site.layer, excerpts, TokenSplit(tokens, "val"), judge)
