"""The answer's sentences against a known truth: no verdict from noise, the right one where there is something, and why else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.manifest import Manifest
from pipeline.config import Config
from pipeline.interpret.statistics import layer_estimate, layer_row
from pipeline.intervals import Estimate
from pipeline.report.findings import Finding, findings
from pipeline.report.gaps import Gap
from pipeline.report.stage import Outcome, ReportSettings
from pipeline.report.study import Study, gather
from pipeline.stage import canonical

ARCHITECTURES = ("crate", "gpt2")
VERDICTS = {
    "loss": r"(\S+)'s validation loss is [\d.]+ nats lower",
    "score": r"the scored neurons of (\S+) are the better explained ones",
    "variance": r"(\S+)'s layers differ less",
}
NEVER = {
    "loss": "which has the lower validation loss",
    "score": "whose neurons are better explained",
    "variance": "whose layers",
}


class World:
    """Cells with losses and scores, in memory: what `findings` is given."""

    def __init__(self, n_layer: int = 3) -> None:
        self.n_layer = n_layer
        self.outcomes: list[Outcome] = []
        self.inputs = {"tokens": self.artifact("tokens", "a", {"val": {"n_tokens": 100_001}, "unigram_entropy": 7.0})}
        self.rows: list[dict[str, Any]] = []

    def artifact(self, stage: str, name: str, summary: dict[str, Any]) -> Artifact:
        return Artifact(Path("nowhere"), Manifest(stage, 1, f"{stage} {name}", {}, {}, (), summary))

    def add(
        self,
        architecture: str,
        seed: int,
        loss: float,
        scores: list[np.ndarray],
        *,
        tokens: int = 4096,
        entropy: float = 7.0,
    ) -> str:
        """`scores` (neurons,) by layer, NaN where there is none."""
        cell = f"{architecture}-{self.n_layer}l-seed{seed}-{tokens}"
        model = {"architecture": architecture, "n_layer": self.n_layer, "d_model": 32, "n_head": 1, "n_ctx": 64}
        config = Config(**{"seed": seed, "model": model, "pretrain": {"total_tokens": tokens, "batch_tokens": 1024}})
        settings = {k: v for k, v in canonical(config).items() if k not in ("runtime", "grid", "report", "name")}
        self.outcomes.append(Outcome(cell, settings, {}))
        summary = {"val_loss": loss, "val_tokens": 100_000, "unigram_entropy": entropy}
        self.inputs[f"{cell}/pretrain"] = self.artifact("pretrain", cell, {"train_tokens": tokens, "val_loss": loss})
        self.inputs[f"{cell}/evaluate"] = self.artifact("evaluate", cell, summary)
        judged = {"judge": "made up", "protocol": "corrected"}
        self.inputs[f"{cell}/interpret"] = self.artifact("interpret", cell, judged)
        for layer, own in enumerate(scores):
            status = ["silent" if np.isnan(score) else "scored" for score in own]
            row = {"cell": cell, "family": "code", "metric": "random_only", "layer": layer}
            self.rows.append(row | layer_row(own, status, layer_estimate(own, 20, np.random.default_rng(0))))
        return cell

    @property
    def study(self) -> Study:
        return gather(ReportSettings("made-up", Config().report, tuple(self.outcomes)), self.inputs)

    @property
    def told(self) -> list[Finding]:
        return findings(self.study, {"layer_scores": self.rows})

    def verdicts(self) -> dict[str, str | None]:
        """Who wins each comparison; None where that is not said. A card has its winner's colour, or none."""
        text = " ".join(finding.plain for finding in self.told)
        found = {name: re.search(pattern, text) for name, pattern in VERDICTS.items()}
        tones = {finding.tone for finding in self.told if "CRATE" in finding.label}
        assert tones - {"muted"} <= {match[1].lower().replace("-", "") for match in found.values() if match}
        return {name: match and match[1] for name, match in found.items()}


