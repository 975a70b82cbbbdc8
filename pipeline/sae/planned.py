"""Which autoencoders a configuration asks for of a model."""

from __future__ import annotations

from crate_model.config import ModelConfig
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.saes import Site, tap_width
from pipeline.artifacts.tokens import TokenSplit
from pipeline.config import SAEConfigSection
from pipeline.errors import ConfigError


def planned_sites(settings: SAEConfigSection, model: ModelConfig) -> list[Site]:
    """One site a layer, width and sparsity. Raises ConfigError for a layer the model has not or a k above its features."""
    layers = range(model.n_layer) if settings.layers == "all" else settings.layers
    sites = []
    for layer in layers:
        if layer >= model.n_layer:
            raise ConfigError(
                f"sae.layers names layer {layer}, but the model has layers 0 to {model.n_layer - 1}",
                fix="Correct sae.layers, or set it to 'all'.",
            )
        for expansion in settings.expansions:
            sites += [_site(settings, layer, expansion, sparsity) for sparsity in settings.sparsities]
    for site in sites:
        features = site.expansion * tap_width(model, site.tap)
        if site.variant in ("topk", "batchtopk") and site.sparsity > features:
            raise ConfigError(
                f"sae.k is {site.sparsity:.0f}, but {site.name} has {features} features", fix="Set a smaller sae.k."
            )
    return sites


def _site(settings: SAEConfigSection, layer: int, expansion: int, sparsity: float) -> Site:
    letter = {"relu": "l1", "jumprelu": "l0"}.get(settings.variant, "k")
    short = f"{sparsity:g}"  # of six digits; more where they are needed
    suffix = f"-{letter}_{short if float(short) == sparsity else sparsity}" if len(settings.sparsities) > 1 else ""
    return Site(
        f"{settings.tap}-l{layer}-{expansion}x{suffix}",
        layer,
        settings.tap,
        expansion,
        settings.variant,
        float(sparsity),
    )


def check_held_out(tokens: Artifact, model: ModelConfig) -> None:
    """Raises ConfigError where val holds no window on which a finished autoencoder could be measured."""
    val = TokenSplit(tokens, "val")
    if not val.n_windows(model.n_ctx):
        raise ConfigError(
            f"val has {val.n_tokens} tokens: autoencoders are measured on windows of {model.n_ctx} and their next token",
            fix="Hold out more text (tokens.val_fraction), or use a smaller model.n_ctx.",
        )


def n_steps(settings: SAEConfigSection) -> int:
    """Of a training: whole batches, at least one."""
    return max(1, settings.total_tokens // settings.batch_tokens)
