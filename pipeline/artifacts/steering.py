"""What steering did to next-word predictions, as an artifact.

- `effects.parquet`: the tokens that each edit promotes and suppresses most, and the likeliest ones under it.
- `doses.parquet`: what each edit and its controls do at multiples of its value.
- `lossless.parquet`: what is left of the logits when a unit is clamped to the value it has, and when its layer passes through
  a sparse autoencoder instead.
- `samples.json`: each edit's sample beside the plain one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts.artifact import Artifact

EFFECTS, DOSES, LOSSLESS, SAMPLES = "effects.parquet", "doses.parquet", "lossless.parquet", "samples.json"

# Which unit was edited and how; the same columns stand first in every table.
EDIT_FIELDS = {
    "edit": pa.int32(),  # number of the edit in this artifact
    "site": pa.string(),  # code-l0 for neurons, code-l0-16x for features
    "layer": pa.int32(),
    "neuron": pa.int32(),  # or the feature
    "how": pa.string(),
    "value": pa.float64(),
}
EFFECT_SCHEMA = pa.schema(
    EDIT_FIELDS
    | {
        "kind": pa.string(),  # promoted, suppressed: by change of logit; likely: by probability under the edit
        "rank": pa.int32(),
        "token": pa.int32(),
        "text": pa.string(),
        "logit_before": pa.float64(),
        "logit_after": pa.float64(),
        "probability_before": pa.float64(),
        "probability_after": pa.float64(),
    }
)
DOSE_SCHEMA = pa.schema(
    EDIT_FIELDS
    | {
        "role": pa.string(),  # steered, control
        "dose": pa.float64(),  # multiple of the edit's value
        "kl": pa.float64(),  # nats, KL(plain || edited) of the next token, mean over the prompt's positions
        # Of the tokens that this row's own unit promotes most on other prompts, over the mean of all tokens, at the last position
        "logit_change": pa.float64(),
        "probability": pa.float64(),  # of those tokens together, at the last position
    }
)
LOSSLESS_SCHEMA = pa.schema(
    {
        "site": pa.string(),
        "layer": pa.int32(),
        "neuron": pa.int32(),  # null: the whole layer through an autoencoder
        "what": pa.string(),  # clamp, delta (a feature set to its own value, error kept), splice
        "max_logit_change": pa.float64(),  # exactly 0.0 where nothing is lost
        "kl": pa.float64(),  # nats a position of the prompt
    }
)


def write_steering(
    folder: Path,
    effects: Iterable[Mapping[str, Any]],
    doses: Iterable[Mapping[str, Any]],
    lossless: Iterable[Mapping[str, Any]],
    samples: Mapping[str, Any],
) -> None:
    """`samples`: {"prompt", "plain", "steered": [{"edit", "site", "layer", "neuron", "how", "value", "text"}]}."""
    tables = ((EFFECTS, EFFECT_SCHEMA, effects), (DOSES, DOSE_SCHEMA, doses), (LOSSLESS, LOSSLESS_SCHEMA, lossless))
    for name, schema, rows in tables:
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=schema), folder / name)
    (folder / SAMPLES).write_text(json.dumps(samples, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_effects(artifact: Artifact) -> pa.Table:
    """A row an edit, kind and token (EFFECT_SCHEMA)."""
    return pq.read_table(artifact.file(EFFECTS))


def read_doses(artifact: Artifact) -> pa.Table:
    """A row an edit, role, unit and dose (DOSE_SCHEMA)."""
    return pq.read_table(artifact.file(DOSES))


def read_lossless(artifact: Artifact) -> pa.Table:
    """A row a unit or autoencoder (LOSSLESS_SCHEMA)."""
    return pq.read_table(artifact.file(LOSSLESS))


def read_samples(artifact: Artifact) -> dict[str, Any]:
    """{"prompt", "plain", "steered": [...]}, as `write_steering` was given it."""
    return json.loads(artifact.file(SAMPLES).read_text("utf-8"))
