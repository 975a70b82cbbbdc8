"""The forecast: its clock obeys the limits, its costs are the closed forms, and it says what bounds them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from crate_model.flops import train_flops_per_token
from pipeline.activations.extract import Extractor
from pipeline.activations.job import plan_job
from pipeline.activations.sites import Reader
from pipeline.artifacts.store import Store
from pipeline.config import Config
from pipeline.config_load import load_config
from pipeline.forecast.machine import Machine, Rates
from pipeline.forecast.room import part_bytes, stored_bytes
from pipeline.forecast.schedule import Task, play
from pipeline.forecast.sweep import best_split, forecast
from pipeline.forecast.work import Costs, Work, judge_calls, read_tokens
from tests.unit import activation_cases

PILE = Path(__file__).parents[2] / "configs" / "pile.yaml"
H100S = Machine(gpus=64, cores=512, peak_flops=989e12)


def task(name: str, seconds: float, *waits_for: str, gpus: float = 1, cell: str = "a") -> Task:
    return Task(name, cell, waits_for, Work(gpus, 0, seconds, ""))


def test_one_after_another_side_by_side_and_waiting_for_a_gpu() -> None:
    line = play([task("x", 3), task("y", 4, "x")], gpus=8, cores=0, parallel_cells=8)
    assert (line.makespan, line.critical_path()) == (7, ["x", "y"])
    assert play([task("x", 3), task("y", 4)], 8, 0, 8).makespan == 4
    queue = play([task("x", 3, gpus=5), task("y", 4, gpus=5)], 8, 0, 8)
    assert (queue.makespan, queue.begun["y"], queue.gpu_seconds) == (7, 3, 35)


def test_only_so_many_cells_at_once_and_the_next_when_one_is_done() -> None:
    tasks = [task("a1", 5, cell="a"), task("a2", 1, "a1", cell="a"), task("b", 2, cell="b"), task("c", 2, cell="c")]
    line = play(tasks, gpus=8, cores=0, parallel_cells=2)
    assert dict(line.begun) == {"a1": 0, "b": 0, "c": 2, "a2": 5}


def test_an_imported_model_takes_no_training() -> None:
    imported = load_config(PILE, ["pretrain.checkpoint=folder", "grid={}"])
    trained = forecast(load_config(PILE, ["grid={}"]), H100S)
    found = forecast(imported, H100S)
    work = found.timeline.tasks["crate-12l/pretrain"].work
    assert (work.gpus, work.seconds) == (0, Rates().stage_start_seconds)
    assert found.stages()["evaluate"] == trained.stages()["evaluate"] and found.hours < trained.hours
    assert stored_bytes(imported.cells()[0].config)["training_checkpoints"] == 0


def test_a_task_larger_than_the_cluster_is_refused() -> None:
    with pytest.raises(ValueError, match="big can never start on 8 GPUs"):
        play([task("big", 1, gpus=9)], gpus=8, cores=0, parallel_cells=1)


@given(
    st.lists(st.tuples(st.floats(0.1, 10), st.integers(1, 4), st.integers(0, 5)), min_size=1, max_size=12),
    st.integers(1, 3),
)
def test_no_schedule_beats_the_work_or_the_longest_chain(given_tasks: list[tuple[float, int, int]], cells: int) -> None:
    tasks: list[Task] = []
    for index, (seconds, gpus, back) in enumerate(given_tasks):
        waits = (tasks[index - back].name,) if 0 < back <= index else ()
        cell = tasks[index - back].cell if waits else str(index)
        tasks.append(task(str(index), seconds, *waits, gpus=gpus, cell=cell))
    line = play(tasks, gpus=4, cores=0, parallel_cells=cells)
    chain: dict[str, float] = {}
    for one in tasks:
        chain[one.name] = one.work.seconds + max((chain[name] for name in one.waits_for), default=0)
    assert line.makespan >= max(max(chain.values()), line.gpu_seconds / 4) - 1e-6
    for moment in line.begun.values():
        at_work = [t for t in tasks if line.begun[t.name] <= moment < line.ended[t.name]]
        assert sum(t.work.gpus for t in at_work) <= 4
        assert len({t.cell for t in at_work}) <= cells
    assert all(line.begun[one.name] >= line.ended[name] - 1e-9 for one in tasks for name in one.waits_for)


def costs(workers: int, **changes: float) -> Costs:
    return Costs(replace(H100S, **changes), Rates(), workers, 1.0)


def test_training_takes_its_flops_over_the_rate() -> None:
    config = Config()
    steps = config.pretrain.total_tokens // config.pretrain.batch_tokens
    flops = steps * config.pretrain.batch_tokens * train_flops_per_token(config.model)
    work = costs(1).of("pretrain", config)
    assert work.seconds == pytest.approx(flops / (989e12 * 0.40), rel=0.01)
    assert work.bound == "compute"


def test_what_bounds_training_as_gpus_are_added() -> None:
    config = Config()
    assert costs(8).of("pretrain", config).bound == "compute"
    assert costs(64, bus_between=2e9).of("pretrain", config).bound == "gradients on the wire"
    assert costs(256).of("pretrain", config).bound == "step latency"  # 2 ms of compute a step
    wide = Costs(replace(H100S, bus_between=4e12), Rates(step_floor_seconds=0.0), 512, 1.0).of("pretrain", config)
    assert wide.bound == "windows in a batch"  # 262,144 tokens are 256 windows of 1,024


def test_the_judge_is_asked_as_often_as_the_metrics_need() -> None:
    """Spec 6.3: ten long excerpts; ten top, two of each quantile bin, five random and ten out of context, short."""
    corrected = Config()
    paper = corrected.model_copy(update={"activations": corrected.activations.model_copy(update={"protocol": "paper"})})
    assert judge_calls(paper, 1) == (2, 10 + 10 + 2 * 11 + 5 + 10)
    assert judge_calls(corrected, 100) == (200, 5900)
    one = corrected.model_copy(
        update={"interpret": corrected.interpret.model_copy(update={"metrics": ("random_only",)})}
    )
    assert judge_calls(one, 1) == (1, 5)


@pytest.mark.parametrize("protocol", ["corrected", "paper"])
def test_the_tokens_that_are_read_for_records(protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, asked = Store(tmp_path), activation_cases.settings(protocol=protocol)
    inputs = {
        "tokens": activation_cases.tokens_artifact(store, 3333),
        "pretrain": activation_cases.model_artifact(store),
    }
    seen, read = [], Reader.read
    monkeypatch.setattr(Reader, "read", lambda self, ids: seen.append(ids.numel()) or read(self, ids))
    activation_cases.extract(store, asked, inputs)
    reckoned = read_tokens(Config(activations=asked.activations))
    assert (
        0.8 * reckoned < sum(seen) <= reckoned
    )  # of a short text, both widths' quantiles are measured on some of the same


@pytest.mark.parametrize("protocol", ["corrected", "paper"])
def test_what_is_left_of_a_shard(protocol: str, tmp_path: Path) -> None:
    store, asked = Store(tmp_path), activation_cases.settings(protocol=protocol)
    inputs = {
        "tokens": activation_cases.tokens_artifact(store, 3333),
        "pretrain": activation_cases.model_artifact(store),
    }
    job = plan_job(asked, inputs, activation_cases.context(store, workers=3))
    for shard in range(len(job.shards)):
        Extractor(job).read_shard(shard)
    parts = [load_file(job.shard_file(shard)) for shard in range(len(job.shards))]
    held = [array.nbytes for part in parts for name, array in part.items() if name.endswith(("keys", "activations"))]
    assert 3 * part_bytes(asked.activations, 2 * 32) == sum(held)


def test_only_a_judge_that_is_a_language_model_is_charged_as_one() -> None:
    """The simulator "auto" is the explainer's: by default a token table, which needs no GPU."""
    found = {}
    for explainer in ("token_table", "transformers", "http"):
        loaded = load_config(PILE, [f"interpret.explainer={explainer}", "runtime.judge_concurrency=16"])
        found[explainer] = costs(8).of("interpret", loaded.config)
    assert {name: work.bound for name, work in found.items()} == {
        "token_table": "the token table",
        "transformers": "judge calls",
        "http": "the endpoint's answers",
    }
    assert {name: work.gpus for name, work in found.items()} == {"token_table": 0, "transformers": 8, "http": 0}
    neurons = Config().model.n_layer * Config().model.d_code
    assert found["http"].seconds == pytest.approx(sum(judge_calls(Config(), neurons)) * 0.5 / 16, rel=0.01)


