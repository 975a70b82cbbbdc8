"""What the parent run is told of a sweep: a curve a variant, replicas averaged, and where it ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crate_model.config import ModelConfig
from crate_model.flops import train_flops_per_token
from crate_model.model import LanguageModel
from pipeline import sweep_tracking
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.store import Store
from pipeline.config_load import load_config
from pipeline.dag import plan, report_step
from pipeline.execute import Result
from pipeline.forecast.assumed import assume
from pipeline.plan import plan_rows
from pipeline.report.study import gather
from pipeline.report.tables import cell_row
from pipeline.sweep_tracking import SweepTracking, _label, machine_tags
from pipeline.this_machine import package_version
from pipeline.tracking import TrackerSpec
from pipeline.tracking_driver import TrackedSweep


class Told(TrackedSweep):
    """Keeps what would be sent."""

    def __init__(self) -> None:
        self.metrics: dict[tuple[str, int], float] = {}

    def _tracker(self, spec: TrackerSpec) -> Any:
        return self

    def unique_metrics(self, values: dict[str, float], step: int) -> None:
        self.metrics |= {(name, step): value for name, value in values.items()}


def row(loss: float, **more: Any) -> dict[str, Any]:
    return {"architecture": "crate", "n_params": 100, "n_params_non_embedding": 10, "val_loss": loss} | more


def test_variants_are_curves_of_their_own_and_seeds_are_averaged() -> None:
    told = Told()
    variant, judged = (
        _label({"model.lambda_sparsity": 0.2, "pretrain.total_tokens": 4096}),
        _label({"activations.tokens": 9}),
    )
    rows = [
        row(4.0),
        row(4.5, scores={"anthropic": 0.1}),
        row(3.0, variant=variant, judged=judged, scores={"anthropic": 0.3}),
    ]
    told.log_scaling(TrackerSpec(), rows)
    assert told.metrics["val_loss_crate", 100] == told.metrics["val_loss_crate_by_non_embedding", 10] == 4.25
    assert told.metrics["score_anthropic_crate", 100] == 0.1
    assert told.metrics["val_loss_crate_lambda_sparsity_0.2_total_tokens_4096", 100] == 3.0
    assert told.metrics["score_anthropic_crate_lambda_sparsity_0.2_total_tokens_4096_tokens_9", 100] == 0.3


def test_a_curve_s_name_holds_only_what_the_server_takes() -> None:
    assert _label({"interpret.metrics": ["a", "b c"]}) == "metrics__a_b_c_"


def test_runs_are_tagged_with_machine_and_versions() -> None:
    tags = machine_tags()
    assert {"processor", "gpu", "cuda", "python", "git", "deepspeed", "torch", "ray"} <= tags.keys()
    assert tags["deepspeed"] == (package_version("deepspeed") or "")


def test_cells_of_one_model_are_one_point_of_a_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid over SAEs and over what is read: one loss of one model, and the scores of two readings of it, each by its name."""
    monkeypatch.setattr(sweep_tracking, "TrackedSweep", Opened)
    config = tmp_path / "sweep.yaml"
    config.write_text(
        "model: {n_layer: 1}\nsae: {expansions: [1], variant: topk}\n"
        "grid: {sae.k: [4, 8, 16], activations.tokens: [1024, 2048]}\n",
        "utf-8",
    )
    whole, store = plan(load_config(config)), Store(tmp_path / "store")
    facts = {"n_params": 100, "n_params_non_embedding": 10, "val_loss": 4.0, "bits_per_byte": 1.0, "train_tokens": 10}
    texts = {"train": {"n_tokens": 100}, "val": {"n_tokens": 100}}
    for number, (name, step) in enumerate(whole.steps.items()):
        if whole.made_by[name] == name and step.stage.name in sweep_tracking.CURVED:
            metrics = {"anthropic": {"mean": number / 100}}
            judged = {"metrics": metrics, "judge": "none", "protocol": "corrected"}
            store.publish(store.making_folder(step.fingerprint), step.recipe, facts | texts | judged, {})
    with SweepTracking.start("", whole, store) as tracking:
        rows = tracking._scaling_rows({})
        tracking.finish(None, {})
        told = tracking.runs.metrics
    assert [row["val_loss"] for row in rows if "val_loss" in row] == [4.0]
    assert len([row for row in rows if "scores" in row]) == 2
    assert {
        name for name, _ in told if name.startswith(("val_", "score_")) and not name.endswith("_by_non_embedding")
    } == {
        "val_loss_crate",
        "score_anthropic_crate_tokens_1024",
        "score_anthropic_crate_tokens_2048",
    }


