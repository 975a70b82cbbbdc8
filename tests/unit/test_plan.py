"""`--plan`: every number that a person decides by, from closed forms and a forecast, with nothing made."""

from __future__ import annotations

import argparse
import json
import operator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from crate_model.config import ModelConfig
from crate_model.flops import activation_bytes, count_parameters
from crate_model.model import LanguageModel
from pipeline.artifacts.checkpoint import CURVE_SCHEMA, model_config, write_model
from pipeline.artifacts.store import Store
from pipeline.config import Config, RuntimeConfig
from pipeline.config_load import load_config
from pipeline.dag import plan
from pipeline.errors import ConfigError, ResourceError
from pipeline.forecast.assumed import assume
from pipeline.forecast.room import ZERO_STAGES, gpu_bytes, stored_bytes
from pipeline.plan import plan_rows, print_plan
from pipeline.pretrain import resume
from pipeline.progress import amount
from pipeline.sweep import _refuse_above
from tests.synthetic_sweep import SyntheticSweep, fresh_store
from tests.unit import activation_cases

CONFIGS = Path(__file__).parents[2] / "configs"
ISSUE_2 = {"name", "architecture", "n_layer", "d_model", "n_params", "n_params_non_embedding"}
ISSUE_2 |= {"train_flops_per_token", "train_tokens", "status"}


def rows_of(path: Path, store: Path, *overrides: str, kept: dict[str, Any] | None = None) -> dict[str, Any]:
    whole = plan(load_config(path, overrides))
    return plan_rows(whole, Store(store), kept or {}, assume("h200", 8))


@pytest.mark.parametrize(
    "path", [p for p in sorted(CONFIGS.glob("*.yaml")) if "_batch" not in p.stem], ids=lambda p: p.stem
)
def test_every_ready_configuration_can_be_planned(path: Path, tmp_path: Path) -> None:
    rows = rows_of(path, tmp_path / "untouched")
    assert not (tmp_path / "untouched").exists()
    assert rows == json.loads(json.dumps(rows))
    assert all(cell.keys() >= ISSUE_2 and cell["status"] == "make" for cell in rows["cells"])
    assert rows["totals"]["train_flops"] == sum(
        c["train_flops_per_token"] * c["train_tokens"] for c in rows["cells"] if not c["shared"]
    )
    assert rows["forecast"]["critical_path"][-1] == "report"
    assert rows["forecast"]["gpu_hours"] == pytest.approx(8 * rows["forecast"]["hours"])


@pytest.mark.parametrize(
    ("name", "key", "architectures", "values"),
    [
        ("constant_width", "model.n_layer", {"crate", "gpt2"}, set(range(1, 13))),
        ("learning_rate", "pretrain.learning_rate", {"crate", "gpt2"}, {1.5e-4, 3e-4, 6e-4, 1.2e-3, 2.4e-3}),
        ("over_training", "checkpoint_step", {"crate", "gpt2"}, {8, 32, 128, 512, 2048, 8192, 32768, "last"}),
        ("lambda_ablation", "model.lambda_sparsity", {"crate"}, {0.0, 0.025, 0.05, 0.1, 0.2, 0.4}),
    ],
)
def test_the_studies_vary_what_they_are_named_for(
    name: str, key: str, architectures: set[str], values: set[Any]
) -> None:
    cells = load_config(CONFIGS / f"{name}.yaml").cells()
    found: dict[str, set[Any]] = {}
    for cell in cells:
        assert (cell.config.model.d_model, cell.config.model.n_ctx) in {(768, 1024), (128, 1024)}
        found.setdefault(cell.config.model.architecture, set()).add(operator.attrgetter(key)(cell.config))
    assert found.keys() == {"crate", "gpt2"}
    assert all(found[architecture] == values for architecture in architectures)


def test_a_training_that_cells_share_is_counted_once(tmp_path: Path) -> None:
    """Interpretability over training reads one model's kept weights in many cells."""
    once = rows_of(CONFIGS / "over_training.yaml", tmp_path, "grid={model.architecture: [crate, gpt2]}")
    rows = rows_of(CONFIGS / "over_training.yaml", tmp_path)
    assert (len(once["cells"]), len(rows["cells"])) == (2, 16)
    assert rows["totals"]["train_flops"] == once["totals"]["train_flops"]
    assert rows["totals"]["judge_calls"] == 8 * once["totals"]["judge_calls"]
    gpu_hours = [found["forecast"]["stages"]["pretrain"]["gpu_hours"] for found in (once, rows)]
    assert gpu_hours[0] == pytest.approx(gpu_hours[1])
    shared = [step for step in rows["steps"] if step["status"] == "shared"]
    assert {step["name"].partition("/")[2] for step in shared} == {"pretrain"} and len(shared) == 14
    console = Console(record=True, width=300)
    print_plan(rows, console)
    text = console.export_text()
    assert "14 shared with other cells" in text and "(pretrain with a cell above)" in text


def test_a_plan_tells_tokens_judge_memory_disk_and_hours(tmp_path: Path) -> None:
    rows = rows_of(CONFIGS / "pile.yaml", tmp_path, "interpret.explainer=http", "interpret.price_in=1")
    console = Console(record=True, width=200)
    print_plan(rows, console)
    text = console.export_text()
    assert rows["tokens"]["text_bytes"] == 885_837_004_800 and "886 GB of text" in text
    assert rows["totals"]["judge_price"] == pytest.approx(rows["totals"]["judge_tokens_in"] / 1e6)  # price_out is 0
    assert rows["totals"]["judge_calls"] > 36_864 * 57 and "Judge: 2.27M calls: 1.12B tokens in" in text
    assert rows["totals"]["disk_bytes"] > rows["tokens"]["stored_bytes"]
    memory = list(rows["cells"][0]["gpu_bytes"].values())
    assert memory == sorted(memory, reverse=True)
    assert "H200" in text.upper() and "989 TFLOP/s" in text and "longest chain: tokens" in text


