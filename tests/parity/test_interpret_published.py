"""From the published scores of layers our statistics make the published table: every mean and variance, to its rounding.

*Source:* layer scores as stored in the released notebooks (random-only: read off the figure), table as on the project page.
A layer score in the last place for six and twelve layers is the one that the published figure and means leave out.
"""

from pathlib import Path

import pytest

from pipeline.interpret.statistics import mean_and_variance, paper_mean_and_variance

ALL = {  # (metric, layers, model): scores of all layers, times 100
    ("top_and_random", 1, "crate"): "3.9",
    ("top_and_random", 1, "gpt2"): "8.8",
    ("top_and_random", 2, "crate"): "7.8 8.3",
    ("top_and_random", 2, "gpt2"): "4.3 4.1",
    ("top_and_random", 3, "crate"): "9.6 9.3 8.4",
    ("top_and_random", 3, "gpt2"): "7.3 0.8 2.6",
    ("top_and_random", 6, "crate"): "10.5 7.4 5.8 8.0 8.1 5.7",
    ("top_and_random", 6, "gpt2"): "13.7 5.2 1.9 0.6 5.6 6.9",
    ("top_and_random", 12, "crate"): "13.6 8.2 6.7 5.4 5.0 7.2 5.1 5.1 3.6 5.5 9.4 5.3",
    ("top_and_random", 12, "gpt2"): "15.3 8.0 6.4 4.2 3.2 4.0 4.7 3.9 3.9 7.2 8.9 8.0",
    ("anthropic", 1, "crate"): "10.1",
    ("anthropic", 1, "gpt2"): "14.2",
    ("anthropic", 2, "crate"): "11.3 11.4",
    ("anthropic", 2, "gpt2"): "9.7 10.7",
    ("anthropic", 3, "crate"): "12.6 10.0 11.1",
    ("anthropic", 3, "gpt2"): "14.8 4.1 8.7",
    ("anthropic", 6, "crate"): "13.1 10.5 9.7 9.2 9.5 3.3",
    ("anthropic", 6, "gpt2"): "18.5 10.7 4.0 2.6 6.8 5.3",
    ("anthropic", 12, "crate"): "20.2 11.1 10.1 8.2 5.8 9.2 6.4 4.6 3.5 8.1 10.5 0.6",
    ("anthropic", 12, "gpt2"): "21.1 15.9 9.8 6.0 4.9 6.3 7.4 5.0 4.8 7.2 6.7 5.4",
    ("random_only", 1, "crate"): "4.8",
    ("random_only", 1, "gpt2"): "8.9",
    ("random_only", 2, "crate"): "8.0 5.9",
    ("random_only", 2, "gpt2"): "2.3 1.6",
    ("random_only", 3, "crate"): "9.0 9.4 6.9",
    ("random_only", 3, "gpt2"): "3.1 -0.3 1.3",
}
WITHOUT_LAST = {
    ("random_only", 6, "crate"): "8.2 5.1 4.6 6.4 7.5",
    ("random_only", 6, "gpt2"): "11.5 2.1 0.8 -0.6 1.9",
    ("random_only", 12, "crate"): "9.0 4.8 4.4 4.7 4.0 4.7 3.0 4.3 4.8 4.6 8.0",
    ("random_only", 12, "gpt2"): "11.2 2.3 1.9 1.4 1.4 1.8 2.7 1.0 1.6 1.8 2.3",
}
TABLE = {  # metric -> layers -> mean CRATE, mean GPT-2, variance CRATE, variance GPT-2
    "top_and_random": {
        1: (3.9, 8.8, 0, 0),
        2: (8.05, 4.2, 0.06, 0.01),
        3: (9.1, 3.57, 0.26, 7.51),
        6: (7.96, 5.4, 2.29, 20.85),
        12: (6.8, 6.34, 7.09, 11.35),
    },
    "random_only": {
        1: (4.8, 8.9, 0, 0),
        2: (6.95, 1.95, 1.1, 0.12),
        3: (8.43, 1.37, 1.2, 1.93),
        6: (6.36, 3.14, 1.87, 18.39),
        12: (5.12, 2.67, 2.83, 7.48),
    },
    "anthropic": {
        1: (10.1, 14.2, 0, 0),
        2: (11.35, 10.2, 0.0, 0.25),
        3: (11.23, 9.2, 1.14, 19.21),
        6: (10.4, 8.52, 2.01, 32.56),
        12: (8.88, 8.65, 18.3, 24.65),
    },
}
DOCUMENT = Path(__file__).parents[2] / "docs" / "interpretability.md"


def reproduced(metric: str, n_layer: int, model: str) -> tuple[float, float]:
    """Mean and variance in points and points squared."""
    key = (metric, n_layer, model)
    text = ALL.get(key) or WITHOUT_LAST[key]
    scores = [float(score) / 100 for score in text.split()]
    mean, variance = paper_mean_and_variance(scores) if key in ALL else mean_and_variance(scores)
    assert mean is not None and variance is not None
    return 100 * mean, 10_000 * variance


@pytest.mark.parametrize("n_layer", [1, 2, 3, 6, 12])
@pytest.mark.parametrize("metric", TABLE)
def test_every_mean_and_variance_of_the_table(metric, n_layer):
    crate, gpt2, variance_crate, variance_gpt2 = TABLE[metric][n_layer]
    for model, mean, variance in (("crate", crate, variance_crate), ("gpt2", gpt2, variance_gpt2)):
        ours = reproduced(metric, n_layer, model)
        assert ours[0] == pytest.approx(mean, abs=0.0051)
        assert ours[1] == pytest.approx(variance, abs=0.051 if variance in (1.1, 1.2, 18.3) else 0.0051)


def test_the_document_shows_the_table_beside_ours():
    text = DOCUMENT.read_text("utf-8")
    for metric, rows in TABLE.items():
        for n_layer, published in rows.items():
            ours = [reproduced(metric, n_layer, model) for model in ("crate", "gpt2")]
            shown = [f"{v:.2f}" for v in (ours[0][0], ours[1][0], ours[0][1], ours[1][1])]
            cells = [f"{there:g} → {here}" for there, here in zip(published, shown, strict=True)]
            assert "| " + " | ".join([f"{n_layer}L", *cells]) + " |" in text, (metric, n_layer, cells)


def test_what_the_last_layer_changes():
    """All layers, as `corrected` counts them, turn the sign of the twelve-layer comparison by the Anthropic metric."""
    means = {}
    for model in ("crate", "gpt2"):
        scores = [float(score) / 100 for score in ALL["anthropic", 12, model].split()]
        means[model] = [mean_and_variance(scores)[0], paper_mean_and_variance(scores)[0]]
    assert means["crate"][1] > means["gpt2"][1] and means["crate"][0] < means["gpt2"][0]
