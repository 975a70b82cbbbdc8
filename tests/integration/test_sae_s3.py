"""A store on S3, where nodes share nothing else: a training goes on from what another node kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from sae_world import SETTINGS, World, site

from pipeline.artifacts.store import Store
from pipeline.sae.group import STATES, bring_states
from pipeline.sae.state import restore_state, save_state
from pipeline.sae.training import SAETrainer
from pipeline.stage import Context
from tests.s3 import BUCKET, s3_server

PLACE = f"s3://{BUCKET}/autoencoders"  # a process keeps its connections by address: no other test has this one


def test_a_node_goes_on_from_the_state_another_kept(tmp_path: Path) -> None:
    world = World(tmp_path / "folder")

    def node(name: str) -> Context:
        return replace(world.context(), store=Store.open(PLACE, tmp_path / name))

    with s3_server():
        here, there = node("here"), node("there")
        assert there.scratch.is_dir()  # it was there before the other kept anything
        trainer = SAETrainer(site(), SETTINGS, 8, 0, torch.device("cpu"))
        trainer.step(torch.rand(16, 8))
        here.keep(save_state(here.scratch / STATES, trainer, [{"step": 1}]))
        fresh = SAETrainer(site(), SETTINGS, 8, 0, torch.device("cpu"))
        bring_states(there)
        assert restore_state(there.scratch / STATES, fresh) == [{"step": 1}]
        assert fresh.step_number == 1
        assert torch.equal(fresh.sae.W_dec, trainer.sae.W_dec)