def draw(rng: np.random.Generator, seeds: int, better: str = "", unlike: str = "", n_neurons: int = 40) -> World:
    """Both alike in truth: losses and layers vary by seed, scores by neuron. `better` scores higher and loses less,
    `unlike` has layers that differ more."""
    world = World()
    for architecture in ARCHITECTURES:
        for seed in range(seeds):
            own = 0.02 * rng.standard_normal() if seeds > 1 else 0.0
            layers = np.array([0.0, 0.1, 0.2]) * (4 if architecture == unlike else 1)
            shift = layers - layers.mean() + own + (0.3 if architecture == better else 0.0)
            scores = [rng.beta(2, 5, n_neurons) + by for by in shift]
            loss = 5 + 0.02 * rng.standard_normal() - (0.5 if architecture == better else 0.0)
            world.add(architecture, seed, loss, scores)
    return world


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_where_nothing_differs_verdicts_are_rare(seeds: int) -> None:
    rng, draws = np.random.default_rng(seeds), 150
    told = [draw(rng, seeds).verdicts() for _ in range(draws)]
    for name in VERDICTS:
        assert sum(one[name] is not None for one in told) <= 0.09 * draws, name
    if seeds == 1:
        assert all(one["loss"] is None for one in told), "one seed each says nothing of losses"


@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize("better", ARCHITECTURES)
def test_a_large_difference_is_told_the_right_way_round(better: str, seeds: int) -> None:
    rng, name = np.random.default_rng(0), {"crate": "CRATE", "gpt2": "GPT-2"}
    told = [draw(rng, seeds, better=better).verdicts() for _ in range(30)]
    for measure in ("loss", "score"):
        said = [one[measure] for one in told]
        assert set(said) <= {name[better], None} and sum(map(bool, said)) >= (20 if seeds == 2 else 29), measure
    told = [draw(rng, seeds, unlike=better, n_neurons=200).verdicts() for _ in range(30)]
    other = name["gpt2" if better == "crate" else "crate"]
    said = [one["variance"] for one in told]
    assert set(said) <= {other, None} and sum(map(bool, said)) >= 20


def test_one_seed_each_speaks_of_these_models_and_has_no_verdict_on_losses() -> None:
    world = draw(np.random.default_rng(0), 1, better="gpt2")
    loss, score, _, unigram = world.told
    assert (
        "cannot be said" in loss.plain and "one seed each, and what another seed would give is not known" in loss.plain
    )
    assert loss.tone == "muted" and "-" not in loss.number and "+" not in loss.number
    assert "of these trained models the scored neurons of GPT-2 are the better explained ones" in score.plain
    assert "nothing follows for other trainings" in score.plain and score.tone == "gpt2"
    assert "100 % of CRATE's neurons and 100 % of GPT-2's have a score" in score.plain
    for finding in (loss, score):
        assert re.search(r"[\d.]+k tokens", finding.plain), "what both were trained on is told"
    assert unigram.number == "2 / 2"


def test_scores_on_unequal_numbers_of_excerpts_are_said_to_be() -> None:
    world = draw(np.random.default_rng(0), 1)
    for row in world.rows:
        row["excerpts"] = 10.0
    assert "excerpts" not in world.told[1].plain
    for row in world.rows:
        row["excerpts"] = 10.0 if row["cell"].startswith("crate") else 6.0
    assert "A score is of 10.0 excerpts on average for CRATE, and of 6.0 for GPT-2." in world.told[1].plain


@pytest.mark.parametrize("n_neurons", [1, 5, 19])
def test_few_neurons_or_layers_carry_no_verdict(n_neurons: int) -> None:
    world = World(n_layer=1)
    for architecture, base in (("crate", 0.1), ("gpt2", 0.8)):
        world.add(architecture, 0, 5.0, [base + 0.01 * np.arange(n_neurons)])
    text = " ".join(finding.plain for finding in world.told)
    assert (
        f"a model has {n_neurons} scored neuron" in text and "whose neurons are better explained cannot be said" in text
    )
    assert "differ" not in text.replace("different", "") and set(world.verdicts().values()) == {None}


