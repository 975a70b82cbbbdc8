"""Sparse autoencoders as an artifact: one folder a site, and the measures of all of them.

A *site* is one autoencoder: a tap of a layer, a width and, where several are trained, a sparsity. Its name is its folder:
`code-l0-16x`, or `code-l0-16x-k64` where several sparsities stand side by side.

- `<site>/config.json`, `<site>/model.safetensors`: the autoencoder.
- `measures.parquet`: a row a site (MEASURE_SCHEMA). `densities.parquet`: how often each feature fires.
- `curves.parquet`: the course of the training.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts.artifact import Artifact
from pipeline.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from crate_model.config import ModelConfig
    from crate_model.sae import SparseAutoencoder

CONFIG, WEIGHTS = "config.json", "model.safetensors"
RARE_FREQUENCY = 1e-5  # the released code's "rare" line
MEASURES, DENSITIES, CURVES = "measures.parquet", "densities.parquet", "curves.parquet"

MEASURE_SCHEMA = pa.schema(
    {
        "site": pa.string(),
        "layer": pa.int32(),
        "tap": pa.string(),
        "expansion": pa.int32(),
        "variant": pa.string(),
        "sparsity": pa.float64(),  # the coefficient or k it was trained with
        "n_features": pa.int32(),
        "n_tokens": pa.int64(),  # for l0, unexplained, dead, rare and the densities
        "l0": pa.float64(),  # mean active features a token
        "input_l0": pa.float64(),  # mean non-zero entries of the tap itself a token
        "unexplained": pa.float64(),  # fraction of variance unexplained: squared error over squared distance from the mean
        "dead": pa.float64(),  # fraction of features that never fired
        "rare": pa.float64(),  # fraction below RARE_FREQUENCY: `dead` once more where few tokens were read
        "n_loss_tokens": pa.int64(),  # for everything below
        "loss_clean": pa.float64(),  # nats a token
        "loss_spliced": pa.float64(),  # with the tap replaced by its reconstruction
        "loss_zero": pa.float64(),  # with the tap set to zero
        "loss_mean": pa.float64(),  # with the tap set to its mean over the measured tokens
        "recovered_zero": pa.float64(),  # (loss_zero - loss_spliced) / (loss_zero - loss_clean); null if that is no loss
        "recovered_mean": pa.float64(),
        "kl": pa.float64(),  # nats a token: KL(clean || spliced) of the next-token distributions
    }
)
DENSITY_SCHEMA = pa.schema(
    {
        "site": pa.string(),
        "feature": pa.int32(),
        "n_fired": pa.int64(),  # of the measures' n_tokens
        "mean_active": pa.float64(),  # where it fires
        "maximum": pa.float64(),
    }
)
CURVE_SCHEMA = pa.schema(
    {
        "site": pa.string(),
        "step": pa.int64(),
        "tokens": pa.int64(),
        "loss": pa.float64(),
        "reconstruction": pa.float64(),
        "penalty": pa.float64(),
        "l0": pa.float64(),
        "silent": pa.float64(),  # fraction of features that have not fired since counting began
        "learning_rate": pa.float64(),
        "n_resampled": pa.int64(),
    }
)


@dataclass(frozen=True)
class Site:
    """One autoencoder: `tap` is the point within the layer (`code`, `out`), `expansion` its features over the tap's width."""

    name: str
    layer: int
    tap: str
    expansion: int
    variant: str
    sparsity: float  # L1 or L0 coefficient, or k

    @property
    def point(self) -> str:
        """The tap's name in the model."""
        return f"blocks.{self.layer}.{self.tap}"


def tap_width(model: ModelConfig, tap: str) -> int:
    """Entries of a token's vector at a tap within a block."""
    return model.d_code if tap.startswith("code") else model.d_model


def sites(artifact: Artifact) -> list[Site]:
    """The autoencoders of an sae artifact, in the order they were planned."""
    return [Site(**fields) for fields in artifact.summary["sites"]]


def find_site(artifact: Artifact, name: str) -> Site:
    """Raises ConfigError naming the sites there are."""
    known = sites(artifact)
    for site in known:
        if site.name == name:
            return site
    raise ConfigError(
        f"no sparse autoencoder {name!r} here", fix="There are: " + ", ".join(site.name for site in known)
    )


def load_sae(artifact: Artifact, site: Site | str) -> SparseAutoencoder:
    """The autoencoder of a site, in evaluation mode, float32, on the CPU. Raises ArtifactError when its files are torn."""
    name = site if isinstance(site, str) else site.name
    return read_sae(artifact.file(f"{name}/{CONFIG}"), artifact.file(f"{name}/{WEIGHTS}"))


def read_sae(config_path: Path, weights_path: Path) -> SparseAutoencoder:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from crate_model.config import SAEConfig
    from crate_model.sae import sae_from_tensors

    try:
        fields = json.loads(config_path.read_text("utf-8"))
        names = [field.name for field in dataclasses.fields(SAEConfig)]
        return sae_from_tensors(SAEConfig(**{name: fields[name] for name in names}), load_file(weights_path))
    except (ValueError, KeyError, SafetensorError) as error:
        raise ArtifactError(
            f"{config_path.parent} is no sparse autoencoder of this program: {error}",
            fix="Delete its artifact and run again: it is trained anew.",
        ) from error


def described(folder: Path) -> tuple[Site, dict[str, Any]]:
    """The site of an autoencoder that lies in `folder`, and what it was trained on. Raises ConfigError."""
    try:
        fields = json.loads((folder / CONFIG).read_text("utf-8"))
        return Site(**fields["site"]), dict(fields["trained_on"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder} holds no sparse autoencoder: {type(error).__name__}: {error}",
            fix=f"Give a site's folder of an sae artifact ({CONFIG}, {WEIGHTS}), or a SAELens folder.",
        ) from error


def write_sae(folder: Path, site: Site, sae: SparseAutoencoder, provenance: Mapping[str, Any]) -> None:
    """Write an autoencoder to `folder/<site>`; `provenance` says on which model it was trained."""
    from safetensors.torch import save_file

    (folder / site.name).mkdir(parents=True, exist_ok=True)
    fields = asdict(sae.config) | {"site": asdict(site), "trained_on": dict(provenance)}
    (folder / site.name / CONFIG).write_text(json.dumps(fields, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in sae.state_dict().items()}
    save_file(weights, folder / site.name / WEIGHTS)


def write_tables(folder: Path, measures: Iterable[Mapping[str, Any]], densities: pa.Table, curves: pa.Table) -> None:
    pq.write_table(pa.Table.from_pylist(list(measures), schema=MEASURE_SCHEMA), folder / MEASURES)
    pq.write_table(densities.cast(DENSITY_SCHEMA), folder / DENSITIES)
    pq.write_table(curves.cast(CURVE_SCHEMA), folder / CURVES)


def read_measures(artifact: Artifact) -> pa.Table:
    """A row a site (MEASURE_SCHEMA)."""
    return pq.read_table(artifact.file(MEASURES))


def read_densities(artifact: Artifact, site: str | None = None) -> pa.Table:
    """A row a feature (DENSITY_SCHEMA), of one site if asked."""
    return pq.read_table(artifact.file(DENSITIES), filters=[("site", "==", site)] if site else None)


def read_curves(artifact: Artifact) -> pa.Table:
    """A row a site and logged step (CURVE_SCHEMA)."""
    return pq.read_table(artifact.file(CURVES))