def test_a_whole_sweep_is_played() -> None:
    grid = 'grid={"model.architecture": [crate, gpt2], "model.n_layer": [6, 12]}'
    loaded = load_config(PILE, [grid])
    found = forecast(loaded, H100S)
    assert set(found.stages()) >= {"tokens", "pretrain", "evaluate", "activations", "interpret", "steer", "report"}
    assert found.timeline.critical_path()[-1] == "report"
    assert 0 < found.busy <= 1 and found.gpu_hours == pytest.approx(64 * found.hours)
    splits = best_split(loaded, H100S)
    assert splits[0].hours == min(split.hours for split in splits) <= found.hours


def test_more_gpus_are_never_slower_and_never_free() -> None:
    loaded = load_config(PILE, ['grid={"model.n_layer": [6, 12]}'])
    found = [best_split(loaded, replace(H100S, gpus=gpus, cores=8 * gpus))[0] for gpus in (8, 16, 64)]
    assert found[0].hours > found[1].hours > found[2].hours
    assert found[0].gpu_hours <= found[1].gpu_hours <= found[2].gpu_hours


LADDER = (
    'grid=[{"model.architecture": [crate, gpt2], "model.n_layer": [1, 2, 3], "model.d_model": [128], "model.n_head": [4]}, '
    '{"model.architecture": [crate, gpt2], "model.n_layer": [6, 12]}]'
)
JUDGE = "interpret.explainer=transformers"  # a 7 B model, run locally: the page's
PAGE = (PILE.parents[1] / "docs" / "scale.md").read_text()


