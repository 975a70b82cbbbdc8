"""One edit at one layer: exactly the wanted entries change, at the wanted layer and positions, with a cache or without."""

from __future__ import annotations

import pytest
import torch
from sae_world import make_model

from crate_model import taps
from crate_model.config import SAEConfig
from crate_model.model import LanguageModel
from crate_model.sae import SparseAutoencoder
from pipeline.errors import ConfigError
from pipeline.steer.edits import Edit, Unit, changed, editing
from pipeline.steer.effects import dose_rows, kl_divergence, logits_of, lossless_row, splice_row

IDS = torch.tensor([[3, 14, 15, 92, 65, 35]])


@pytest.fixture(scope="module", params=["crate", "gpt2"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return make_model(request.param)


def unit(layer: int = 0, index: int = 5, sae: SparseAutoencoder | None = None, keep_error: bool = True) -> Unit:
    return Unit(layer, index, f"code-l{layer}", f"blocks.{layer}.code", sae, keep_error)


def autoencoder() -> SparseAutoencoder:
    torch.manual_seed(2)
    return SparseAutoencoder(SAEConfig(64, 96)).eval()


def code_under(model: LanguageModel, edit: Edit | None, layer: int = 0) -> torch.Tensor:
    point = f"blocks.{layer}.code"
    with torch.no_grad():
        if edit is None:
            with taps.read(model, [point]) as values:
                model(IDS)
        else:
            with editing(model, edit), taps.read(model, [point]) as values:
                model(IDS)
    return values[point]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("clamp", lambda v: torch.full_like(v, 2.5)),
        ("add", lambda v: v + 2.5),
        ("scale", lambda v: v * 2.5),
        ("ablate", lambda v: torch.zeros_like(v)),
    ],
)
@pytest.mark.parametrize("positions", [(), (1, 4)])
def test_only_the_wanted_entries_change(model: LanguageModel, how: str, expected, positions: tuple[int, ...]) -> None:
    before = code_under(model, None)
    after = code_under(model, Edit(unit(), how, 2.5, positions))
    wanted = before.clone()
    where = list(positions) or list(range(6))
    wanted[:, where, 5] = expected(before[:, where, 5])
    assert torch.equal(after, wanted)


def test_only_the_named_layer_is_edited(model: LanguageModel) -> None:
    """The published GPT-2 clamps the unit in every layer; ours does not."""
    assert torch.equal(code_under(model, Edit(unit(1), "clamp", 9.0), layer=0), code_under(model, None, layer=0))
    after = code_under(model, Edit(unit(0), "clamp", 9.0), layer=1)
    assert not bool((after[..., 5] == 9.0).all())


@pytest.mark.parametrize("positions", [(), (0,), (2, 5), (7,)])
@pytest.mark.parametrize("use_sae", [False, True])
def test_a_cache_makes_no_difference(model: LanguageModel, positions: tuple[int, ...], use_sae: bool) -> None:
    """Greedy decoding under an edit, with the cache, against whole forwards of the growing sequence."""
    edit = Edit(unit(sae=autoencoder() if use_sae else None), "clamp", 6.0, positions)
    with editing(model, edit):
        cached = model.generate(IDS, 6, temperature=0.0)
    ids = IDS
    for _ in range(6):
        ids = torch.cat((ids, logits_of(model, ids, edit)[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(cached, ids)


def test_a_neuron_clamped_to_its_own_values_changes_no_logit_by_a_bit(model: LanguageModel) -> None:
    plain = logits_of(model, IDS)
    for layer in range(2):
        for index in range(0, 64, 7):
            row = lossless_row(model, IDS, plain, unit(layer, index))
            assert row["what"] == "clamp"
            assert row["max_logit_change"] == 0.0


def test_a_feature_left_alone_loses_nothing_with_its_error_kept_and_much_without(model: LanguageModel) -> None:
    plain, sae = logits_of(model, IDS), autoencoder()
    kept = lossless_row(model, IDS, plain, unit(sae=sae))
    assert (kept["what"], kept["max_logit_change"]) == ("delta", 0.0)
    lost = lossless_row(model, IDS, plain, unit(sae=sae, keep_error=False))
    splice = splice_row(model, IDS, plain, unit(sae=sae))
    assert lost["what"] == splice["what"] == "splice"
    assert lost["max_logit_change"] == pytest.approx(splice["max_logit_change"], abs=1e-5)
    assert splice["max_logit_change"] > 0.01
    assert splice["kl"] > 0


def test_a_feature_edit_moves_the_activations_along_its_decoder_row(model: LanguageModel) -> None:
    sae = autoencoder()
    before = code_under(model, None)
    after = code_under(model, Edit(unit(sae=sae), "add", 3.0))
    torch.testing.assert_close(after - before, (3.0 * sae.W_dec[5]).expand_as(before), atol=1e-5, rtol=0)
    replaced = code_under(model, Edit(unit(sae=sae, keep_error=False), "add", 3.0))
    torch.testing.assert_close(replaced, sae(before) + 3.0 * sae.W_dec[5], atol=1e-5, rtol=0)


def test_doses_in_one_batch_are_the_doses_one_by_one(model: LanguageModel) -> None:
    """Each unit is measured by the tokens that it promotes most on other prompts, wherever it is edited on this one."""
    plain, edit = logits_of(model, IDS), Edit(unit(), "clamp", 4.0, positions=(0, 5))
    others = torch.tensor([[1, 2, 3, 4], [9, 8, 7, 6], [50, 60, 70, 80]])
    units = [("steered", edit.unit), ("control", unit(0, 9))]
    rows = dose_rows(model, IDS, plain, edit, units, (0.5, 1.0, 3.0), 5, others)
    assert [(row["role"], row["dose"]) for row in rows] == [
        (r, d) for r in ("steered", "control") for d in (0.5, 1.0, 3.0)
    ]
    for row in rows:
        own = unit(0, row["neuron"])
        rises = [logits_of(model, one[None], Edit(own, "clamp", 4.0)) - logits_of(model, one[None]) for one in others]
        watched = torch.stack([rise[0, -1] for rise in rises]).mean(dim=0).topk(5).indices
        alone = logits_of(model, IDS, Edit(own, "clamp", row["dose"] * 4.0, positions=(0, 5)))
        assert row["kl"] == pytest.approx(kl_divergence(plain, alone).mean().item(), rel=1e-3, abs=1e-6)
        change = (alone - plain)[0, -1]
        assert row["logit_change"] == pytest.approx((change[watched].mean() - change.mean()).item(), rel=1e-3, abs=1e-4)
        assert row["probability"] == pytest.approx(alone[0, -1].softmax(-1)[watched].sum().item(), rel=1e-3)


def test_an_edit_that_leaves_no_numbers_is_told(model: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="neuron 5 of code-l0 edited so far, the logits are no numbers"):
        logits_of(model, IDS, Edit(unit(), "clamp", 1e30))


def test_values_of_a_whole_batch() -> None:
    values = torch.arange(6.0).view(2, 3)
    each = torch.tensor([[10.0], [20.0]])
    assert changed(values, "clamp", each).tolist() == [[10.0] * 3, [20.0] * 3]
    assert changed(values, "scale", each).tolist() == [[0.0, 10.0, 20.0], [60.0, 80.0, 100.0]]


def test_kl_divergence_is_its_definition() -> None:
    a, b = torch.randn(4, 9), torch.randn(4, 9)
    p, q = a.double().softmax(-1), b.double().softmax(-1)
    torch.testing.assert_close(kl_divergence(a, b), (p * (p / q).log()).sum(-1))