def test_kept_tokens_are_told_by_domain(tmp_path: Path) -> None:
    made = SyntheticSweep(fresh_store(tmp_path)).inputs["tokens"]
    rows = rows_of(CONFIGS / "quickstart.yaml", tmp_path, kept={"tokens": made})
    assert rows["tokens"]["splits"]["val"]["domains"] == made.summary["val"]["domains"]
    console = Console(record=True, width=1000)
    print_plan(rows, console)
    (told,) = [line for line in console.export_text().splitlines() if line.startswith("Tokens, val: ")]
    for name, counts in made.summary["val"]["domains"].items():
        assert f"{name} {amount(counts['n_tokens'])}, {counts['n_bytes'] / 1e9:.3g} GB" in told
    assert "tokens" not in rows["forecast"]["stages"] and "tokens" not in rows["forecast"]["critical_path"]


def test_memory_without_sharing_is_what_torch_allocates() -> None:
    """Weights, gradients and AdamW's moments of a real step in float32; activations are checked where they are counted."""
    config = ModelConfig(architecture="crate", n_layer=2, d_model=32, n_head=2, n_ctx=16, vocab_size=64)
    model = LanguageModel(config)
    optimizer = torch.optim.AdamW(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    tensors = [tensor for p in model.parameters() for tensor in (p, p.grad, *optimizer.state[p].values())]
    measured = sum(tensor.nbytes for tensor in tensors if tensor is not None and tensor.dim())  # not the step counts
    assert gpu_bytes(config, "fp32", 0, workers=1) - activation_bytes(config) == measured


def test_zero_shares_out_the_optimizer_then_gradients_then_weights() -> None:
    config = ModelConfig(architecture="gpt2", n_layer=12, d_model=768, n_head=12)
    size, kept = count_parameters(config).total, activation_bytes(config, 1, bytes_per_value=2)
    a_parameter = [(gpu_bytes(config, "bf16", stage, workers=4) - kept) / size for stage in ZERO_STAGES]
    assert a_parameter == pytest.approx([20, 11, 6.5, 5])


def test_too_many_gpu_hours_are_refused_and_what_was_assumed_is_said(tmp_path: Path) -> None:
    rows = rows_of(CONFIGS / "pile.yaml", tmp_path)
    hours = rows["forecast"]["gpu_hours"]
    assert hours > rows["cells"][0]["training_seconds"] / 3600  # all stages, and every GPU that is paid for
    _refuse_above(hours + 1, rows)
    with pytest.raises(ResourceError, match=r"GPU-hours, all stages.*assumed: 8 h200, 989 TFLOP/s"):
        _refuse_above(hours - 1, rows)


def test_gpu_hours_are_never_told_by_the_cores_of_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = assume(only_gpus=True)
    assert (found.device, found.machine.gpus, found.machine.peak_flops) == ("H100", 8, 989e12)
    assert "assumed: name yours" in found.said
    here = assume()
    assert "cores as a device" in here.said and here.machine.gpus == here.machine.cores
    assert here.rates.trainer_start_seconds < found.rates.trainer_start_seconds  # no image to pull, no NCCL
    with pytest.raises(ConfigError, match="no peak is known of a GPU called toaster"):
        assume("toaster")


def test_the_command_takes_the_gpu_s_name() -> None:
    from pipeline.sweep import add_arguments

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = parser.parse_args(["--config", "x.yaml", "--plan", "--gpu", "h200", "--gpus", "64"])
    assert (options.gpu, options.gpus) == ("h200", 64)


@pytest.mark.parametrize("protocol", ["corrected", "paper"])
def test_room_for_records_is_what_records_take_before_they_are_compressed(protocol: str, tmp_path: Path) -> None:
    """Those excerpts counted too that a short text does not give."""
    store = Store(tmp_path)
    asked = activation_cases.settings(protocol=protocol)
    inputs = {
        "tokens": activation_cases.tokens_artifact(store, 3333),
        "pretrain": activation_cases.model_artifact(store),
    }
    made = activation_cases.extract(store, asked, inputs)
    excerpts = pq.read_table(made.folder / "excerpts.parquet", columns=["width"])
    missing = [site["missing"].items() for site in made.summary["sites"].values()]
    widths = sum(excerpts["width"].to_pylist()) + sum(int(k.split("/")[0]) * n for site in missing for k, n in site)
    config = Config(model=model_config(inputs["pretrain"]), activations=asked.activations)
    assert stored_bytes(config)["activations"] == 4 * widths


def test_room_for_weights_and_checkpoints_is_what_they_take(tmp_path: Path) -> None:
    model = LanguageModel(ModelConfig(n_layer=2, n_head=2, d_model=32, n_ctx=64, vocab_size=5000))
    config = Config(model=model.config, runtime=RuntimeConfig(keep_checkpoints=1))
    write_model(tmp_path, model.config, model.state_dict())
    whole = {part: {name: tensor.detach() for name, tensor in model.named_parameters()} for part in resume.PARTS}
    curve: dict[str, list] = {name: [] for name in CURVE_SCHEMA.names}
    kept = resume.write(tmp_path / "resume", resume.Snapshot(resume.Counters(step=1), whole, curve), keep=1)
    room = stored_bytes(config)
    assert room["pretrain"] == pytest.approx((tmp_path / "model.safetensors").stat().st_size, rel=0.01)
    one = sum(path.stat().st_size for path in kept.glob("*.safetensors"))
    assert room["training_checkpoints"] == pytest.approx(2 * one, rel=0.01)  # one more is written before it goes
