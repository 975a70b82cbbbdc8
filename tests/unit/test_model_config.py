"""Options, their defaults and the combinations that are refused."""

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch
import yaml

from crate_model.config import ModelConfig
from crate_model.model import LanguageModel
from pipeline.config_load import load_config
from pipeline.errors import ConfigError


def test_defaults_are_the_papers_crate_base() -> None:
    config = ModelConfig()
    assert (config.architecture, config.n_layer, config.n_head, config.d_model, config.n_ctx) == (
        "crate",
        12,
        12,
        768,
        1024,
    )
    assert (config.vocab_size, config.d_code, config.n_ista_steps) == (50304, 3072, 2)
    assert config.step_size * config.lambda_sparsity == pytest.approx(0.01)
    with pytest.raises(FrozenInstanceError):
        config.n_layer = 3  # type: ignore[misc]


WRONG = [
    ({"n_head": 7}, "n_head that divides"),
    ({"n_layer": 0}, "n_layer is 0"),
    ({"expansion": 0}, "expansion is 0"),
    ({"n_ista_steps": 0}, "n_ista_steps is 0"),
    ({"step_size": 0.0}, "step_size is 0.0"),
    ({"step_size": float("nan")}, "step_size is nan"),
    ({"lambda_sparsity": -0.1}, "lambda_sparsity is -0.1"),
    ({"bias": True}, "bias has no meaning for CRATE"),
    ({"activation": "gelu"}, "activation has no meaning for CRATE"),
    ({"architecture": "gpt3"}, "choose 'crate' or 'gpt2'"),
    ({"architecture": "gpt2", "activation": "silu"}, "choose 'relu'"),
    ({"architecture": "gpt2", "n_ista_steps": 3}, "n_ista_steps"),
    ({"architecture": "gpt2", "ista_residual": True}, "set architecture: crate"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=str)
def test_bad_combinations_say_what_to_do(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**wrong)


@pytest.mark.parametrize("wrong", [wrong for wrong, _ in WRONG], ids=str)
def test_in_a_configuration_they_are_config_errors(wrong: dict, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({"model": wrong}))
    with pytest.raises(ConfigError, match=r"sweep\.yaml:\d+: model") as caught:
        load_config(path)
    assert caught.value.fix


@pytest.mark.parametrize(
    "options", [{"expansion": 1}, {"n_ista_steps": 1}, {"n_ista_steps": 4}, {"step_size": 0.05}], ids=str
)
def test_options_change_the_model(options: dict) -> None:
    ids = torch.arange(8)[None]
    torch.manual_seed(0)
    plain = LanguageModel(ModelConfig("crate", 1, 2, 16, 8, 20))
    torch.manual_seed(0)
    other = LanguageModel(ModelConfig("crate", 1, 2, 16, 8, 20, **options))
    assert not torch.allclose(plain(ids), other(ids))


def test_residual_around_ista_adds_the_stream() -> None:
    from crate_model import taps

    torch.manual_seed(0)
    model = LanguageModel(ModelConfig("crate", 1, 2, 16, 8, 20, ista_residual=True))
    with taps.read(model, ["blocks.0.residual_mid", "blocks.0.code", "blocks.0.out"]) as values:
        model(torch.arange(8)[None])
    synthesis = values["blocks.0.code"] @ model.blocks[0].feedforward.dictionary
    torch.testing.assert_close(values["blocks.0.out"], values["blocks.0.residual_mid"] + synthesis)


def test_ista_is_stable_at_initialisation() -> None:
    """step_size * sigma_max(dictionary)^2 stays below 2 at both published widths. *Source:* the published initialisation."""
    for d_model, n_head in ((128, 4), (768, 12)):
        torch.manual_seed(0)
        dictionary = LanguageModel(ModelConfig("crate", 1, n_head, d_model, 8, 20)).blocks[0].feedforward.dictionary
        assert 0.1 * torch.linalg.matrix_norm(dictionary.detach(), 2) ** 2 < 2
