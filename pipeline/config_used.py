"""Settings that one model's configuration does not use: they stand at their defaults, so that equal things have one name."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.config import (
    ActivationsConfig,
    Config,
    InterpretConfig,
    PretrainConfig,
    SAEConfigSection,
    Section,
    SteerConfig,
    TokensConfig,
)

OF_A_TRAINING = tuple(PretrainConfig.model_fields.keys() - {"checkpoint", "total_tokens", "batch_tokens"})
OF_A_LANGUAGE_MODEL = (
    *("explainer_model", "explainer_revision", "simulator_model", "simulator_revision", "dtype", "prompts"),
    *("temperature", "max_explanation_tokens", "control_neurons", "budget", "price_in", "price_out"),
)
OF_AN_EXPLAINER = ("explainer_model", "explainer_revision", "temperature", "max_explanation_tokens")
RESAMPLING = ("resample_steps", "resample_window_steps", "resample_rows")


def as_used(config: Config) -> Config:
    """The configuration with all at its default that cannot change a bit of any of its artifacts."""
    changed = {
        name: section.model_copy(update={key: type(section).model_fields[key].default for key in keys})
        for name, section, keys in unused_settings(config)
    }
    return config.model_copy(update=changed)


def unused_settings(config: Config) -> Iterator[tuple[str, Section, list[str]]]:
    yield "tokens", config.tokens, list(_of_tokens(config.tokens))
    yield "pretrain", config.pretrain, list(_of_pretrain(config.pretrain))
    yield "activations", config.activations, list(_of_activations(config.activations, config.model.n_layer))
    yield "sae", config.sae, list(_of_sae(config.sae, config.model.n_layer))
    yield "interpret", config.interpret, list(_of_interpret(config.interpret))
    yield "steer", config.steer, list(_of_steer(config.steer, bool(config.sae.expansions)))


def _of_tokens(tokens: TokensConfig) -> Iterator[str]:
    if tokens.val:  # nothing is split by hash
        yield "val_fraction"
    if tokens.source == "text":  # files without fields
        yield from ("text_field", "domain_field")


def _of_pretrain(recipe: PretrainConfig) -> Iterator[str]:
    if recipe.checkpoint:  # imported: its tokens are only told
        yield from OF_A_TRAINING
    elif recipe.schedule != "wsd":
        yield "decay_fraction"


def _of_activations(activations: ActivationsConfig, n_layer: int) -> Iterator[str]:
    if activations.layers == tuple(range(n_layer)):
        yield "layers"
    if activations.protocol == "paper":  # its quantiles are of all tokens
        yield "quantile_tokens"


def _of_sae(sae: SAEConfigSection, n_layer: int) -> Iterator[str]:
    if not sae.expansions:
        yield from SAEConfigSection.model_fields
        return
    if sae.layers == tuple(range(n_layer)):
        yield "layers"
    used = {"relu": ("l1", *RESAMPLING), "jumprelu": ("l0",)}.get(sae.variant, ("k", "dead_after_tokens"))
    yield from (name for name in ("l1", "k", "l0", "dead_after_tokens", *RESAMPLING) if name not in used)
    if not sae.resample_steps:
        yield from RESAMPLING


def _of_interpret(interpret: InterpretConfig) -> Iterator[str]:
    for name, resolved in (("simulator", "simulator_kind"), ("prompts", "prompt_set")):  # where auto says the same
        if getattr(interpret.model_copy(update={name: "auto"}), resolved) == getattr(interpret, resolved):
            yield name
    if interpret.simulator_kind == "token_table":
        yield from OF_A_LANGUAGE_MODEL
    judges = {interpret.explainer, interpret.simulator_kind}
    if "token_table" in judges:  # explains, whoever simulates
        yield from OF_AN_EXPLAINER
    if not judges & {"transformers", "vllm"}:
        yield "dtype"
    if not judges & {"http", "http_numbers"}:
        yield from ("budget", "price_in", "price_out")


def _of_steer(steer: SteerConfig, has_features: bool) -> Iterator[str]:
    if not steer.edits and not steer.neurons:  # no such step; `neurons` says so
        yield from SteerConfig.model_fields.keys() - {"neurons"}
    elif steer.edits:
        yield from ("neurons", "features")
    elif not has_features:
        yield "features"
    if not steer.sample_tokens:
        yield from ("temperature", "top_k")
    elif not steer.temperature:  # the likeliest word is taken
        yield "top_k"
