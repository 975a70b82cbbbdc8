"""What the tracker is told of autoencoders stands where it belongs on the axis of training tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from sae_world import World, changed

from pipeline.config import SAEConfigSection
from pipeline.progress import progress_of
from pipeline.sae.group import make_group
from pipeline.sae.planned import planned_sites
from pipeline.sae.stage import Settings, track
from pipeline.tracking import TrackerSpec


@pytest.mark.parametrize("total_tokens", [20 * 64, 20 * 64 + 63, 1])
def test_the_last_measures_stand_where_the_training_ended(tmp_path: Path, total_tokens: int) -> None:
    world, settings = World(tmp_path / "world"), changed(total_tokens=total_tokens, resample_steps=())
    told = tracked(world, settings, tmp_path / "spool")
    ends = max(step for step, name in told if name == "sae/code-l0-2x/loss")
    assert ends == max(1, total_tokens // settings.batch_tokens) * settings.batch_tokens
    for name in ("unexplained", "dead", "recovered_mean", "loss_clean", "kl", "val_l0"):
        assert [step for step, found in told if found == f"sae/code-l0-2x/{name}"] == [ends]
    assert len(told) == len(set(told)), "no point of a curve is told twice"
    progress = progress_of(world.store, "test", "cell/sae")
    assert progress and progress.done == progress.total == ends


def tracked(world: World, settings: SAEConfigSection, spool: Path) -> list[tuple[int, str]]:
    """Step and name of every number that one worker and the driver tell."""
    context = replace(world.context(), tracker=TrackerSpec("file", "e", "run", str(spool)))
    sites = planned_sites(settings, world.model.config)[:1]
    result = make_group(Settings(0, settings), world.inputs, sites, context, True)
    track(result.measures, settings, context)
    lines = [json.loads(line) for file in (spool / "run").glob("*.jsonl") for line in file.read_text().splitlines()]
    found = [line for line in lines if "metrics" in line]
    return [(line["step"], name) for line in found for name in line["metrics"] if name.startswith("sae/")]
