"""All excerpts and all moments equal a brute-force oracle, by both protocols."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from pipeline.activations.job import plan_job
from pipeline.artifacts.records import Records, histogram_edges
from pipeline.artifacts.store import Store
from pipeline.artifacts.tokens import TokenSplit
from tests.unit import activation_cases as cases
from tests.unit import activation_oracle as oracle

COUNTS = (7, 6, 3)
TWELFTHS = [i / 12 for i in range(1, 12)]
SPANS = {16: (3000, [0.5, 0.9, 0.99, 0.999]), 4: (1600, TWELFTHS)}


@pytest.fixture(scope="module", params=["corrected", "paper"])
def made(request, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    asked = cases.settings(protocol=request.param)
    inputs = {"tokens": cases.tokens_artifact(store, 3333), "pretrain": cases.model_artifact(store)}
    records = Records(cases.extract(store, asked, inputs, workers=2))
    return store, asked, inputs, records, cases.all_activations(inputs, asked, store)


def test_every_excerpt_is_the_one_that_brute_force_finds(made):
    store, asked, inputs, records, activations = made
    split = TokenSplit(inputs["tokens"], "val")
    text = oracle.Text(32, tuple(split.document_starts().tolist()), split.n_tokens)
    job = plan_job(asked, inputs, cases.context(store))
    corpus = job.corpus()
    for site, values in activations.items():
        for neuron in range(values.shape[1]):
            record = records.neuron(site, neuron)
            for width, (asked_tokens, shares) in SPANS.items():
                n_rows = min(asked_tokens // 32, split.n_tokens // 32)
                column = values[: n_rows * 32, neuron]
                if asked.activations.protocol == "corrected":
                    pilot = np.concatenate([column[b * 128 : (b + 1) * 128] for b in job.pilot(corpus, n_rows)])
                    expected = oracle.corrected(column, pilot, text, site, neuron, width, shares, COUNTS, 3)
                else:
                    n_bins = 5 if width == 16 else 11
                    expected = oracle.paper(column, site, neuron, width, shares, n_bins, COUNTS, 3)
                found = {
                    key: [(e.start, e.center) for e in excerpts] for key, excerpts in record.excerpts[width].items()
                }
                assert found == expected, (site, neuron, width)
                for excerpts in record.excerpts[width].values():
                    for e in excerpts:
                        np.testing.assert_array_equal(e.activations, column[e.start : e.start + len(e.activations)])


def test_statistics_are_those_of_all_tokens(made):
    store, asked, inputs, records, activations = made
    job = plan_job(asked, inputs, cases.context(store))
    measured = job.pilot(job.corpus(), 93)
    assert (len(measured) == 24) == (asked.activations.protocol == "paper")
    for site, values in activations.items():
        table = records.statistics(site)
        exact = values[: 93 * 32].astype(np.float64)
        np.testing.assert_allclose(table["mean"].to_numpy(), exact.mean(0), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(table["variance"].to_numpy(), exact.var(0, ddof=1), rtol=1e-5, atol=1e-12)
        alive = exact.std(0) > 0
        assert not alive[0] and alive[2:].all()
        for name, function in (("skewness", scipy.stats.skew), ("kurtosis", scipy.stats.kurtosis)):
            own = table[name].to_numpy(zero_copy_only=False)
            expected = function(exact[:, alive]) + (3 if name == "kurtosis" else 0)
            np.testing.assert_allclose(own[alive], expected, rtol=2e-5)
            assert np.isnan(own[~alive]).all()
        pilot = np.concatenate([exact[b * 128 : (b + 1) * 128] for b in measured])
        own = np.array(table["histogram"].to_pylist())
        expected = [np.histogram(column, bins=[*histogram_edges(), np.inf])[0] for column in pilot.T]
        np.testing.assert_array_equal(own, expected)
        np.testing.assert_array_equal(table["maximum"].to_numpy(), exact.max(0))
        np.testing.assert_array_equal(table["fraction_nonzero"].to_numpy(), (exact != 0).mean(0))
