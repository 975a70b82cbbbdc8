"""Scoring all sites of a model with language models: one judge, one cache, one budget; a kill loses no answered call.

What a judge refused is asked again when all else is done, in a few rounds with pauses between. A round is the whole step once
more, from memory but for that: it ends as if nothing had been refused, or, where too much stays refused, with an error.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.tokens import TokenSplit
from pipeline.artifacts.vocabulary import token_strings
from pipeline.errors import StageError
from pipeline.interpret import refusals
from pipeline.interpret.budget import Budget
from pipeline.interpret.cache import JudgeCache
from pipeline.interpret.judges import StartWorkers, make_judge
from pipeline.interpret.layer import SiteScores, score_site
from pipeline.interpret.llm_judge import LlmJudge
from pipeline.interpret.on_ray import Workers
from pipeline.interpret.reading import Site, read_excerpts, sampled_neurons
from pipeline.progress import Progress
from pipeline.stage import Context

if TYPE_CHECKING:
    from pipeline.interpret.stage import Settings

LOOK_EVERY_SECONDS = 1.0  # while it waits: whether it is to stop


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
    try:
        judge = make_judge(config, settings.seed, context.runtime, cache, budget, strings, start or workers.start)
        rounds = Round(settings, tokens, records, sites, context, progress, judge, budget, cache)
        scored = rounds.score()
        for pause in refusals.PAUSES_SECONDS:
            if not any(of_judge.refused for of_judge in judge.refusals):
                break
            rounds.wait(pause)
            scored = rounds.score()
        for sentence in refusals.told_of(scored, judge.refusals, config.max_refused):
            progress.tell(sentence)
        _track(context, budget)
        return scored, {"judge": judge.label, "cost": budget.summary()}
    finally:
        workers.stop()
        cache.close()


@dataclass
class Round:
    """All sites, scored once; once more, what was answered is taken from memory."""

    settings: Settings
    tokens: Artifact
    records: Artifact
    sites: Sequence[Site]
    context: Context
    progress: Progress
    judge: LlmJudge
    budget: Budget
    cache: JudgeCache

    def score(self) -> list[SiteScores]:
        self.budget.begin_again()
        for of_judge in self.judge.refusals:
            of_judge.begin_again()
        split, config = TokenSplit(self.tokens, "val"), self.settings.interpret
        scored: list[SiteScores] = []
        done = 0
        for site in self.sites:
            drawn = config.neurons_per_layer or (
                site.n_neurons if config.half_width else 0
            )  # may end early: a random sample
            neurons = sampled_neurons(site, drawn, self.settings.seed)
            excerpts = read_excerpts(self.records, site, neurons, self.settings.activations)
            tell = partial(self._tell, done)
            scored.append(score_site(self.settings, site, excerpts, split, self.judge, tell))
            done += len(neurons)
            self.progress.update(done)
        return scored

    def wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._heed_stop()
            time.sleep(min(LOOK_EVERY_SECONDS, max(0.0, until - time.monotonic())))

    def _tell(self, before: int, done: int) -> None:
        refused = sum(of_judge.refused for of_judge in self.judge.refusals)
        told = {"refused": refused} if refused or "refused" in self.progress.state.facts else {}
        price = round(self.budget.spent, 4)
        self.progress.update(before + done, calls=self.budget.calls_made, price=price, **told)
        self.cache.upload()
        refusals.check_hope(self.judge.refusals)
        self._heed_stop()

    def _heed_stop(self) -> None:
        if self.context.stop_requested():
            raise StageError("judging stopped as asked", fix="Run again: answered calls are kept.", stage="interpret")


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
