"""What is read: a layer's tap, or the features of a sparse autoencoder on one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.activation_stream import forward_through, forward_to
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.checkpoint import KeptStep
from pipeline.config import ActivationsConfig
from pipeline.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from crate_model.model import LanguageModel
    from crate_model.sae import SparseAutoencoder


@dataclass(frozen=True)
class Site:
    """A vector of neurons at every token. `point` is the tap it is read from, through `sae` where there is one."""

    name: str
    layer: int
    point: str
    n_neurons: int
    signed: bool  # may be negative
    sae: SparseAutoencoder | None = None

    def facts(self) -> dict[str, Any]:
        """What identifies it, as plain values."""
        return {
            "name": self.name,
            "layer": self.layer,
            "point": self.point,
            "n_neurons": self.n_neurons,
            "signed": self.signed,
        }


class Reader:
    """A model with the sites that are read from it, on a device."""

    def __init__(self, model: LanguageModel, sites: Sequence[Site], precision: str, device: torch.device) -> None:
        self.model, self.sites, self.device = model.to(device), tuple(sites), device
        self.by_layer = sorted(sites, key=lambda site: site.layer)  # the order in which they are read
        self.half = precision == "bf16"
        for site in sites:
            if site.sae is not None:
                site.sae.to(device)

    def read(self, ids: Tensor) -> Iterator[tuple[Site, Tensor]]:
        """Each site's activations (rows, n_ctx, neurons), in the precision of the pass, of token ids (rows, n_ctx).

        They come layer by layer, while one forward pass goes on.
        """
        import torch

        points = list(dict.fromkeys(site.point for site in self.by_layer))
        half = torch.autocast(self.device.type, torch.bfloat16) if self.half else nullcontext()
        with torch.no_grad(), half:
            for point, value in forward_through(self.model, ids.to(self.device), points):
                for site in self.by_layer:
                    if site.point == point and site.sae is None:
                        yield site, value
                    elif site.point == point and site.sae is not None:
                        yield site, site.sae.encode(value.float().flatten(0, 1)).unflatten(0, ids.shape)


def open_reader(
    pretrain: Artifact, step: KeptStep, autoencoders: Artifact | None, config: ActivationsConfig, device: torch.device
) -> Reader:
    """The model of a pretrain artifact after `step` with its taps, or with the autoencoders of an sae artifact.

    Raises ArtifactError for weights that are not finite.
    """
    from pipeline.artifacts.checkpoint import load_model

    model = load_model(pretrain, step)
    broken = [name for name, weight in model.state_dict().items() if not weight.isfinite().all()]
    if broken:
        raise ArtifactError(
            f"the model in {pretrain.folder} holds values that are not finite, in {broken[0]} and {len(broken) - 1} more",
            fix="Its training diverged: lower pretrain.learning_rate, or look at its curve.",
        )
    sites = tap_sites(model, config) if autoencoders is None else feature_sites(autoencoders)
    return Reader(model, sites, config.precision, device)


def check_layers(config: ActivationsConfig, n_layer: int) -> None:
    """Raises ConfigError for a layer that the model has not."""
    wrong = [layer for layer in config.layers if layer >= n_layer] if config.layers != "all" else []
    if wrong:
        raise ConfigError(
            f"activations.layers names layer {wrong[0]}, but the model has {n_layer}",
            fix=f"Layers are counted from 0: name 0 to {n_layer - 1}, or all.",
        )


def tap_sites(model: LanguageModel, config: ActivationsConfig) -> list[Site]:
    import torch

    layers = range(model.config.n_layer) if config.layers == "all" else sorted(set(config.layers))
    points = {layer: f"blocks.{layer}.{config.tap}" for layer in layers}
    values = forward_to(model, torch.zeros((1, 1), dtype=torch.long), list(points.values()))
    signed = config.tap != "code" or getattr(model.config, "activation", "relu") != "relu"
    return [
        Site(f"{config.tap}-l{layer}", layer, point, values[point].shape[-1], signed) for layer, point in points.items()
    ]


def feature_sites(autoencoders: Artifact) -> list[Site]:
    from pipeline.artifacts import saes

    found = []
    for site in saes.sites(autoencoders):
        sae = saes.load_sae(autoencoders, site)
        found.append(Site(site.name, site.layer, site.point, sae.config.d_sae, False, sae))
    return found
