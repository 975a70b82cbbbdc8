"""What CRATE and GPT-2 are compared at: models equal in everything but the architecture, or nothing and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.manifest import Manifest
from pipeline.config import Config
from pipeline.naming import flat
from pipeline.report.cells import MEASURING_KEYS, OWN_KEYS
from pipeline.report.pairs import Measured, Pair, conditions, deepest_pair, pairs, why_no_pair
from pipeline.report.stage import Outcome, ReportSettings
from pipeline.report.study import Study, gather

MODEL = {"n_layer": 1, "d_model": 16, "n_head": 2, "n_ctx": 64}
PRETRAIN = {"total_tokens": 4096, "batch_tokens": 1024}


def artifact(stage: str, name: str, summary: dict[str, Any]) -> Artifact:
    return Artifact(Path("nowhere"), Manifest(stage, 1, f"{stage} {name}", {}, {}, (), summary))


class World:
    """Cells with losses, in memory."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        facts = {"train": {"n_tokens": 100_000}, "val": {"n_tokens": 50_000}}
        self.inputs = {"tokens": artifact("tokens", "text", facts)}

    def add(self, architecture: str, loss: float = 5.0, failed: str = "", **changed: Any) -> None:
        """`failed` names the first stage that has no artifact; `changed` are dotted keys with `__` for the dot."""
        tree: dict[str, Any] = {"model": MODEL | {"architecture": architecture}, "pretrain": dict(PRETRAIN)}
        for key, value in changed.items():
            section, _, name = key.partition("__")
            tree |= {section: tree.get(section, {}) | {name: value}} if name else {key: value}
        name = f"{architecture}-{len(self.outcomes)}"
        self.outcomes.append(Outcome(name, Config(**tree).of_results, {}))
        for stage in ("pretrain", "evaluate"):
            if failed == stage:
                break
            self.inputs[f"{name}/{stage}"] = artifact(stage, name, {"val_loss": loss})

    @property
    def study(self) -> Study:
        return gather(ReportSettings("made-up", Config().report, tuple(self.outcomes)), self.inputs)

    def pairs(self, of: Measured = "both") -> list[Pair]:
        return pairs(self.study.measured, of)

    def pair(self) -> Pair:
        found = deepest_pair(self.study.measured)
        assert found is not None
        return found

    @property
    def why(self) -> str:
        assert deepest_pair(self.study.measured) is None
        return why_no_pair(self.study.measured)


@pytest.fixture
def world() -> World:
    return World()


def test_unequal_training_is_no_pair_and_the_reason_names_the_tokens(world: World) -> None:
    world.add("crate", pretrain__total_tokens=40_960)
    world.add("gpt2", pretrain__total_tokens=5120)
    assert world.why == "CRATE was trained on 41k tokens, GPT-2 was trained on 5.12k tokens: nothing equal to compare"


def test_after_a_failed_long_training_the_short_ones_are_compared(world: World) -> None:
    world.add("crate", 4.0, pretrain__total_tokens=40_960)
    world.add("crate", 6.0, pretrain__total_tokens=5120)
    world.add("gpt2", 5.0, pretrain__total_tokens=5120)
    world.add("gpt2", pretrain__total_tokens=40_960, failed="pretrain")
    pair = world.pair()
    assert [cell.val_loss for cell in pair.crate + pair.gpt2] == [6.0, 5.0]
    assert pair.equal == "5.12k tokens each, 1 layer, width 16, context 64"


def test_the_deepest_then_the_longest_trained_comes_first(world: World) -> None:
    for n_layer, tokens in ((1, 40_960), (2, 4096), (2, 8192), (3, 40_960)):
        for architecture in ("crate", "gpt2") if n_layer < 3 else ("crate",):
            world.add(architecture, model__n_layer=n_layer, pretrain__total_tokens=tokens)
    found = [(pair.crate[0].model.n_layer, pair.gpt2[0].train_tokens) for pair in world.pairs()]
    assert found == [(2, 8192), (2, 4096), (1, 40_960)]


def test_of_several_lambdas_the_paper_s_is_compared_whichever_comes_first_or_is_best(world: World) -> None:
    for value, loss in ((0.01, 3.0), (0.05, 4.0), (0.1, 6.0), (0.4, 2.0)):
        world.add("crate", loss, model__lambda_sparsity=value)
    world.add("gpt2", 5.0)
    assert [cell.model.lambda_sparsity for cell in world.pair().crate] == [0.1]
    assert world.pair().equal.endswith("context 64; CRATE with lambda_sparsity 0.1")
    assert len(world.pairs()) == 4, "each is a pair of its own, none a seed of another"
    without = World()
    for value in (0.01, 0.4, 0.05):
        without.add("crate", model__lambda_sparsity=value)
    without.add("gpt2")
    assert [cell.model.lambda_sparsity for cell in without.pair().crate] == [0.05], "the nearest to the paper's"