def test_equal_numbers_and_two_layers_have_no_steadier_model() -> None:
    same = [np.linspace(0, 0.5, 50) + by for by in (0.0, 0.1, 0.2)]
    world = World()
    for architecture in ARCHITECTURES:
        world.add(architecture, 0, 5.0, same)
    assert "Whose layers differ less from each other cannot be said" in world.told[2].plain
    two = World(n_layer=2)
    for architecture, base in (("crate", 0.0), ("gpt2", 0.5)):
        two.add(architecture, 0, 5.0, [np.linspace(0, 0.5, 50), np.linspace(0, 0.5, 50) + base])
    assert not any("layers differ" in finding.plain for finding in two.told)


def test_only_layers_that_all_models_have_are_compared_and_coverage_is_told() -> None:
    """GPT-2's last layer has no score, and half of its neurons have none: what is left is equal."""
    rng, world = np.random.default_rng(0), World(n_layer=2)
    first, last = rng.random(100), rng.random(100) + 5
    world.add("crate", 0, 5.0, [first, last])
    half = np.where(np.arange(100) % 2, np.nan, first)
    world.add("gpt2", 0, 5.0, [half, np.full(100, np.nan)])
    score = world.told[1]
    assert world.verdicts()["score"] is None and "of 2 layers the 1 that are scored in all" in score.plain
    assert "100 % of CRATE's neurons and 25 % of GPT-2's have a score: the means are of unlike shares" in score.plain


def test_unequal_training_is_no_pair_and_the_reason_is_told_once() -> None:
    world, scores = World(), [np.random.default_rng(0).random(50)] * 3
    world.add("crate", 0, 4.0, scores, tokens=40_960)
    world.add("gpt2", 0, 5.0, scores, tokens=4096)
    assert set(world.verdicts().values()) == {None}
    reasons = [finding for finding in world.told if finding.number == "no pair"]
    assert len(reasons) == 1 and reasons[0].tone == "muted" and len(reasons[0].cells) == 2
    alone = World()
    alone.add("crate", 0, 4.0, scores)
    assert [finding.label for finding in alone.told] == ["models below the unigram entropy"]


@pytest.mark.parametrize(
    "losses, said, tone",
    [
        ((6.5, 6.9), "2 of 2 models end below the unigram entropy", "accent"),
        ((6.5, 7.1), "1 of 2 models", "accent"),
        ((7.5, 7.1), "None of 2 models ends below", "muted"),
        ((6.99, 6.95), "2 of 2", "accent"),
    ],
)
def test_context_is_used_only_where_the_loss_shows_it(losses: tuple[float, float], said: str, tone: str) -> None:
    world = World()
    for seed, loss in enumerate(losses):
        world.add("crate", seed, loss, [])
    (finding,) = world.told
    assert finding.plain.startswith(said) and finding.tone == tone
    assert ("they use context" in finding.plain) == (tone == "accent")
    assert not re.search(r"\b0 of \d+ models.*they use context", finding.plain)


def test_each_model_is_held_to_the_entropy_of_the_tokens_that_its_loss_is_of() -> None:
    world = World()
    world.add("crate", 0, 9.5, [], entropy=10.0)
    world.add("crate", 1, 9.5, [], entropy=9.0)  # of a part of the text, or of another text
    (finding,) = world.told
    assert finding.number == "1 / 2" and "9.000 to 10.000 nats" in finding.plain
    assert world.study.measured_entropy is None, "no one line in a figure is that of both"


def test_the_line_beside_the_losses_is_of_the_tokens_that_they_are_of() -> None:
    world = World()
    for seed in range(2):
        world.add("crate", seed, 9.5, [], entropy=9.0)
    assert (world.study.measured_entropy, world.study.unigram_entropy) == (9.0, 7.0)


def test_numbers_whose_order_the_sampling_of_neurons_decides_have_no_verdict() -> None:
    """Variances are shown as they are, and compared without what sampling adds to them: a sentence needs both."""
    difference = Estimate(0.5, 0.01, 10.0)
    assert Gap(1.5, 1.0, (3, 3), difference).higher == "crate"
    assert Gap(1.0, 1.5, (3, 3), difference).higher is None
