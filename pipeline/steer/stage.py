"""Stage `steer`: what the best-understood neurons (or chosen ones, or SAE features) do to the next word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.checkpoint import KeptStep
from pipeline.config import SteerConfig
from pipeline.stage import Context, Stage, Summary


@dataclass(frozen=True)
class Settings:
    steer: SteerConfig
    checkpoint_step: KeptStep = "last"


def run(settings: Settings, inputs: Mapping[str, Artifact], out_folder: Path, context: Context) -> Summary:
    from pipeline.artifacts.checkpoint import load_model
    from pipeline.artifacts.records import Records
    from pipeline.artifacts.saes import load_sae, sites
    from pipeline.artifacts.scores import Scores
    from pipeline.artifacts.steering import write_steering
    from pipeline.steer import choice
    from pipeline.steer.study import study

    steer, model = settings.steer, load_model(inputs["pretrain"], settings.checkpoint_step)
    trained = {site.name: site for site in sites(inputs["sae"])} if "sae" in inputs else {}
    saes = {name: (site.point, load_sae(inputs["sae"], name)) for name, site in trained.items()}
    neurons = choice.live_neurons(Records(inputs["activations"]))
    features = choice.live_features(inputs["sae"]) if trained else {}
    wanted = list(steer.edits) or choice.best_neurons(neurons, Scores(inputs["interpret"]), steer.neurons)
    if trained and not steer.edits:
        often = choice.live_features(inputs["sae"], choice.OFTEN)
        wanted += choice.strongest_features(often, trained, steer.features)
    found = study(model, neurons | features, saes, wanted, steer, context.progress(len(wanted), "edits"))
    write_steering(out_folder, found.effects, found.doses, found.lossless, found.samples)
    return found.summary


STAGE = Stage(
    "steer",
    2,
    "cell",
    ("pretrain", "activations", "interpret", "sae"),  # sae where the cell has one
    Settings,
    run,
    needed=lambda config: bool(config.steer.edits or config.steer.neurons),
    computes=True,
)