def test_learning_rates_are_the_same_on_both_sides_and_no_loss_chooses_them(world: World) -> None:
    for rate, crate, gpt2 in ((1.5e-4, 4.0, 2.0), (6e-4, 3.0, 7.0), (2.4e-3, 2.0, 9.0)):
        world.add("crate", crate, pretrain__learning_rate=rate)
        world.add("gpt2", gpt2, pretrain__learning_rate=rate)
    pair = world.pair()
    assert [cell.settings["pretrain"]["learning_rate"] for cell in pair.crate + pair.gpt2] == [6e-4, 6e-4]
    assert pair.equal.endswith("learning_rate 0.0006")
    assert len(world.pairs()) == 3


def test_other_text_is_no_pair(world: World) -> None:
    world.add("crate", tokens__val_fraction=0.1)
    world.add("gpt2", tokens__val_fraction=0.2)
    assert world.why == "CRATE has val_fraction 0.1, GPT-2 has val_fraction 0.2: nothing equal to compare"
    world.add("gpt2", tokens__val_fraction=0.1)
    assert world.pair().gpt2[0].settings["tokens"]["val_fraction"] == 0.1


def test_losses_on_other_parts_of_val_or_measured_in_training_are_no_pair(world: World) -> None:
    world.add("crate", evaluate__val_tokens=1024)
    world.add("gpt2", evaluate__val_tokens=2048)
    world.add("gpt2", failed="evaluate", evaluate__val_tokens=1024)
    assert not world.pairs() and not world.pairs("losses")
    assert world.pairs("scores"), "how a loss was measured does not matter to scores"
    world.add("gpt2", evaluate__val_tokens=1024, seed=1)
    assert [cell.seed for cell in world.pair().gpt2] == [1]


def test_another_reading_is_no_pair_of_scores_but_one_of_losses(world: World) -> None:
    world.add("crate", activations__tokens=4096)
    world.add("gpt2", activations__tokens=8192)
    assert not world.pairs() and not world.pairs("scores")
    assert len(world.pairs("losses")) == 1


def test_cells_of_one_model_are_one_replica_and_seeds_are_several(world: World) -> None:
    for seed in (0, 1):
        for k in ((4,), (8,)):
            world.add("crate", seed=seed, sae__expansions=(1,), sae__k=k)
    world.add("gpt2", seed=0)
    world.add("gpt2", seed=1, failed="pretrain")
    study = world.study
    pair = deepest_pair([cell for cell in study.cells if cell.val_loss is not None])
    assert pair is not None
    assert [cell.seed for cell in pair.crate] == [0, 1] and [cell.seed for cell in pair.gpt2] == [0]


def test_weights_along_the_way_are_compared_at_one_step_of_one_schedule(world: World) -> None:
    kept = {"pretrain__keep_log_spaced": True}
    world.add("crate", **kept, checkpoint_step=2)
    world.add("gpt2", **kept, checkpoint_step=2, pretrain__total_tokens=8192)
    cells = [cell for cell in world.study.cells if cell.val_loss is not None]
    assert deepest_pair(cells) is None, "the learning rate of one was planned for twice the steps"
    world.add("gpt2", **kept, checkpoint_step=2)
    study = world.study
    pair = deepest_pair(study.cells)
    assert pair is not None and pair.equal.startswith("2.05k tokens each")


def test_imported_models_are_compared_as_told_and_never_with_trained_ones(world: World) -> None:
    world.add("crate", pretrain__checkpoint="paper/crate")
    world.add("gpt2")
    assert world.why == "CRATE was trained elsewhere, GPT-2 was trained here: nothing equal to compare"
    world.add("gpt2", pretrain__checkpoint="paper/gpt2")
    pair = world.pair()
    assert "as the configuration tells of imported models" in pair.equal
    assert len(pair.gpt2) == 1


def test_one_architecture_alone_has_no_pair(world: World) -> None:
    world.add("crate")
    assert world.why == "there is no GPT-2 model here to compare with"


def test_every_setting_that_both_have_must_be_equal() -> None:
    """For every setting there is: whether it is a condition of a comparison, by what is compared."""
    of_crate = Config(model=MODEL | {"architecture": "crate"}, pretrain=PRETRAIN).of_results  # type: ignore[arg-type]
    free = {"model.architecture", "seed", *MEASURING_KEYS, *OWN_KEYS["crate"], *OWN_KEYS["gpt2"]}
    world = World()
    world.add("crate")
    (cell,) = world.study.cells
    needed = {key for key in flat(of_crate) if key.startswith(("model.", "pretrain.", "tokens.")) and key not in free}
    assert needed <= conditions(cell, "losses").keys() and needed <= conditions(cell, "scores").keys()
    reading = {key for key in flat(of_crate) if key.startswith(("activations.", "interpret.", "checkpoint_step"))}
    assert reading <= conditions(cell, "scores").keys()
    assert not free & conditions(cell).keys()
