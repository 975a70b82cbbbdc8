"""The yardstick of bench_activations.py: neurons' records made the plain way, as the published recipe reads.

For each layer a pass of its own over the text, all of the layer's activations in memory, and for every neuron a full sort,
windows cut one by one, tokens decoded one by one, and a JSON file. Twice: long excerpts from all rows, short ones from a tenth
of them.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

OPENAI = (32, [0, 0.5, 0.9, 0.99, 0.999, 1])
ANTHROPIC = (4, [i / 12 for i in range(12)])


def make_records(
    model: Any, split: Any, layers: range, n_rows: int, n_rows_short: int, strings: list[str], folder: Path
) -> None:
    for layer in layers:
        for rows, (half, edges), name in ((n_rows, OPENAI, "openai"), (n_rows_short, ANTHROPIC, "anthropic")):
            ids, activations = read_layer(model, split, layer, rows)
            (folder / name / str(layer)).mkdir(parents=True, exist_ok=True)
            for neuron in range(activations.shape[1]):
                record = neuron_record(ids, activations, layer, neuron, half, edges, strings)
                (folder / name / str(layer) / f"{neuron}.json").write_text(json.dumps(record))


def read_layer(model: Any, split: Any, layer: int, n_rows: int, batch_rows: int = 8) -> tuple[Any, Any]:
    """Ids (tokens,) and activations (tokens, neurons) of one layer; the model gives the last position's logits, as published."""
    found: list[Any] = []
    hook = model.blocks[layer].feedforward.code.register_forward_hook(lambda _m, _i, value: found.append(value))
    n_ctx = model.config.n_ctx
    rows = [torch.from_numpy(split.rows([row * n_ctx], n_ctx)[0]) for row in range(n_rows)]
    with torch.no_grad():
        for first in range(0, n_rows, batch_rows):
            model.head(model.hidden(torch.stack(rows[first : first + batch_rows]))[:, -1:])
    hook.remove()
    return torch.cat(rows), torch.cat(found).flatten(0, 1)


def neuron_record(
    ids: Any, activations: Any, layer: int, neuron: int, half: int, edges: list[float], strings: list[str]
) -> dict[str, Any]:
    values = activations[:, neuron]
    mean = values.mean()
    order = torch.argsort(values)
    bins = [
        np.random.choice(order[int(low * len(order)) : int(high * len(order))], 20, replace=False)
        for low, high in itertools.pairwise(edges)
    ]

    def excerpts(centres: Any) -> list[dict[str, Any]]:
        told = []
        for centre in centres:
            window = slice(max(0, int(centre) - half), min(int(centre) + half, len(ids)))
            tokens = [strings[token] for token in ids[window].tolist()]
            told.append({"tokens": tokens, "activations": values[window].tolist()})
        return told

    return {
        "neuron_id": {"layer_index": layer, "neuron_index": neuron},
        "random_sample": excerpts(np.random.randint(0, len(ids), 50)),
        "random_sample_by_quantile": [excerpts(chosen) for chosen in bins],
        "most_positive_activation_records": excerpts(order[-50:].flip(0)),
        "quantile_boundaries": [float(values[chosen].mean()) for chosen in bins],
        "mean": float(mean),
        "variance": float(values.var()),
        "skewness": float(((values - mean) ** 3).mean()),
        "kurtosis": float(((values - mean) ** 4).mean()),
    }