def rows(first: str) -> list[list[str]]:
    """The cells of the table whose first column is headed so."""
    after = PAGE.partition(f"| {first} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in after]


def test_the_page_s_table_of_clusters_is_what_the_forecast_says() -> None:
    loaded, told = load_config(PILE, [LADDER, JUDGE]), rows("GPUs")
    computed = []
    for row in told:
        gpus = int(row[0])
        found = best_split(loaded, Machine(gpus, 8 * gpus, 989e12, bus_between=float(row[1]) * 1e9))[0]
        longest, _, bound = found.stages()["pretrain"]
        split = f"{found.parallel_cells} x {found.workers_per_cell}"
        cells = [row[0], row[1], split, f"{found.hours:.1f}", f"{found.gpu_hours:.0f}", f"{found.busy:.0%}"]
        computed.append([*cells, f"{longest:.1f} h, {bound}"])
    assert len(told) == 8 and computed == told


def test_the_page_s_table_of_stages_is_what_the_forecast_says() -> None:
    stages = best_split(load_config(PILE, [LADDER, JUDGE]), H100S)[0].stages()
    assert rows("stage") == [[name, f"{h:.2f}", f"{g:.1f}", bound] for name, (h, g, bound) in stages.items()]


def test_the_page_s_changed_assumptions_are_what_the_forecast_says() -> None:
    changes: list[dict[str, float]] = [
        {"train_utilisation": 0.2},
        {"train_utilisation": 0.5},
        {"step_floor_seconds": 0.02},
        {"step_floor_seconds": 0.005},
        {"overlap": 0.0},
        {"judge_flops_per_pass": 2 * Rates.judge_flops_per_pass},
        {"tokens_per_core_second": 2e6},
    ]
    loaded = load_config(PILE, [LADDER, JUDGE])
    found = [best_split(loaded, H100S, replace(Rates(), **change))[0] for change in changes]
    assert [row[2:] for row in rows("assumption")] == [[f"{f.hours:.1f}", f"{f.gpu_hours:.0f}"] for f in found]
