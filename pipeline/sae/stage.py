"""Stage `sae`: sparse autoencoders of a model's activations, trained on the fly, and how good they are."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.checkpoint import KeptStep
from pipeline.config import SAEConfigSection
from pipeline.stage import Context, Stage, Summary

if TYPE_CHECKING:
    from pipeline.artifacts.saes import Site


@dataclass(frozen=True)
class Settings:
    seed: int
    sae: SAEConfigSection
    checkpoint_step: KeptStep = "last"


def run(settings: Settings, inputs: Mapping[str, Artifact], out_folder: Path, context: Context) -> Summary:
    import pyarrow as pa

    from pipeline.artifacts.checkpoint import model_config
    from pipeline.artifacts.saes import write_tables
    from pipeline.sae.group import made_folder
    from pipeline.sae.on_ray import make_groups
    from pipeline.sae.planned import check_held_out, planned_sites

    model = model_config(inputs["pretrain"])
    check_held_out(inputs["tokens"], model)
    sites = planned_sites(settings.sae, model)
    results = make_groups(settings, inputs, groups(sites, context.runtime.workers_per_cell), context)
    for site in sites:
        context.bring(made_folder(context) / site.name)
        shutil.copytree(made_folder(context) / site.name, out_folder / site.name)
    by_site = {row["site"]: row for result in results for row in result.measures}
    measures = [by_site[site.name] for site in sites]
    densities = pa.concat_tables([result.densities for result in results])
    curves = pa.concat_tables([result.curves for result in results])
    write_tables(out_folder, measures, densities, curves)
    track(measures, settings.sae, context)
    told = {row["site"]: {name: row[name] for name in TOLD} for row in measures}
    return {"sites": [asdict(site) for site in sites], "measures": told}


def track(measures: Sequence[Mapping[str, Any]], sae: SAEConfigSection, context: Context) -> None:
    """Tell the tracker what the finished autoencoders measure, where their training's curves end. `l0` has a curve of the
    training's own batches, so the measured one is `val_l0`."""
    from pipeline.sae.planned import n_steps

    tracker = context.tracker.open()
    names = {name: "val_l0" if name == "l0" else name for name in TOLD}
    told = {f"sae/{row['site']}/{names[name]}": row[name] for row in measures for name in TOLD if row[name] is not None}
    tracker.metrics(told, n_steps(sae) * sae.batch_tokens)
    tracker.close()


TOLD = ("l0", "unexplained", "dead", "recovered_zero", "recovered_mean", "loss_clean", "loss_spliced", "kl")


def groups(sites: Sequence[Site], n_workers: int) -> list[list[Site]]:
    """The sites of whole layers shared out over at most `n_workers` groups: a group's layers are read in one pass."""
    layers = list(dict.fromkeys(site.layer for site in sites))
    n_groups = max(1, min(n_workers, len(layers)))
    shares = [layers[rank * len(layers) // n_groups : (rank + 1) * len(layers) // n_groups] for rank in range(n_groups)]
    return [[site for site in sites if site.layer in share] for share in shares]


STAGE = Stage(
    "sae", 2, "cell", ("tokens", "pretrain"), Settings, run, needed=lambda config: bool(config.sae.expansions)
)
