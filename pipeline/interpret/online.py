"""Scoring all sites of a model with language models: one judge, one cache, one budget; a kill loses no answered call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.store import Artifact
from pipeline.artifacts.tokens import TokenSplit
from pipeline.artifacts.vocabulary import token_strings
from pipeline.errors import StageError
from pipeline.interpret.budget import Budget
from pipeline.interpret.cache import JudgeCache
from pipeline.interpret.judges import StartWorkers, make_judge
from pipeline.interpret.layer import SiteScores, score_site
from pipeline.interpret.on_ray import Workers
from pipeline.interpret.reading import Site, read_excerpts, sampled_neurons
from pipeline.progress import Progress
from pipeline.stage import Context

if TYPE_CHECKING:
    from pipeline.interpret.stage import Settings


def score_sites_online(
    settings: Settings,
    tokens: Artifact,
    records: Artifact,
    sites: Sequence[Site],
    context: Context,
    progress: Progress,
    start: StartWorkers | None = None,
) -> tuple[list[SiteScores], dict[str, Any]]:
    """The scores of all sites, and the facts of the summary: who judged, and what it took.

    Workers are Ray actors unless `start` says otherwise.
    """
    config = settings.interpret
    cache, budget, workers = JudgeCache(context.store, context.fingerprint), Budget(config), Workers(context)
    strings = token_strings()
    split = TokenSplit(tokens, "val")
    scored: list[SiteScores] = []
    try:
        judge = make_judge(config, settings.seed, context.runtime, cache, budget, strings, start or workers.start)
        done = 0
        for site in sites:
            drawn = config.neurons_per_layer or (
                site.n_neurons if config.half_width else 0
            )  # may end early: a random sample
            neurons = sampled_neurons(site, drawn, settings.seed)

            def tell(neurons_done: int, before: int = done) -> None:
                progress.update(before + neurons_done, calls=budget.calls_made, price=round(budget.spent, 4))
                cache.upload()
                if context.stop_requested():
                    raise StageError(
                        "judging stopped as asked", fix="Run again: answered calls are kept.", stage="interpret"
                    )

            excerpts = read_excerpts(records, site, neurons, settings.activations)
            scored.append(score_site(settings, site, excerpts, split, judge, tell))
            done += len(neurons)
            progress.update(done)
        _track(context, budget)
        return scored, {"judge": judge.label, "cost": budget.summary()}
    finally:
        workers.stop()
        cache.close()


def _track(context: Context, budget: Budget) -> None:
    tracker = context.tracker.open()
    tracker.metrics(
        {
            "interpret/calls_made": budget.calls_made,
            "interpret/calls_remembered": budget.calls - budget.calls_made,
            "interpret/judge_tokens_in": budget.tokens_in,
            "interpret/judge_tokens_out": budget.tokens_out,
            "interpret/judge_seconds": budget.seconds,
            "interpret/price": budget.spent,
        },
        step=0,
    )
    tracker.close()
