"""Autoencoders on disk: ours, SAELens's, and what is told of files that are neither."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from sae_world import World, site
from safetensors.torch import load_file, save_file

from crate_model.config import SAEConfig
from crate_model.sae import SparseAutoencoder
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.saelens import export_saelens, import_saelens
from pipeline.artifacts.saes import Site, find_site, load_sae, sites, write_sae
from pipeline.errors import ArtifactError, ConfigError

VARIANTS = ("relu", "topk", "batchtopk", "jumprelu")


def autoencoder(variant: str = "relu") -> SparseAutoencoder:
    torch.manual_seed(0)
    sae = SparseAutoencoder(SAEConfig(16, 40, variant, k=5)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        if variant == "jumprelu":
            sae.log_threshold.copy_(torch.linspace(-3, 0, 40))
        if variant == "batchtopk":
            sae.threshold.fill_(0.3)
    return sae


def data() -> torch.Tensor:
    return torch.randn(50, 16, generator=torch.Generator().manual_seed(2))


@pytest.fixture(params=VARIANTS)
def sae(request: pytest.FixtureRequest) -> SparseAutoencoder:
    return autoencoder(request.param)


def published(root: Path, sae: SparseAutoencoder, of: Site) -> Artifact:
    world = World(root)
    summary = {"sites": [vars(of)]}
    return world.publish("sae", "8" * 32, lambda folder: write_sae(folder, of, sae, {"pretrain": "x"}), summary)


def test_written_and_read_back(tmp_path: Path, sae: SparseAutoencoder) -> None:
    of = site("code-l1-2x", 1, sae.config.variant)
    artifact = published(tmp_path, sae, of)
    assert sites(artifact) == [of]
    assert of.point == "blocks.1.code"
    loaded = load_sae(artifact, of.name)
    assert loaded.config == sae.config
    assert torch.equal(loaded.encode(data()), sae.encode(data()))
    assert not loaded.training
    stored = json.loads((artifact.folder / of.name / "config.json").read_text())
    assert stored["trained_on"] == {"pretrain": "x"}


def test_errors_of_reading(tmp_path: Path) -> None:
    artifact = published(tmp_path, autoencoder(), site())
    with pytest.raises(ConfigError, match="no sparse autoencoder 'code-l7-2x'") as caught:
        find_site(artifact, "code-l7-2x")
    assert "code-l0-2x" in caught.value.fix
    weights = artifact.folder / "code-l0-2x" / "model.safetensors"
    size = weights.stat().st_size
    weights.write_bytes(b"\0" * size)
    with pytest.raises(ArtifactError, match="no sparse autoencoder of this program"):
        load_sae(artifact, "code-l0-2x")
    weights.write_bytes(b"")
    with pytest.raises(ArtifactError, match="damaged"):
        load_sae(artifact, "code-l0-2x")


def test_saelens_and_back(tmp_path: Path, sae: SparseAutoencoder) -> None:
    export_saelens(sae, "blocks.1.code", tmp_path)
    back, point = import_saelens(tmp_path)
    assert point == "blocks.1.code"
    torch.testing.assert_close(back.encode(data()), sae.encode(data()), atol=1e-6, rtol=0)
    torch.testing.assert_close(back(data()), sae(data()), atol=1e-6, rtol=0)


def test_an_autoencoder_that_does_not_subtract_its_decoder_bias(tmp_path: Path) -> None:
    """Their GPT-2 ones do not; the features have to be the same ones."""
    sae = autoencoder()
    export_saelens(sae, "blocks.3.hook_resid_post", tmp_path)
    fields = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(fields | {"apply_b_dec_to_input": False}))
    back, point = import_saelens(tmp_path)
    assert point == "blocks.3.out"
    torch.testing.assert_close(back.encode(data()), torch.relu(data() @ sae.W_enc + sae.b_enc), atol=1e-5, rtol=0)


def test_fields_of_older_versions(tmp_path: Path) -> None:
    sae = autoencoder("topk")
    export_saelens(sae, "blocks.0.mlp.hook_post", tmp_path)
    old = {"d_in": 16, "d_sae": 40, "architecture": "standard", "activation_fn_str": "topk"}
    old |= {"activation_fn_kwargs": {"k": 5}, "hook_name": "blocks.0.mlp.hook_post"}
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    back, point = import_saelens(tmp_path)
    assert point == "blocks.0.code"
    assert torch.equal(back.encode(data()), sae.encode(data()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "gated"}, "architecture 'gated'"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations 'layer_norm'"),
        ({"rescale_acts_by_decoder_norm": True}, "rescale_acts_by_decoder_norm"),
        ({"d_sae": 41}, "holds no SAELens autoencoder"),
        ({"d_in": None}, "holds no SAELens autoencoder"),
    ],
)
def test_what_has_no_equal_here_is_refused(tmp_path: Path, change: dict, said: str) -> None:
    export_saelens(autoencoder(), "blocks.0.code", tmp_path)
    fields = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(fields | change))
    with pytest.raises(ConfigError, match=said):
        import_saelens(tmp_path)


def test_an_empty_folder_is_no_autoencoder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no SAELens autoencoder"):
        import_saelens(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("sae_lens") is None, reason="sae_lens is not installed")
def test_sae_lens_loads_our_export_with_equal_codes(tmp_path: Path, sae: SparseAutoencoder) -> None:
    from sae_lens import SAE

    export_saelens(sae, "blocks.1.code", tmp_path / "ours")
    theirs = SAE.load_from_disk(tmp_path / "ours")
    with torch.no_grad():
        torch.testing.assert_close(theirs.encode(data()), sae.encode(data()), atol=1e-6, rtol=0)
        torch.testing.assert_close(theirs(data()), sae(data()), atol=1e-6, rtol=0)
    theirs.save_model(tmp_path / "theirs")
    back, _ = import_saelens(tmp_path / "theirs")
    torch.testing.assert_close(back.encode(data()), sae.encode(data()), atol=1e-6, rtol=0)


def test_weights_are_plain_safetensors(tmp_path: Path) -> None:
    """No pickle: the weights file is what safetensors reads and writes."""
    export_saelens(autoencoder(), "blocks.1.code", tmp_path)
    weights = load_file(tmp_path / "sae_weights.safetensors")
    save_file(weights, tmp_path / "again.safetensors")
    assert set(weights) == {"W_enc", "b_enc", "W_dec", "b_dec"}
