"""Scoring one site with the built-in token table: the work of one Ray task, seconds long, no model to load."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.tokens import TokenSplit
from pipeline.artifacts.vocabulary import token_strings
from pipeline.interpret.layer import SiteScores, score_site
from pipeline.interpret.reading import Site, read_excerpts, sampled_neurons
from pipeline.interpret.token_table import TokenTableJudge

if TYPE_CHECKING:
    from pipeline.interpret.stage import Settings


def score_offline(settings: Settings, tokens: Artifact, records: Artifact, site: Site) -> SiteScores:
    """Explain, simulate and score the neurons of a site."""
    neurons = sampled_neurons(site, settings.interpret.neurons_per_layer, settings.seed)
    excerpts = read_excerpts(records, site, neurons, settings.activations)
    judge = TokenTableJudge(token_strings())
    return score_site(settings, site, excerpts, TokenSplit(tokens, "val"), judge)
