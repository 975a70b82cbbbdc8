"""What judging a model will take, before anything is asked: calls counted exactly, tokens and price estimated."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.artifacts.records import quantile_bins
from pipeline.config import Config
from pipeline.interpret.excerpts import OUT_OF_CONTEXT_TOKENS, Pick, needed_selections
from pipeline.interpret.limits import scorable

# Tokens by the judge's tokenizer, measured with SmolLM2 on GPT-2 tokens of English and code, rounded up.
TOKENS_A_LINE = 5.2  # of a simulation: token, tab, "unknown", line break
TOKENS_A_SHOWN_TOKEN = {"own": 2.0, "openai": 5.5}  # of an explanation
HEAD_TOKENS = {"own": 360, "openai": 850}  # of a simulation: instruction and examples
EXPLAIN_HEAD_TOKENS = {"own": 330, "openai": 900}
EXPLANATION_TOKENS = 30


@dataclass(frozen=True)
class JudgePlan:
    """For one model. `tokens_in` counts what a server is sent; a local simulator reads heads and explanations only once."""

    n_neurons: int
    explanations: int
    simulations: int
    simulations_of_controls: int
    tokens_in: int
    tokens_out: int
    price: float  # of what is asked behind HTTP
    by_llm: bool


def judge_plan(config: Config) -> JudgePlan:
    """The calls to come for the neurons of a model and for the features of its autoencoders."""
    settings, prompts, kind = config.interpret, config.interpret.prompt_set, config.interpret.simulator_kind
    neurons = n_neurons(config)
    by_llm = kind != "token_table"
    explained = neurons if settings.explainer != "token_table" else 0
    controls = 2 * sum(min(n, settings.control_neurons) for n in _judged_of_sites(config)) if by_llm else 0
    simulated = neurons + controls if by_llm else 0
    explanations = passes_a_neuron = 0
    explaining, simulating = dict.fromkeys(("in", "out"), 0.0), dict.fromkeys(("in", "out"), 0.0)  # tokens
    for selection in needed_selections(scorable(config)):
        bins = quantile_bins(config.activations.protocol, selection.long)
        width = config.activations.window if selection.long else config.activations.window_short
        shown, passes = _count(selection.explain, bins), _count(selection.score, bins)
        lines = sum(
            _count((p,), bins) * (OUT_OF_CONTEXT_TOKENS if p.out_of_context else width) for p in selection.score
        )
        begun = HEAD_TOKENS[prompts] + EXPLANATION_TOKENS
        simulating["in"] += simulated * (passes * begun + lines * TOKENS_A_LINE)
        simulating["out"] += simulated * {"http": passes, "http_numbers": lines * TOKENS_A_LINE}.get(kind, 0)
        explaining["in"] += explained * (EXPLAIN_HEAD_TOKENS[prompts] + shown * width * TOKENS_A_SHOWN_TOKEN[prompts])
        explaining["out"] += explained * settings.max_explanation_tokens
        explanations += explained
        passes_a_neuron += passes
    paid = [explaining] * (settings.explainer == "http") + [simulating] * kind.startswith("http")
    price = sum(t["in"] * settings.price_in + t["out"] * settings.price_out for t in paid) / 1e6
    price = min(price, settings.budget) if settings.budget else price
    tokens_in, tokens_out = (int(explaining[way] + simulating[way]) for way in ("in", "out"))
    of_controls = controls * passes_a_neuron
    return JudgePlan(
        neurons, explanations, neurons * passes_a_neuron, of_controls, tokens_in, tokens_out, price, by_llm
    )


def n_neurons(config: Config) -> int:
    """Neurons and features that will be judged, all layers together."""
    return sum(_judged_of_sites(config))


def _judged_of_sites(config: Config) -> list[int]:
    most = config.interpret.neurons_per_layer
    return [min(most, size) if most else size for size in _site_sizes(config)]


def _site_sizes(config: Config) -> list[int]:
    """Neurons or features of every site: a layer's tap, or one autoencoder on it."""
    model, neurons, sae = config.model, config.activations, config.sae
    sizes = [_width(config, neurons.tap)] * _layers(model.n_layer, neurons.layers)
    kinds = {"relu": sae.l1, "jumprelu": sae.l0}.get(sae.variant, sae.k)  # one autoencoder a coefficient
    for expansion in sae.expansions:
        sizes += [expansion * _width(config, sae.tap)] * _layers(model.n_layer, sae.layers) * len(kinds)
    return sizes


def _width(config: Config, tap: str) -> int:
    return config.model.d_code if tap == "code" else config.model.d_model


def _layers(n_layer: int, layers: tuple[int, ...] | str) -> int:
    return n_layer if layers == "all" else len(layers)


def _count(picks: tuple[Pick, ...], bins: int) -> int:
    """Excerpts of a neuron."""
    return sum(len(pick.ranks) * (bins if pick.kind == "quantile" else 1) for pick in picks)
