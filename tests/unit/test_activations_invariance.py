"""The same bytes for any number of workers, any division into shards and any order of arrival; and what is invariant about it."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crate_model.ops import precision
from pipeline.activations import extract, side_by_side
from pipeline.activations import job as jobs
from pipeline.activations.keys import EMPTY, NONE
from pipeline.activations.moments import Moments, MomentsTree
from pipeline.activations.priority import name_hashes, positions_of, priorities, token_hashes
from pipeline.activations.reservoir import Excerpts, Reservoir
from pipeline.activations.scan import statistics
from pipeline.activations.side_by_side import Group
from pipeline.activations.sites import Site
from pipeline.artifacts.manifest import sha256_of
from pipeline.artifacts.records import Records
from pipeline.artifacts.store import Store
from pipeline.artifacts.tokens import TokenSplit
from tests.unit import activation_cases as cases


@pytest.mark.parametrize("protocol", ["corrected", "paper"])
def test_records_are_the_same_bytes_for_1_2_and_5_workers_in_any_order(protocol, tmp_path):
    store = Store(tmp_path)
    asked = cases.settings(protocol=protocol, tokens=2400, tokens_short=1000, top=5, random=5)
    inputs = {"tokens": cases.tokens_artifact(store, 2500), "pretrain": cases.model_artifact(store, "gpt2")}
    made = []
    for workers, order in ((1, None), (2, [1, 0]), (5, [3, 0, 4, 2, 1])):
        artifact = cases.extract(store, asked, inputs, workers, order, fingerprint=str(workers) * 32)
        made.append([sha256_of(artifact.file(name)) for name in ("neurons.parquet", "excerpts.parquet")])
    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize("protocol", ["corrected", "paper"])
def test_records_are_the_same_bytes_however_layers_lie_side_by_side(protocol, tmp_path, monkeypatch):
    store = Store(tmp_path)
    asked = cases.settings(protocol=protocol, tokens=2400, tokens_short=1000, top=5, random=5)
    inputs = {"tokens": cases.tokens_artifact(store, 2500), "pretrain": cases.model_artifact(store, n_layer=3)}
    made = []
    for size in (1, 2, 3):
        monkeypatch.setattr(extract, "groups_of", partial(groups_of_size, size))
        artifact = cases.extract(store, asked, inputs, fingerprint=str(size) * 32)
        made.append([sha256_of(artifact.file(name)) for name in ("neurons.parquet", "excerpts.parquet")])
    assert made[0] == made[1] == made[2]


def groups_of_size(size: int, sites: list[Site], *_: object) -> list[Group]:
    return [Group(tuple(sites[first : first + size])) for first in range(0, len(sites), size)]


def test_sites_lie_side_by_side_on_a_gpu_as_far_as_there_is_room(monkeypatch):
    sites = [Site(f"code-l{layer}", layer, f"blocks.{layer}.code", 3072, False) for layer in range(12)]
    monkeypatch.setattr(precision, "why_no_triton", lambda: "")

    def sizes(tokens: int, device: str) -> list[int]:
        return [len(group.sites) for group in side_by_side.groups_of(sites, tokens, torch.device(device))]

    assert sizes(32 * 1024, "cuda") == [12] and sizes(64 * 1024, "cuda") == [6, 6]
    assert sizes(2**24, "cuda") == sizes(1, "cpu") == [1] * 12
    parts = [(site.name, part) for site, part in Group(tuple(sites[:2])).parts()]
    assert parts == [("code-l0", slice(0, 3072)), ("code-l1", slice(3072, 6144))]
    monkeypatch.setattr(precision, "why_no_triton", lambda: "no compiler")
    assert sizes(1, "cuda") == [1] * 12


def test_corrected_excerpts_stay_in_document_and_row_and_share_no_row(tmp_path):
    store = Store(tmp_path)
    inputs = {"tokens": cases.tokens_artifact(store, 3333), "pretrain": cases.model_artifact(store)}
    records = Records(cases.extract(store, cases.settings(), inputs))
    starts = TokenSplit(inputs["tokens"], "val").document_starts()
    for record in itertools.chain.from_iterable(records.iter_layer(layer) for layer in records.layers):
        for width, groups in record.excerpts.items():
            excerpts = [e for group in groups.values() for e in group]
            begins = np.array([e.start for e in excerpts])
            assert all(len(e.activations) == width and 0 <= e.center < width for e in excerpts)
            np.testing.assert_array_equal(begins // 32, (begins + width - 1) // 32)
            documents = np.searchsorted(starts, [begins, begins + width - 1], side="right")
            np.testing.assert_array_equal(documents[0], documents[1])
            assert len(set((begins // 32).tolist())) == len(excerpts)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_reservoir_keeps_the_smallest_keys_however_they_come(data):
    n_neurons, n_bins, capacity = 3, 2, 4
    keys = np.array(data.draw(st.permutations(range(1000)))[: n_neurons * n_bins * 12]).reshape(n_neurons, n_bins, 12)
    there = np.array(data.draw(st.lists(st.booleans(), min_size=keys.size, max_size=keys.size))).reshape(keys.shape)
    offered = torch.from_numpy(np.where(there, keys, NONE))
    reservoir = Reservoir(n_neurons, n_bins, capacity, width=2)
    text = torch.arange(1001.0)[:, None].expand(-1, n_neurons).contiguous()  # whose activations are their positions
    for part in offered.permute(2, 1, 0).split(data.draw(st.sampled_from([1, 3, 5, 12]))):
        reservoir.offer(part, Excerpts(text, torch.arange(1000), 0))
    for neuron, bin_ in itertools.product(range(n_neurons), range(n_bins)):
        best = np.sort(keys[neuron, bin_][there[neuron, bin_]])[:capacity]
        kept = reservoir.keys[neuron, bin_]
        np.testing.assert_array_equal(np.sort(kept[kept < EMPTY].numpy()), best)
        excerpts = reservoir.activations[neuron, bin_, kept < EMPTY].numpy()
        np.testing.assert_array_equal(excerpts, kept[kept < EMPTY][:, None] + np.arange(2))


def of_values(values: torch.Tensor) -> Moments:
    return Moments(len(values), statistics(values[None]).sums.numpy())


@given(st.permutations(range(11)), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_moments_have_the_same_bits_in_any_order_and_any_division(order, n_parts):
    values = np.random.default_rng(0).gamma(0.3, size=(11, 50, 3)).astype(np.float32)
    batches = [of_values(torch.from_numpy(v)) for v in values]
    whole = MomentsTree()
    for index, moments in enumerate(batches):
        whole.add(index, moments)
    parts = [MomentsTree() for _ in range(n_parts)]
    for turn, index in enumerate(order):
        parts[turn % n_parts].add(index, batches[index])
    merged = MomentsTree()
    for part in reversed(parts):
        for (height, index), moments in part.nodes.items():
            merged.put(height, index, moments)
    np.testing.assert_array_equal(merged.total().sums, whole.total().sums)
    assert merged.total().n == 550


def test_moments_of_a_large_mean_lose_nothing_that_matters():
    values = torch.randn(4096, 2) + torch.tensor([0.0, 1000.0])
    a, b = of_values(values[:1000]), of_values(values[1000:])
    total, exact = a.merged(b), values.double().numpy()
    np.testing.assert_allclose(total.variance(), exact.var(0, ddof=1), rtol=1e-6)
    centred = exact - exact.mean(0)
    np.testing.assert_allclose(total.kurtosis(), (centred**4).mean(0) / exact.var(0) ** 2, rtol=1e-5)
    assert isinstance(total, Moments)


@given(st.integers(0, 2**40), st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20))
def test_a_token_can_be_told_from_its_hash(seed, positions):
    of_tokens = torch.from_numpy(token_hashes(seed, np.array(positions)))
    of_neurons = torch.from_numpy(name_hashes(seed, "site", 5))
    h = priorities(of_tokens, of_neurons)
    for neuron in range(5):
        found = positions_of(h[:, neuron], of_neurons[neuron].expand(len(positions)), seed)
        assert found.tolist() == positions


def test_hashes_are_uniform_and_neurons_draw_different_tokens():
    h = priorities(torch.from_numpy(token_hashes(0, np.arange(20_000))), torch.from_numpy(name_hashes(0, "s", 50)))
    counts = torch.histc(h.double(), bins=64, min=-(2.0**31), max=2.0**31)
    expected = h.numel() / 64
    assert ((counts - expected) ** 2 / expected).sum() < 120  # chi-squared with 63 degrees of freedom: p about 1e-5
    lowest = [set(h[:, neuron].topk(200, largest=False).indices.tolist()) for neuron in range(50)]
    shared = [len(a & b) for a, b in itertools.combinations(lowest, 2)]
    assert abs(np.mean(shared) - 2) < 0.3  # 200 x 200 / 20,000 by chance


def test_shards_cover_every_batch_once(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "SHARD_TOKENS", 512)
    store = Store(tmp_path)
    inputs = {"tokens": cases.tokens_artifact(store, 3333), "pretrain": cases.model_artifact(store)}
    for workers in (1, 3, 50):
        job = jobs.plan_job(cases.settings(), inputs, cases.context(store, workers))
        assert [batch for shard in job.shards for batch in shard] == list(range(job.corpus().n_batches))
        assert len(job.shards) >= min(workers, job.corpus().n_batches) and all(len(shard) for shard in job.shards)
        on_gpus = jobs.plan_job(cases.settings(), inputs, cases.context(store, workers), on_gpu=True)
        assert len(on_gpus.shards) == on_gpus.n_workers == min(workers, 6)  # 3,000 tokens by 512


def test_a_gpu_has_more_shards_than_readers_only_where_one_is_much_to_lose():
    assert [jobs.shards_of(8_192_000, workers, on_gpu=True) for workers in (1, 4, 64)] == [1, 4, 8]
    assert [jobs.shards_of(10**8, workers, on_gpu=True) for workers in (1, 4, 64)] == [6, 6, 16]
    assert [jobs.shards_of(10**9, workers, on_gpu=True) for workers in (1, 4, 64)] == [16, 16, 16]
