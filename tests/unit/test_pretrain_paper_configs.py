"""The paper's recipe, as the files under configs/ say it."""

from __future__ import annotations

from pathlib import Path

import pytest

from crate_model.flops import count_parameters
from pipeline.config_load import load_config
from pipeline.pretrain.batches import plan_batches

CONFIGS = Path(__file__).parents[2] / "configs"
# Without positions. Source: the paper's table; its CRATE-S figure (55.9M) is a misprint.
PARAMETERS = {
    ("crate", 1): 6_538_112,
    ("crate", 2): 6_637_056,
    ("crate", 3): 6_736_000,
    ("crate", 6): 59_891_712,
    ("crate", 12): 81_148_416,
    ("gpt2", 1): 6_635_904,
    ("gpt2", 2): 6_832_768,
    ("gpt2", 3): 7_029_632,
    ("gpt2", 6): 81_110_784,
    ("gpt2", 12): 123_587_328,
}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("paper_*.yaml")), ids=lambda path: path.stem)
def test_sizes_batches_and_tokens_are_the_paper_s(path: Path) -> None:
    cells = load_config(path).cells()
    for cell in cells:
        model, recipe = cell.config.model, cell.config.pretrain
        assert count_parameters(model).total_without_positions == PARAMETERS[model.architecture, model.n_layer]
        assert (recipe.learning_rate, recipe.min_learning_rate, recipe.warmup_steps) == (6e-4, 6e-5, 2000)
        assert (recipe.beta1, recipe.beta2, recipe.weight_decay, recipe.clip_norm) == (0.9, 0.95, 0.1, 1.0)
        plan = plan_batches(recipe, model.n_ctx, world_size=8)
        assert model.n_ctx == 1024
        assert (recipe.batch_tokens, plan.total_steps) in {(262_144, 600_000), (491_520, 320_000)}
    assert len({cell.config.model.architecture for cell in cells}) == 2


def test_every_size_is_there_in_both_readings_of_the_batch() -> None:
    found = set()
    for path in CONFIGS.glob("paper_*_batch*.yaml"):
        for cell in load_config(path).cells():
            model = cell.config.model
            found.add((model.architecture, model.n_layer, cell.config.pretrain.batch_tokens))
    assert found == {(*key, batch) for key in PARAMETERS for batch in (262_144, 491_520)}
    assert len(load_config(CONFIGS / "paper_ladder.yaml").cells()) == 10
