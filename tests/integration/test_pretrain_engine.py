"""What the engine does for a GPU, held to the plain way on a CPU: compiling, gradients added at once, norms not read."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compiled import needs_compiler, without_shape_checks  # noqa: F401  a fixture
from torch.utils._python_dispatch import TorchDispatchMode
from training_world import MODEL, N_CTX, RECIPE, RUNTIME, make_tokens

from crate_model.model import LanguageModel
from pipeline.artifacts.store import Store
from pipeline.artifacts.tokens import TokenSplit
from pipeline.config import PretrainConfig, RuntimeConfig
from pipeline.pretrain import compiling
from pipeline.pretrain import engine as engine_module
from pipeline.pretrain.__main__ import process_group
from pipeline.pretrain.batches import Batches, plan_batches
from pipeline.pretrain.engine import Engine
from pipeline.pretrain.loop import Run, train
from pipeline.pretrain.resume import Counters


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    with process_group(300):
        yield


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> TokenSplit:
    return TokenSplit(make_tokens(Store(tmp_path_factory.mktemp("engine"))), "train")


class Silent:
    """A Watch that looks on and does nothing."""

    def after_step(self, run: Run) -> None:
        pass


def trained(split: TokenSplit, n_steps: int = 6, precision: str = "bf16", **runtime: Any) -> tuple[Engine, Run]:
    """A model after a few steps of two micro-batches, and what its loop holds."""
    recipe = PretrainConfig(**{**RECIPE.model_dump(), "precision": precision, "total_tokens": n_steps * 8 * N_CTX})
    plan = plan_batches(recipe, N_CTX, 1, micro_batch=4)
    batches = Batches(split, 0, N_CTX, 0, plan)
    torch.manual_seed(0)
    settings = RuntimeConfig(**{**RUNTIME.model_dump(), **runtime})
    engine = Engine(LanguageModel(MODEL), recipe, settings, torch.device("cpu"), 4, plan.accumulation, "torch_fused")
    engine.compile_like_eager(next(batches.micro_batches(batches.window_ids(0))))
    run = Run(Counters(), {name: [] for name in ("step", "tokens", "loss", "rate", "norm", "val_loss")}, n_steps)
    train(engine, batches, recipe, run, Silent())
    batches.close()
    return engine, run


def curve(engine: Engine, run: Run) -> np.ndarray:
    run.flush(engine)
    engine.close()
    return np.array([run.curve["loss"], run.curve["norm"]])


@needs_compiler
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_run_trains_as_an_uncompiled_one(split: TokenSplit, precision: str) -> None:
    engine, run = trained(split, precision=precision, compile=True)
    assert engine.compiled and not engine.not_compiled
    ours, plain = curve(engine, run), curve(*trained(split, precision=precision))
    np.testing.assert_allclose(ours, plain, rtol={"fp32": 1e-4, "bf16": 0.02}[precision])
    assert not np.array_equal(ours, plain)  # it was compiled indeed: its sums run in another order


@needs_compiler
def test_activations_may_be_computed_again_in_a_compiled_model(split: TokenSplit) -> None:
    engine, _ = trained(split, 1, "fp32", compile=True, activation_checkpointing=True)
    assert engine.compiled, engine.not_compiled
    engine.close()


@needs_compiler
def test_other_gradients_than_the_uncompiled_models_are_told_and_not_trained_with(
    split: TokenSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler that loses half of a gradient; that of torch 2.11 lost the whole model's."""
    hidden = LanguageModel.hidden

    def loses_half(self: LanguageModel, *arguments: Any) -> torch.Tensor:
        found = hidden(self, *arguments)
        return (found + found.detach()) / 2 if torch.compiler.is_compiling() else found

    monkeypatch.setattr(LanguageModel, "hidden", loses_half)
    engine, run = trained(split, compile=True)
    assert not engine.compiled
    assert "the compiled gradient of " in engine.not_compiled
    np.testing.assert_array_equal(curve(engine, run), curve(*trained(split)))


def test_what_does_not_compile_is_told_and_runs_as_it_is(split: TokenSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "why_not", lambda *_: "")
    hidden = LanguageModel.hidden

    def breaks_the_graph(self: LanguageModel, *arguments: Any) -> torch.Tensor:
        torch._dynamo.graph_break()
        return hidden(self, *arguments)

    monkeypatch.setattr(LanguageModel, "hidden", breaks_the_graph)
    engine, run = trained(split, compile=True)
    assert not engine.compiled and "failed to compile" in engine.not_compiled
    np.testing.assert_array_equal(curve(engine, run), curve(*trained(split)))


def test_zero_3_leaves_torchs_linear_as_it_found_it(split: TokenSplit) -> None:
    before = torch.nn.functional.linear
    engine, run = trained(split, 2, zero_stage=3)
    curve(engine, run)
    assert torch.nn.functional.linear is before


def test_gradients_that_are_added_at_once_change_no_bit(split: TokenSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = curve(*trained(split, zero_stage=1))
    settings_of = engine_module._deepspeed_settings

    def added_later(*arguments: Any) -> dict[str, Any]:
        settings = settings_of(*arguments)
        assert settings["bf16"]["immediate_grad_update"]
        return settings | {"bf16": {"enabled": True}}

    monkeypatch.setattr(engine_module, "_deepspeed_settings", added_later)
    np.testing.assert_array_equal(curve(*trained(split, zero_stage=1)), ours)


class Waits(TorchDispatchMode):
    """Who reads results on the host, where a GPU would have to be waited for: the innermost of ours or DeepSpeed's files."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
            files = [Path(frame.filename) for frame in reversed(traceback.extract_stack()[:-1])]
            self.seen[next(folder for file in files for folder in OWNERS if folder in file.parts)] += 1
        return func(*args, **(kwargs or {}))


OWNERS = ("deepspeed", "pipeline", "crate_model", "tests")


@pytest.mark.parametrize(("stage", "by_deepspeed"), [(1, 2), (2, 4)])
def test_a_step_waits_for_the_device_only_where_deepspeed_does(
    split: TokenSplit, stage: int, by_deepspeed: int
) -> None:
    """Whether the norm is finite, and whether it is to be clipped, DeepSpeed asks on the host; the loop adds nothing to it.

    (The model's own operations ask on a CPU alone: `cross_entropy._branches_cost`.)
    """
    with Waits() as few:
        trained(split, 1, zero_stage=stage)[0].close()
    with Waits() as many:
        trained(split, 6, zero_stage=stage)[0].close()
    more = many.seen - few.seen
    assert more["deepspeed"] == 5 * by_deepspeed
    assert not more["pipeline"] and not more["tests"]
