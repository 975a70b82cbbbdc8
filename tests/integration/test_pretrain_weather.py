"""Bad weather inside a job: memory that runs out, spikes, a worker that freezes, nodes that share no disk."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pretrain_ranks import Order, Ranks
from s3 import BUCKET, s3_server
from torch._inductor import cpp_builder
from training_world import make_job, make_tokens, with_runtime

from crate_model.model import LanguageModel
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.storage import Storage
from pipeline.artifacts.store import Store
from pipeline.pretrain import loop, resume
from pipeline.pretrain.__main__ import process_group
from pipeline.pretrain.job import HANG, MICRO_BATCH, OPTIMIZER, OUTCOME, TrainingJob
from pipeline.pretrain.logbook import Logbook, Wishes
from pipeline.pretrain.stage import finish
from pipeline.pretrain.watchdog import EXIT_HUNG
from pipeline.pretrain.worker import work
from pipeline.progress import read_progress
from pipeline.tracking import TrackerSpec

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    with process_group(300):
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weather")
    make_tokens(Store(folder / "store"))
    return folder


@pytest.fixture(scope="module")
def tokens(root: Path) -> Artifact:
    return Store(root / "store").get("tokens", "7" * 32)


@pytest.fixture
def object_storage() -> Iterator[Storage]:
    with s3_server():
        yield Storage(f"s3://{BUCKET}/pretrain")


def train(job: TrainingJob) -> dict[str, Any]:
    job = with_runtime(job, optimizer="torch_fused")
    work(job, CPU, Wishes())
    return job.read_note(OUTCOME)


def told(job: TrainingJob) -> list[str]:
    """What the driver shows of a job beside its progress."""
    return read_progress(job.context.store, "test")[job.context.step_name].told


def losses(job: TrainingJob) -> np.ndarray:
    return pq.read_table(job.out_folder / "curve.parquet")["loss"].to_numpy()


def test_memory_that_runs_out_halves_the_micro_batch_and_is_remembered(
    root: Path, tokens: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device with room for two windows: the first guess of eight is halved twice, and the numbers are those of two."""
    job = make_job(root, tokens, "memory")
    small = with_runtime(make_job(root, tokens, "small"), micro_batch=2)
    train(small)
    forward = LanguageModel.forward

    def with_little_memory(self: LanguageModel, ids: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        if torch.is_grad_enabled() and len(ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 windows too many")
        return forward(self, ids, targets)

    monkeypatch.setattr(LanguageModel, "forward", with_little_memory)
    assert "summary" in train(job)
    assert job.read_note(MICRO_BATCH) == 2
    assert [sentence.split()[-1] for sentence in told(job)] == ["4", "2"]
    np.testing.assert_array_equal(losses(job), losses(small))


def test_a_window_that_does_not_fit_is_told(root: Path, tokens: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(self: LanguageModel, ids: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(LanguageModel, "forward", no_memory)
    error = train(make_job(root, tokens, "no-memory"))["error"]
    assert error["type"] == "ResourceError" and "activation_checkpointing" in error["fix"]


@pytest.mark.parametrize(("rule", "bound"), [("SPIKE_FACTOR", 1.05), ("SPIKE_DEVIATIONS", -1.0)])
def test_spikes_are_left_out_and_counted_and_gone_on_from(
    root: Path, tokens: Artifact, monkeypatch: pytest.MonkeyPatch, rule: str, bound: float
) -> None:
    monkeypatch.setattr(loop, "SPIKE_MEMORY", 4)
    monkeypatch.setattr(loop, rule, bound)  # so that ordinary steps count as spikes
    monkeypatch.setattr("pipeline.pretrain.logbook.ASK_EVERY_SECONDS", 0.0)
    whole = make_job(root, tokens, f"spikes-{rule}", skip_spikes=True)
    summary = train(whole)["summary"]
    assert 0 < len(summary["skipped_steps"]) < 36
    halved = with_runtime(make_job(root, tokens, f"spikes-{rule}-halved", skip_spikes=True), optimizer="torch_fused")
    asked = iter(range(1000))
    work(halved, CPU, Wishes(stop=lambda: next(asked) == 20))
    assert "stopped as asked" in halved.read_note(OUTCOME)["error"]["what"]
    assert train(halved)["summary"]["skipped_steps"] == summary["skipped_steps"]
    np.testing.assert_array_equal(losses(halved), losses(whole))


def test_a_torn_checkpoint_is_told_to_the_person(root: Path, tokens: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.pretrain.logbook.ASK_EVERY_SECONDS", 0.0)
    job = with_runtime(make_job(root, tokens, "torn"), optimizer="torch_fused")
    asked = iter(range(1000))
    work(job, CPU, Wishes(stop=lambda: next(asked) == 20))
    torn = max(job.resume_folder.iterdir())
    (torn / resume.STATE).write_text("{")
    assert "summary" in train(job)
    (sentence,) = told(job)
    assert str(torn) in sentence and resume.STATE in sentence


def test_a_node_s_notice_is_taken_at_once_and_the_run_goes_on_to_the_bit(
    root: Path, tokens: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the next line of the log or checkpoint, both of which may be minutes away."""
    monkeypatch.setattr("pipeline.pretrain.logbook.ASK_EVERY_SECONDS", 0.0)
    rare = {"optimizer": "torch_fused", "log_every_steps": 1000, "checkpoint_every_steps": 1000}
    job, plain = (with_runtime(make_job(root, tokens, name), **rare) for name in ("moved", "unmoved"))
    asked = iter(range(1000))
    work(job, CPU, Wishes(preempted=lambda: next(asked) == 12))
    assert job.read_note(OUTCOME) == {"preempted": True}
    assert resume.steps(job.resume_folder) == [13]
    assert train(job)["summary"] == train(plain)["summary"]
    np.testing.assert_array_equal(losses(job), losses(plain))


def test_a_kept_checkpoint_is_whole_before_the_run_can_go_on_behind_it(
    root: Path, tokens: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = with_runtime(make_job(root, tokens, "kept", keep_log_spaced=True), checkpoint_every_steps=8)
    keep = Logbook._keep

    def dies(self: Logbook, step: int) -> None:
        if step == 16:
            raise KeyboardInterrupt  # as sudden as a kill, but of this process
        keep(self, step)

    with monkeypatch.context() as dying:
        dying.setattr(Logbook, "_keep", dies)
        with pytest.raises(KeyboardInterrupt):
            train(job)
    assert resume.steps(job.resume_folder) == [8]
    train(job)
    assert sorted(int(path.name) for path in (job.out_folder / "steps").iterdir()) == [1, 2, 4, 8, 16, 32]


def test_a_choice_of_another_machine_that_would_have_to_be_compiled_here_is_made_anew(
    root: Path, tokens: Artifact
) -> None:
    """A job that began where DeepSpeed's operation was prebuilt, and goes on where it is not: `auto` never compiles."""
    job = with_runtime(make_job(root, tokens, "elsewhere"), optimizer="auto")
    job.write_note(OPTIMIZER, {"name": "deepspeed", "milliseconds": {"deepspeed": 1.0}, "left_out": {}})
    work(job, CPU, Wishes())
    assert "deepspeed" in job.read_note(OPTIMIZER)["left_out"]


def test_what_auto_measured_and_how_far_the_run_is_reach_the_tracker(root: Path, tokens: Artifact) -> None:
    job = with_runtime(make_job(root, tokens, "auto"), optimizer="auto")
    spec = TrackerSpec("sqlite:///unused", "pretrain", "auto", str(root / "spool"))
    work(replace(job, context=replace(job.context, tracker=spec)), CPU, Wishes())
    chosen = job.read_note(OPTIMIZER)
    assert chosen["milliseconds"][chosen["name"]] > 0 and "CUDA" in chosen["left_out"]["apex"]
    (sentence,) = told(job)
    assert chosen["name"] in sentence and "apex" in sentence
    lines = [json.loads(line) for path in (root / "spool").rglob("*.jsonl") for line in path.read_text().splitlines()]
    params = next(line["params"] for line in lines if "params" in line)
    assert "torch " in params["pretrain/optimizer_milliseconds"]
    assert "apex: " in params["pretrain/optimizer_left_out"]
    logged = [line["metrics"] | {"step": line["step"]} for line in lines if "pretrain/loss" in line.get("metrics", {})]
    assert all(values["pretrain/tokens"] == values["step"] for values in logged)  # the x axis is tokens
    assert logged[0]["pretrain/time_left"] > 0 == logged[-1]["pretrain/time_left"]
    tags = [line["tags"] for line in lines if "tags" in line]
    saved = resume.read_counters(max(job.resume_folder.iterdir()))
    last = {"pretrain/consumed": saved.consumed, "pretrain/consumed_steps": str(saved.step)}
    assert (
        len(tags) > 1 and tags[-1] == last
    )  # one a checkpoint: what was trained on, to be compared with another run's
    wanted = {"loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second", "flops_per_second", "skipped_steps"}
    assert all({f"pretrain/{name}" for name in wanted} <= values.keys() for values in logged)
    assert not any("pretrain/mfu" in values for values in logged)  # of a processor no peak is known
    held_out = [line["metrics"] for line in lines if "pretrain/val_loss" in line.get("metrics", {})]
    assert len(held_out) == 2  # every 20 of 40 steps
    for values in held_out:
        domains = [values[f"pretrain/val_loss/{domain}"] for domain in ("code", "prose")]
        assert min(domains) < values["pretrain/val_loss"] < max(domains)
        assert all(0 < values[f"pretrain/nonzero/layer_{layer}"] <= 1 for layer in (0, 1))
        assert all(values[f"pretrain/coding_rate/layer_{layer}"] > 0 for layer in (0, 1))


@pytest.mark.parametrize("why", ["ZeRO 3", "C++ compiler"])
def test_a_model_that_is_not_compiled_after_all_is_told(
    root: Path, tokens: Artifact, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "C++ compiler":
        monkeypatch.setenv("PATH", "")
        search = cpp_builder.cpp_compiler_search.__wrapped__  # what was found earlier in this process is remembered
        monkeypatch.setattr(cpp_builder, "cpp_compiler_search", search)
    stage = 3 if why == "ZeRO 3" else 0
    job = with_runtime(make_job(root, tokens, f"compile-{stage}"), compile=True, zero_stage=stage)
    assert "summary" in train(job)
    (sentence,) = told(job)
    assert "the model runs uncompiled" in sentence and why in sentence


def test_fp16_without_a_gpu_is_refused_at_once_and_not_tried_again(root: Path, tokens: Artifact) -> None:
    error = train(make_job(root, tokens, "fp16", precision="fp16"))["error"]  # an outcome, so that nobody tries again
    assert error["type"] == "ConfigError" and "bf16" in error["fix"]


def test_a_frozen_worker_is_named_and_ends_the_wait(root: Path) -> None:
    pair = Ranks(2)
    pair.give(Order(str(root), "frozen", runtime={"collective_timeout_seconds": 15}, hang_after=9))
    waiting, frozen = pair.processes
    try:
        assert waiting.wait(240) == EXIT_HUNG
    finally:
        frozen.kill()
        frozen.wait()
    told = json.loads((root / "store" / ".scratch" / "frozen" / HANG).read_text())
    assert f"rank 1 (host {socket.gethostname()}, process {frozen.pid}) stands after step" in told
    assert "rank 0" not in told


def test_nodes_that_share_no_disk(root: Path, tokens: Artifact, object_storage: Storage) -> None:
    """Trained on one node, stopped, gone on with on a second, collected on a third: only an object storage joins them."""

    def on_node(name: str) -> TrainingJob:
        job = with_runtime(make_job(root, tokens, "remote"), optimizer="torch_fused")
        store = Store(root / name, object_storage)
        (root / f"{name}-out").mkdir(exist_ok=True)
        return replace(job, out_folder=root / f"{name}-out", context=replace(job.context, store=store))

    asked = iter(range(1000))
    work(on_node("first"), CPU, Wishes(stop=lambda: next(asked) == 0))
    assert "stopped as asked" in on_node("driver").read_note(OUTCOME)["error"]["what"]
    work(on_node("second"), CPU, Wishes())
    driver = on_node("driver")
    summary = finish(driver)
    plain = make_job(root, tokens, "not-remote")
    assert train(plain)["summary"] == summary
    np.testing.assert_array_equal(losses(driver), losses(plain))
    kept = {name.split("/")[3] for name in object_storage.names(".scratch/remote/resume/")}
    assert len(kept) == 2  # the older ones are gone there too
