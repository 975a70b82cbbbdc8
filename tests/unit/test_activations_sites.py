"""What may be read through the one path: either architecture's neurons, any tap, the features of sparse autoencoders."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from crate_model.config import SAEConfig
from crate_model.sae import SparseAutoencoder
from pipeline.activations.export import export_neuron_records
from pipeline.activations.quantiles import edge_keys, edge_values, level_counts, octaves, order_keys
from pipeline.activations.stage import track
from pipeline.artifacts.records import Records, histogram_edges
from pipeline.artifacts.saes import Site, write_sae
from pipeline.artifacts.store import Store
from pipeline.artifacts.tokens import TokenSplit
from tests.unit import activation_cases as cases


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def published_saes(store):
    making = store.making_folder("sae")
    sites = []
    for layer in range(2):
        torch.manual_seed(layer)
        site = Site(f"code-l{layer}-2x", layer, "code", 2, "topk", 4.0)
        write_sae(making, site, SparseAutoencoder(SAEConfig(32, 64, "topk", k=4)).eval(), {})
        sites.append(vars(site))
    return cases.publish(store, "sae", making, {"sites": sites})


def test_features_of_autoencoders_are_neurons_too(store):
    inputs = {"tokens": cases.tokens_artifact(store, 2000), "pretrain": cases.model_artifact(store, "gpt2")}
    inputs["sae"] = published_saes(store)
    asked = cases.settings(tokens=1600)
    artifact = cases.extract(store, asked, inputs)
    records = Records(artifact)
    assert records.sites == ["code-l0-2x", "code-l1-2x"] and records.n_neurons("code-l1-2x") == 64
    values = cases.all_activations(inputs, asked, store)["code-l1-2x"]
    assert (values != 0).sum(axis=1).max() <= 4
    record = records.neuron("code-l1-2x", int(values.max(0).argmax()))
    top = record.excerpts[16]["top", -1][0]
    assert top.activations[top.center] == values[:, record.neuron].max() == record.statistics["maximum"]


@pytest.mark.parametrize("tap", ["out", "residual_mid"])
def test_a_tap_that_may_be_negative(store, tap):
    inputs = {"tokens": cases.tokens_artifact(store, 2000), "pretrain": cases.model_artifact(store)}
    asked = cases.settings(tap=tap, layers=(1,), tokens=1600, quantile_tokens=1600)
    records = Records(cases.extract(store, asked, inputs))
    values = cases.all_activations(inputs, asked, store)[f"{tap}-l1"].astype(np.float64)
    table = records.statistics(1)
    assert values.min() < 0
    np.testing.assert_allclose(table["mean"].to_numpy(), values.mean(0), rtol=1e-4, atol=1e-6)
    edges = np.array(table["edges"].to_pylist())
    for column, share in enumerate((0.5, 0.9, 0.99, 0.999)):
        below = (values < edges[:, column]).mean(0)
        np.testing.assert_allclose(below, share, atol=0.02)
    for record in records.iter_layer(1):
        for bin_ in range(5):
            lower, upper = ([-np.inf, *record.statistics["edges"], np.inf])[bin_ : bin_ + 2]
            for e in record.excerpts[16].get(("quantile", bin_), []):
                assert lower <= e.activations[e.center] <= upper


def test_a_half_precision_pass_has_statistics_of_the_values_it_gives(store):
    inputs = {"tokens": cases.tokens_artifact(store, 2000), "pretrain": cases.model_artifact(store)}
    asked = cases.settings(precision="bf16", tokens=1600)
    records = Records(cases.extract(store, asked, inputs))
    values = cases.all_activations(inputs, asked, store)["code-l1"]
    assert values.dtype == np.float32
    assert not np.array_equal(values, cases.all_activations(inputs, cases.settings(tokens=1600), store)["code-l1"])
    table, exact = records.statistics(1), values.astype(np.float64)
    np.testing.assert_allclose(table["mean"].to_numpy(), exact.mean(0), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(table["variance"].to_numpy(), exact.var(0, ddof=1), rtol=1e-5, atol=1e-12)
    np.testing.assert_array_equal(table["maximum"].to_numpy(), exact.max(0))


def test_quantiles_among_zeros_and_beyond(store):
    values = torch.relu(torch.randn(50_000, 3) + torch.tensor([0.0, -2.0, -9.0]))
    values[:, 0] *= 1e3
    counts = level_counts(values, signed=False).numpy()
    assert (counts.sum(1) == 50_000).all()
    shares = (0.25, 0.5, 0.9, 0.99, 0.999)
    keys = edge_keys(counts, shares, signed=False)
    hashes = torch.randint(-(2**31), 2**31 - 1, values.shape, dtype=torch.int32)
    order = order_keys(values, hashes).numpy()
    for column, share in enumerate(shares):
        # A level is a sixteenth of a power of two: 6 % of the activation, of which straight lines leave a tenth or so.
        np.testing.assert_allclose((order < keys[:, column]).mean(0), share, atol=0.006)
    exact = np.quantile(values[:, 0].numpy(), shares)
    np.testing.assert_allclose(edge_values(keys)[0, 2:], exact[2:], rtol=0.02)
    assert (edge_values(keys)[2] == 0).all()  # a dead neuron
    histogram, edges = octaves(counts, signed=False), histogram_edges()
    assert histogram.shape[1] == len(edges)
    expected = np.histogram(values[:, 0].numpy().astype(np.float64), bins=[*edges, np.inf])[0]
    np.testing.assert_array_equal(histogram[0], expected)


def test_order_keys_follow_the_floats():
    values = torch.tensor([-torch.inf, -3.5, -1e-30, -0.0, 0.0, 2e-38, 1e-30, 0.7, 0.7000002, 3e38])[:, None]
    keys = order_keys(values, torch.arange(10, dtype=torch.int32)[:, None])[:, 0].tolist()
    assert keys[:3] == sorted(keys[:3]) and keys[5:] == sorted(keys[5:])
    assert keys[2] < 0 and all(0 <= zero < 1 << 22 for zero in keys[3:5]) and keys[5] >= 1 << 22


def test_exported_records_hold_what_the_table_holds(store, tmp_path):
    inputs = {"tokens": cases.tokens_artifact(store, 2000), "pretrain": cases.model_artifact(store)}
    records = Records(cases.extract(store, cases.settings(), inputs))
    split, strings = TokenSplit(inputs["tokens"], "val"), [f"<{i}>" for i in range(97)]
    assert export_neuron_records(records, split, strings, tmp_path / "json", 1, [0, 5]) == 2
    dead, other = (json.loads((tmp_path / "json" / "1" / f"{i}.json").read_text()) for i in (0, 5))
    assert dead["skewness"] is None and dead["mean"] == 0
    best = records.neuron(1, 5).excerpts[16]["top", -1][0]
    told = other["most_positive_activation_records"][0]
    assert told["tokens"] == [f"<{i}>" for i in split.read(best.start, 16)]
    assert np.float32(told["activations"]).tolist() == best.activations.tolist()
    assert len(other["random_sample_by_quantile"]) == 5 and len(other["quantile_boundaries"]) == 4
    assert export_neuron_records(records, split, strings, tmp_path / "all", 0, width=4) == 32


def test_what_the_tracker_hears(store, monkeypatch):
    heard = []

    class Notes:
        def metrics(self, values, step):
            heard.append((values, step))

        def close(self):
            heard.append("closed")

    context = cases.context(store)
    monkeypatch.setattr(type(context.tracker), "open", lambda self: Notes())
    track({"sites": {"code-l3": {"layer": 3, "sparsity": 0.9, "dead": 0.1}}}, context)
    assert heard == [({"activations/code/sparsity": 0.9, "activations/code/dead": 0.1}, 3), "closed"]
