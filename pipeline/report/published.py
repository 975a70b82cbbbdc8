"""The paper's numbers, to be drawn beside ours as hollow marks.

*Source:* Bai & Ma, "Improving Neuron-level Interpretability with White-box Language Models", CPAL 2025 (PMLR 280:810-836), its
project page and released notebooks. Losses are digitised from the page's figure (about 0.02 nats), Random-only layer scores
too (0.1 points; they reproduce the printed means). Scores are times 100, layer 0 first. For six and twelve layers the paper's
figures, means and variances leave out the last layer; where it is known it stands here, as the last of the layers.
"""

from __future__ import annotations

from crate_model.config import ModelConfig

LABEL = "Bai & Ma 2025"
# Validation loss on the Pile, nats a token: (layers, width, heads) -> loss.
SHAPES = {1: (128, 4), 2: (128, 4), 3: (128, 4), 6: (768, 12), 12: (768, 12)}
LOSS = {
    "crate": {1: 4.06, 2: 3.55, 3: 3.46, 6: 2.36, 12: 2.27},
    "gpt2": {1: 3.83, 2: 3.23, 3: 3.11, 6: 2.16, 12: 2.13},
}
# metric -> architecture -> layers -> (mean, variance), as printed.
TABLE = {
    "top_and_random": {
        "crate": {1: (3.9, 0), 2: (8.05, 0.06), 3: (9.1, 0.26), 6: (7.96, 2.29), 12: (6.8, 7.09)},
        "gpt2": {1: (8.8, 0), 2: (4.2, 0.01), 3: (3.57, 7.51), 6: (5.4, 20.85), 12: (6.34, 11.35)},
    },
    "random_only": {
        "crate": {1: (4.8, 0), 2: (6.95, 1.1), 3: (8.43, 1.2), 6: (6.36, 1.87), 12: (5.12, 2.83)},
        "gpt2": {1: (8.9, 0), 2: (1.95, 0.12), 3: (1.37, 1.93), 6: (3.14, 18.39), 12: (2.67, 7.48)},
    },
    "anthropic": {
        "crate": {1: (10.1, 0), 2: (11.35, 0.0), 3: (11.23, 1.14), 6: (10.4, 2.01), 12: (8.88, 18.3)},
        "gpt2": {1: (14.2, 0), 2: (10.2, 0.25), 3: (9.2, 19.21), 6: (8.52, 32.56), 12: (8.65, 24.65)},
    },
}
# metric -> architecture -> layers -> scores by layer.
LAYERS: dict[str, dict[str, dict[int, tuple[float, ...]]]] = {
    "top_and_random": {
        "crate": {
            1: (3.9,),
            2: (7.8, 8.3),
            3: (9.6, 9.3, 8.4),
            6: (10.5, 7.4, 5.8, 8.0, 8.1, 5.7),
            12: (13.6, 8.2, 6.7, 5.4, 5.0, 7.2, 5.1, 5.1, 3.6, 5.5, 9.4, 5.3),
        },
        "gpt2": {
            1: (8.8,),
            2: (4.3, 4.1),
            3: (7.3, 0.8, 2.6),
            6: (13.7, 5.2, 1.9, 0.6, 5.6, 6.9),
            12: (15.3, 8.0, 6.4, 4.2, 3.2, 4.0, 4.7, 3.9, 3.9, 7.2, 8.9, 8.0),
        },
    },
    "random_only": {
        "crate": {
            1: (4.8,),
            2: (8.0, 5.9),
            3: (9.0, 9.4, 6.9),
            6: (8.2, 5.1, 4.6, 6.4, 7.5),
            12: (9.0, 4.8, 4.4, 4.7, 4.0, 4.7, 3.0, 4.3, 4.8, 4.6, 8.0),
        },
        "gpt2": {
            1: (8.9,),
            2: (2.3, 1.6),
            3: (3.1, -0.3, 1.3),
            6: (11.5, 2.1, 0.8, -0.6, 1.9),
            12: (11.2, 2.3, 1.9, 1.4, 1.4, 1.8, 2.7, 1.0, 1.6, 1.8, 2.3),
        },
    },
    "anthropic": {
        "crate": {
            1: (10.1,),
            2: (11.3, 11.4),
            3: (12.6, 10.0, 11.1),
            6: (13.1, 10.5, 9.7, 9.2, 9.5, 3.3),
            12: (20.2, 11.1, 10.1, 8.2, 5.8, 9.2, 6.4, 4.6, 3.5, 8.1, 10.5, 0.6),
        },
        "gpt2": {  # twelve layers: of a checkpoint at half the training, as committed
            1: (14.2,),
            2: (9.7, 10.7),
            3: (14.8, 4.1, 8.7),
            6: (18.5, 10.7, 4.0, 2.6, 6.8, 5.3),
            12: (21.1, 15.9, 9.8, 6.0, 4.9, 6.3, 7.4, 5.0, 4.8, 7.2, 6.7, 5.4),
        },
    },
}
# metric -> architecture -> layers -> scores of 16x SAE features by layer.
SAE_LAYERS: dict[str, dict[str, dict[int, tuple[float, ...]]]] = {
    "top_and_random": {"gpt2": {1: (5.5,), 2: (7.6, 3.5), 3: (9.4, 4.9, 3.5)}},
    "random_only": {"gpt2": {1: (2.5,), 2: (2.6, 1.9), 3: (2.8, 2.4, 1.8)}},
    "anthropic": {
        "crate": {1: (17.9,), 2: (21.7, 12.4), 3: (19.3, 18.4, 11.6)},
        "gpt2": {1: (15.4,), 2: (23.5, 10.7), 3: (25.5, 15.1, 10.1)},  # 23.5: of 14 features only
    },
}
LAYERS_PLOTTED = {6: 5, 12: 11}  # of the deep models, the paper plots and averages these many


def model(architecture: str, n_layer: int) -> ModelConfig:
    """The shape of a published model."""
    d_model, n_head = SHAPES[n_layer]
    return ModelConfig(architecture=architecture, n_layer=n_layer, d_model=d_model, n_head=n_head)  # type: ignore[arg-type]


def plotted(metric: str, architecture: str, n_layer: int) -> tuple[float, ...]:
    """The layer scores that the paper's figure shows, and of which its means and variances are taken."""
    layers = LAYERS.get(metric, {}).get(architecture, {}).get(n_layer, ())
    return layers[: LAYERS_PLOTTED.get(n_layer, len(layers))]
