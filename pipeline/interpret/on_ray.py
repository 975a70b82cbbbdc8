"""Interpretation on Ray: a task a site for the offline judge. No arithmetic here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.artifacts.store import Artifact
from pipeline.interpret.reading import Site
from pipeline.progress import Progress

if TYPE_CHECKING:
    from pipeline.interpret.layer import SiteScores
    from pipeline.interpret.stage import Settings


def score_sites(
    settings: Settings, tokens: Artifact, records: Artifact, sites: Sequence[Site], progress: Progress
) -> list[SiteScores]:
    """The scores of all sites, in their order; `progress` counts neurons."""
    import ray

    from pipeline.interpret.offline import score_offline

    task = ray.remote(num_cpus=1, max_retries=2)(score_offline)
    pending = {task.remote(settings.interpret, settings.seed, tokens, records, site): site for site in sites}
    results: dict[str, SiteScores] = {}
    done = 0
    while pending:
        (ref,), _ = ray.wait(list(pending), num_returns=1)
        site = pending.pop(ref)
        results[site.name] = ray.get(ref)
        done += len(results[site.name].neurons) // max(1, len(results[site.name].rows))
        progress.update(done)
    return [results[site.name] for site in sites]
