"""Room that a model takes, by closed forms: memory of a GPU while it is trained, and bytes in the store."""

from __future__ import annotations

from crate_model.config import ModelConfig
from crate_model.flops import activation_bytes, count_parameters
from pipeline.activations.corpus import spans
from pipeline.activations.wanted import SPARE
from pipeline.artifacts.saes import tap_width
from pipeline.config import ActivationsConfig, Config
from pipeline.sae.planned import planned_sites

# Bytes a parameter: weights, gradients (of the backward pass, and summed in float32), and what the optimizer keeps (float32
# master weights where the model's own are shorter, two moments). *Source:* `pretrain/engine.py`; Rajbhandari et al. 2020.
HALF, FULL = (2, 2 + 4, 4 + 8), (4, 4, 8)
ZERO_STAGES = (0, 1, 2, 3)
KEY_BYTES, ACTIVATION_BYTES = 8, 4
STATE = 3  # float32 copies: weights and two moments. *Source:* `pretrain/resume.py`


def gpu_bytes(model: ModelConfig, precision: str, stage: int, workers: int, windows: int = 1) -> int:
    """Of each GPU at the peak of a step of `windows` a GPU: ZeRO shares out the optimizer, then gradients, then weights.

    Without what libraries and fragmentation take: one or two GB on a GPU.
    """
    weights, gradients, optimizer = FULL if precision == "fp32" else HALF
    kept = weights / (workers if stage >= 3 else 1) + gradients / (workers if stage >= 2 else 1)
    a_parameter = kept + optimizer / (workers if stage >= 1 else 1)
    activations = activation_bytes(model, windows, bytes_per_value=4 if precision == "fp32" else 2)
    return round(a_parameter * count_parameters(model).total) + activations


def stored_bytes(config: Config) -> dict[str, int]:
    """Of one model's artifacts by stage, uncompressed, and of what a training keeps to go on from until it is done."""
    model, read, recipe = config.model, config.activations, config.pretrain
    weights = 4 * count_parameters(model).total
    steps = recipe.total_tokens // recipe.batch_tokens
    kept = steps.bit_length() if recipe.keep_log_spaced else 0
    resumed = 0 if recipe.checkpoint else config.runtime.keep_checkpoints + 1  # while one more is written
    a_neuron = ACTIVATION_BYTES * sum(
        (read.top + read.random + span.n_bins * read.per_quantile) * span.width for span in spans(read, 0, 0)
    )
    layers = range(model.n_layer) if read.layers == "all" else read.layers
    sites = planned_sites(config.sae, model)
    features = [site.expansion * tap_width(model, site.tap) for site in sites]
    widths = [tap_width(model, site.tap) for site in sites]
    return {
        "pretrain": weights * (1 + kept),
        "training_checkpoints": STATE * weights * resumed,
        "activations": a_neuron * len(layers) * tap_width(model, read.tap),
        "sae": sum(4 * (2 * n * width + n + width) for n, width in zip(features, widths, strict=True)),
        "features": a_neuron * sum(features),
    }


def part_bytes(read: ActivationsConfig, neurons: int) -> int:
    """What is left of a shard for so many neurons: candidates for excerpts, a key and a width of activations each."""
    spare = SPARE if read.protocol == "corrected" else 1
    return neurons * sum(
        (read.top + spare * (read.random + span.n_bins * read.per_quantile))
        * (KEY_BYTES + ACTIVATION_BYTES * span.width)
        for span in spans(read, 0, 0)
    )