class Opened(Told):
    """Keeps which datasets each run was opened with, and what each is told of its model."""

    workers_spool = experiment = ""

    def __init__(self, uri: str, *_: Any) -> None:
        super().__init__()
        self.uri, self.datasets, self.models = uri, {}, {}

    def _open(self, name: str, key: str, parent: str, params: Any, tags: Any, datasets: Any) -> TrackerSpec:
        self.datasets[name] = list(datasets)
        return TrackerSpec()

    def checkpoint(self, spec: TrackerSpec, name: str, artifact: Artifact, size: Any = None) -> None:
        self.models[name] = artifact.summary | (size or {})

    def finish(self, spec: TrackerSpec, status: str) -> None:
        pass

    def close(self) -> None:
        pass


def test_a_cell_s_dataset_is_the_text_that_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_tracking, "TrackedSweep", Opened)
    config = tmp_path / "sweep.yaml"
    config.write_text("model: {n_layer: 1}\ngrid: {tokens.val_fraction: [0.1, 0.2]}\n", "utf-8")
    whole = plan(load_config(config))
    with SweepTracking.start("", whole, Store(tmp_path)) as tracking:
        found = {cell: dataset for cell, datasets in tracking.runs.datasets.items() for dataset in datasets}
    for value in ("0.1", "0.2"):
        dataset, text = found[f"crate-1l-val_fraction{value}"], whole.steps[f"tokens-val_fraction{value}"]
        assert (dataset["name"], dataset["digest"]) == (text.name, text.fingerprint)
        assert dataset["source"].endswith(f"tokens/{text.fingerprint}")


def test_an_imported_model_was_not_trained_on_the_text_that_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_tracking, "TrackedSweep", Opened)
    config = tmp_path / "sweep.yaml"
    config.write_text('model: {n_layer: 1}\ngrid: {pretrain.checkpoint: ["", folder]}\n', "utf-8")
    with SweepTracking.start("", plan(load_config(config)), Store(tmp_path)) as tracking:
        found = {cell: dataset["context"] for cell, datasets in tracking.runs.datasets.items() for dataset in datasets}
    assert found == {"crate-1l-checkpointNone": "training", "crate-1l-checkpointfolder": "evaluation"}


@pytest.mark.parametrize("architecture", ["crate", "gpt2"])
def test_a_model_has_one_number_of_parameters_wherever_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    """Of a training, too, whose summary is from before there was one convention."""
    monkeypatch.setattr(sweep_tracking, "TrackedSweep", Opened)
    config = tmp_path / "sweep.yaml"
    shape = f"architecture: {architecture}, n_layer: 1, d_model: 16, n_head: 2, n_ctx: 64"
    config.write_text(f"model: {{{shape}}}\npretrain: {{total_tokens: 5200, batch_tokens: 512}}\n", "utf-8")
    whole, store, cell = plan(load_config(config)), Store(tmp_path / "store"), f"{architecture}-1l"
    weights = LanguageModel(ModelConfig(architecture, 1, 2, 16, 64)).state_dict()
    counted = sum(weight.numel() for weight in weights.values())
    expected = counted - weights["embed.positions.weight"].numel()
    planned = plan_rows(whole, store, {}, assume("h200", 1))["cells"][0]
    reported = cell_row(gather(report_step(whole, {}, {}).settings, {}).by_name[cell])
    assert planned["n_params"] == reported["n_params"] == expected

    def publish(name: str, summary: dict[str, Any]) -> Artifact:
        step = whole.steps[name]
        return store.publish(store.making_folder(step.fingerprint), step.recipe, summary, {})

    old = {"n_params": counted, "n_params_non_embedding": expected - weights["embed.tokens.weight"].numel()}
    publish(whole.texts[cell], {"train": {"n_tokens": 9000}, "val": {"n_tokens": 900}, "unigram_entropy": 6.0})
    trained = publish(f"{cell}/pretrain", old)
    publish(f"{cell}/evaluate", {"val_loss": 4.0, "bits_per_byte": 1.0})
    with SweepTracking.start("", whole, store) as tracking:
        told: Any = tracking.runs
        tracking.ended(Result(f"{cell}/pretrain", trained))
        assert told.metrics["n_params", 0] == told.models[cell]["n_params"] == expected
        tracking.finish(None, {f"{cell}/interpret": "not made"})
    assert {step for name, step in told.metrics if name == f"val_loss_{architecture}"} == {expected}
    trained_on = train_flops_per_token(whole.cells[0].config.model) * 10 * 512
    assert told.metrics["train_flops", 0] == planned["train_flops"] == reported["train_flops"] == trained_on
    assert planned["train_tokens"] == reported["train_tokens"] == 10 * 512, (
        "whole batches: what is left over is not read"
    )
