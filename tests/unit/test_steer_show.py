"""What a person sees at the terminal, and what they are told when they ask for what is not there."""

from __future__ import annotations

import io
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from sae_world import make_model, site

from crate_model.config import SAEConfig
from crate_model.model import LanguageModel
from crate_model.sae import SparseAutoencoder
from pipeline.artifacts.vocabulary import gpt2_encoding, token_strings
from pipeline.config import SteerConfig, SteerEdit
from pipeline.errors import ConfigError
from pipeline.steer.samples import next_words, sample_text
from pipeline.steer.show import print_next_words, print_steering
from pipeline.try_models import _checked, _steer_config


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return make_model(vocab_size=50304)


def steered(model: LanguageModel, edits: list[SteerEdit], saes: dict | None = None, **config: object) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_steering(model, saes or {}, SteerConfig(edits=tuple(edits), **config), console)  # type: ignore[arg-type]
    return console.file.getvalue()


def test_steering_shows_tokens_losses_and_samples(model: LanguageModel) -> None:
    edits = [SteerEdit(layer=0, neuron=12, value=5.0), SteerEdit(layer=1, neuron=3, how="ablate", positions=(-1,))]
    text = steered(model, edits, top_words=3, sample_tokens=4)
    assert "clamp neuron 12 of code-l0 to 5, prompt '1 2 3 4 5'" in text
    assert "ablate neuron 3 of code-l1 at positions 4" in text
    assert text.count("most promoted") == text.count("most suppressed") == 2
    assert "the largest change of any logit is 0." in text
    assert text.count("\nplain") == 1


def test_steering_a_feature_tells_what_the_autoencoder_loses(model: LanguageModel) -> None:
    torch.manual_seed(0)
    saes = {site().name: (site().point, SparseAutoencoder(SAEConfig(64, 128)))}
    text = steered(model, [SteerEdit(layer=0, neuron=100, value=2.0, site=site().name)], saes, sample_tokens=0)
    assert "clamp feature 100 of code-l0-2x to 2" in text
    assert "(with the error kept)" in text
    assert "spliced in alone changes logits by up to" in text
    assert "plain" not in text


def test_samples_stand_side_by_side(model: LanguageModel) -> None:
    other = make_model("gpt2", vocab_size=50304)
    console = Console(file=io.StringIO(), width=200)
    models = {"crate-2l": model, "gpt2-2l": other}
    print_next_words(models, ["Beijing is the capital of"], SteerConfig(top_words=5, sample_tokens=3), console)
    text = console.file.getvalue()
    assert text.count("crate-2l") == text.count("gpt2-2l") == 2
    for one in (model, other):
        word = next_words(one, "Beijing is the capital of", 1)[0]
        assert f"{word.probability:.1%}" in text


def test_next_words_are_the_models_own(model: LanguageModel) -> None:
    ids = torch.tensor([gpt2_encoding().encode_ordinary("Beijing is the capital of")])
    probabilities = model(ids)[0, -1, :50257].softmax(-1)
    words = next_words(model, "Beijing is the capital of", 10)
    best = probabilities.topk(10)
    assert [word.text for word in words] == [token_strings()[token] for token in best.indices.tolist()]
    assert [word.probability for word in words] == pytest.approx(best.values.tolist(), rel=1e-5)


def test_the_same_prompt_gives_the_same_sample_and_temperature_0_the_likeliest(model: LanguageModel) -> None:
    ids = torch.tensor([[16, 362, 513]])
    assert sample_text(model, ids, 6, 0.8, 40) == sample_text(model, ids, 6, 0.8, 40)
    greedy = sample_text(model, ids, 1, 0.0, 40)
    assert greedy == token_strings()[int(model(ids)[0, -1, :50257].argmax())]


def test_a_sample_ends_with_the_context(model: LanguageModel) -> None:
    assert sample_text(model, torch.ones((1, 32), dtype=torch.long), 10, 0.8, 40) == ""


def asked(edits: Path) -> Namespace:
    sampling = {"temperature": 0.8, "top_k": 40, "tokens": 4, "top": 5}
    return Namespace(edits=edits, prompt="1 2", layer=None, neuron=None, **sampling)


def test_a_yaml_list_of_edits(tmp_path: Path) -> None:
    path = tmp_path / "edits.yaml"
    path.write_text(
        "- {layer: 0, neuron: 12, value: 5}\n- {layer: 1, neuron: 3, how: scale, value: 2, positions: [-1]}\n"
    )
    assert _steer_config(asked(path)).edits == (
        SteerEdit(layer=0, neuron=12, value=5.0),
        SteerEdit(layer=1, neuron=3, how="scale", value=2.0, positions=(-1,)),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- {layer: 0, neuron: 1, value: .nan}", r"edits\.0\.value: .*finite"),
        ("- {layer: 0, neuron: 1, value: .inf}", r"edits\.0\.value: .*finite"),
        ("- {layer: 0, value: 1}", r"edits\.0\.neuron: Field required"),
        ("- {layer: 0, neuron: 1, strength: 2}", r"edits\.0\.strength: Extra inputs"),
        ("- {layer: 0, neuron: -1}", r"edits\.0\.neuron: .*greater than or equal to 0"),
        ("layer: 0", "edits: .*valid tuple"),
        ("- [", "cannot read"),
    ],
)
def test_wrong_edits_are_told_with_their_place(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "edits.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        _steer_config(asked(path))


@pytest.mark.parametrize("values", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": 0}])
def test_wrong_sampling(values: dict) -> None:
    with pytest.raises(ConfigError):
        _checked(values)


def test_an_autoencoder_of_another_layer_or_width(model: LanguageModel) -> None:
    saes = {site().name: (site().point, SparseAutoencoder(SAEConfig(64, 128)))}
    with pytest.raises(ConfigError, match=r"is of blocks\.0\.code, not of layer 1"):
        steered(model, [SteerEdit(layer=1, neuron=0, value=1.0, site=site().name)], saes)
    saes = {site().name: (site().point, SparseAutoencoder(SAEConfig(32, 64)))}
    with pytest.raises(ConfigError, match=r"reads vectors of 32, but blocks\.0\.code has 64"):
        steered(model, [SteerEdit(layer=0, neuron=0, value=1.0, site=site().name)], saes)
