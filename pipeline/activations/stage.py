"""Stages `activations` and `features`: each neuron's (or SAE feature's) statistics and excerpts, from one pass over val."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.checkpoint import KeptStep
from pipeline.config import ActivationsConfig, Config
from pipeline.stage import Context, Stage, Summary


@dataclass(frozen=True)
class Settings:
    seed: int
    activations: ActivationsConfig
    checkpoint_step: KeptStep = "last"


def run(settings: Settings, inputs: Mapping[str, Artifact], out_folder: Path, context: Context) -> Summary:
    from pipeline.activations.finish import write_records
    from pipeline.activations.job import plan_job
    from pipeline.activations.on_ray import read_shards
    from pipeline.runtime import has_gpu

    job = plan_job(settings, inputs, context, has_gpu())
    corpus = job.corpus()
    missing = job.missing()
    total = corpus.n_tokens(range(corpus.n_batches))
    progress = context.progress(total, "tokens")
    progress.start_at(total - sum(corpus.n_tokens(job.shards[shard]) for shard in missing))
    if missing:
        read_shards(job, missing, progress)
    summary = write_records(job, corpus, out_folder)
    track(summary, context)
    return summary


def track(summary: Summary, context: Context) -> None:
    """Tell the tracker the sparsity and the share of dead neurons, by layer: its own charts draw them over the layers."""
    tracker = context.tracker.open()
    for site, facts in summary["sites"].items():
        family = site.replace(f"-l{facts['layer']}", "")
        told = {f"{context.step_name.rpartition('/')[2]}/{family}/{name}": facts[name] for name in ("sparsity", "dead")}
        tracker.metrics(told, facts["layer"])
    tracker.close()


def check(config: Config) -> None:
    """Raises ConfigError for what no text and no training can mend."""
    from pipeline.activations.corpus import check_widths
    from pipeline.activations.sites import check_layers

    check_widths(config.activations, config.model.n_ctx)
    check_layers(config.activations, config.model.n_layer)


def has_features(config: Config) -> bool:
    return bool(config.sae.expansions)


ACTIVATIONS = Stage("activations", 3, "cell", ("tokens", "pretrain"), Settings, run, check=check)
FEATURES = Stage("features", 3, "cell", ("tokens", "pretrain", "sae"), Settings, run, needed=has_features)
