"""One worker's share of the stage: some autoencoders trained on one stream, measured, and written. Knows no executor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.saes import CURVE_SCHEMA, DENSITY_SCHEMA, Site, write_sae
from pipeline.sae.planned import n_steps
from pipeline.sae.watcher import Watcher
from pipeline.stage import Context

if TYPE_CHECKING:
    from pipeline.sae.measures import FeatureStatistics
    from pipeline.sae.stage import Settings


STATES = "state"  # folder in the scratch folder: what an interrupted training goes on from


@dataclass(frozen=True)
class GroupResult:
    measures: list[dict[str, Any]]  # rows of MEASURE_SCHEMA
    densities: pa.Table
    curves: pa.Table


def made_folder(context: Context) -> Path:
    """Where workers leave finished autoencoders for the driver, who may be on another node."""
    return context.scratch / "made"


def make_group(
    settings: Settings, inputs: Mapping[str, Artifact], sites: Sequence[Site], context: Context, leads: bool
) -> GroupResult:
    """Train and measure `sites`, and leave each in `made_folder`. The one group that `leads` tells the progress."""
    import torch

    from pipeline.artifacts.checkpoint import load_model
    from pipeline.artifacts.tokens import TokenSplit
    from pipeline.sae.loop import train_group
    from pipeline.sae.measures import Held, measure_all

    sae = settings.sae
    bring_states(context)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(inputs["pretrain"], settings.checkpoint_step)
    train = TokenSplit(inputs["tokens"], "train")
    watching = watcher(settings, context, leads)
    try:
        group = train_group(model, train, sites, sae, settings.seed, device, watching)
    finally:
        watching.close()
    finished = {trainer.site: trainer.finished() for trainer in group.trainers}
    for site, autoencoder in finished.items():
        write_sae(made_folder(context), site, autoencoder, {"pretrain": inputs["pretrain"].fingerprint})
        context.keep(made_folder(context) / site.name)
    held = Held(TokenSplit(inputs["tokens"], "val"), sae.batch_rows, device)
    rows, features = measure_all(model, finished, held, sae.measure_tokens, sae.loss_tokens)
    return GroupResult(rows, _densities(features), pa.Table.from_pylist(group.curves, schema=CURVE_SCHEMA))


def bring_states(context: Context) -> None:
    """Have here the training states that other nodes kept."""
    store, below = context.store, f".scratch/{context.fingerprint}/{STATES}/"
    if store.storage:
        for name in store.storage.names(below):
            context.bring(context.scratch / STATES / name.removeprefix(below))


def _densities(features: Mapping[Site, FeatureStatistics]) -> pa.Table:
    tables = [
        pa.table(
            {
                "site": pa.array([site.name] * len(found.fired), pa.string()),
                "feature": pa.array(range(len(found.fired)), pa.int32()),
                "n_fired": found.fired.cpu().numpy(),
                "mean_active": found.mean_active().cpu().numpy(),
                "maximum": found.maximum.double().cpu().numpy(),
            }
        ).cast(DENSITY_SCHEMA)
        for site, found in features.items()
    ]
    return pa.concat_tables(tables)


def watcher(settings: Settings, context: Context, leads: bool) -> Watcher:
    """Figures to the tracker and the progress line; states kept, and the wish to stop asked, through the context."""
    tracker = context.tracker.open()
    progress = context.progress(n_steps(settings.sae) * settings.sae.batch_tokens, "tokens") if leads else None

    def on_figures(step: int, figures: dict[str, dict[str, Any]]) -> None:
        tokens = step * settings.sae.batch_tokens
        tracker.metrics({f"sae/{site}/{name}": row[name] for site, row in figures.items() for name in TRACKED}, tokens)
        if progress is not None:
            progress.update(tokens, loss=next(iter(figures.values()))["loss"])

    def on_start(step: int) -> None:
        if progress is not None:
            progress.start_at(step * settings.sae.batch_tokens)

    return Watcher(
        context.scratch / STATES,
        context.runtime.checkpoint_every_steps,
        on_start,
        on_figures,
        context.keep,
        context.stop_requested,
        tracker.close,
    )


TRACKED = ("loss", "reconstruction", "penalty", "l0", "silent", "learning_rate", "n_resampled")
