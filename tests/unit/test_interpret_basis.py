"""A metric is named by what it is scored on: excerpts that a neuron lacks are counted, and too few of them make no score."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from interpret_world import WIDTHS, planted, settings

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.store import Store
from pipeline.artifacts.tokens import TokenSplit
from pipeline.artifacts.vocabulary import token_strings
from pipeline.config import Config, InterpretConfig
from pipeline.errors import ConfigError
from pipeline.interpret import limits
from pipeline.interpret.estimate import judge_plan
from pipeline.interpret.excerpts import Chosen, Metric
from pipeline.interpret.layer import Judged, SiteScores, score_site
from pipeline.interpret.offline import score_offline
from pipeline.interpret.reading import read_excerpts, sites_of
from pipeline.interpret.stage import INTERPRET, summary
from pipeline.interpret.token_table import TokenTableJudge

METRICS: tuple[Metric, ...] = ("top_and_random", "random_only", "anthropic")


def keep(records: Artifact, store: Store, top: int = 50, random: int = 50, per_quantile: int = 20) -> Artifact:
    """The same records, as settings that keep fewer excerpts make them."""
    table = pq.read_table(records.file("excerpts.parquet"))
    most = {"top": top, "random": random, "quantile": per_quantile}
    kinds = [pc.and_(pc.equal(table["kind"], kind), pc.less(table["rank"], count)) for kind, count in most.items()]
    kept = pc.or_(pc.or_(kinds[0], kinds[1]), kinds[2])
    return _published(store, records, table.filter(kept))


def _published(store: Store, records: Artifact, excerpts: pa.Table) -> Artifact:
    """`records` with these excerpts."""
    making = store.making_folder("changed")
    (making / "neurons.parquet").write_bytes(records.file("neurons.parquet").read_bytes())
    with pq.ParquetWriter(making / "excerpts.parquet", excerpts.schema) as writer:
        for width in WIDTHS:
            writer.write_table(excerpts.filter(pc.equal(excerpts["width"], width)), row_group_size=1 << 20)
    recipe = {"stage": "activations", "version": 1, "fingerprint": "f" * 32, "settings": {}, "inputs": {}}
    return store.publish(making, recipe, {}, {})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    tokens, records, _ = planted(tmp_path_factory.mktemp("basis"), n_neurons=4, n_tokens=400_000)
    return tokens, records


def firing_in(records: Artifact, store: Store, n_top: int) -> Artifact:
    """The same neurons, if they fired nowhere but in so many top excerpts."""
    table = pq.read_table(records.file("excerpts.parquet"))
    rows = [
        row if row["kind"] == "top" and row["rank"] < n_top else row | {"activations": [0.0] * len(row["activations"])}
        for row in table.to_pylist()
    ]
    return _published(store, records, pa.Table.from_pylist(rows, schema=table.schema))


def scored(world: tuple[Artifact, Artifact], folder: Path, **kept: int) -> SiteScores:
    tokens, records = world
    fewer = keep(records, Store(folder), **kept)
    return score_offline(settings(), tokens, fewer, sites_of(fewer)[0])


def rows_of(site: SiteScores, metric: str) -> list[dict]:
    return site.neurons.filter(pc.equal(site.neurons["metric"], pa.scalar(metric))).to_pylist()


# What is kept -> the metrics that can be scored of it, with the excerpts that they score: "corrected" takes the next ones.
KEPT = {
    "all": ({}, {"top_and_random": 10, "random_only": 5, "anthropic": 47}),
    "one top": ({"top": 1}, {}),
    "four top": ({"top": 4}, {}),
    "five top": ({"top": 5}, {"random_only": 5}),
    "six top": ({"top": 6}, {"top_and_random": 8, "random_only": 5}),
    "two random": ({"random": 2}, {}),
    "three random": ({"random": 3}, {"top_and_random": 8, "random_only": 3}),
    "no quantile to score": ({"per_quantile": 2}, {"top_and_random": 10, "random_only": 5}),
    "half of the quantiles": ({"per_quantile": 3}, {"top_and_random": 10, "random_only": 5, "anthropic": 36}),
    "half out of context": ({"top": 30}, {"top_and_random": 10, "random_only": 5, "anthropic": 42}),
    "too few out of context": ({"top": 29}, {"top_and_random": 10, "random_only": 5}),
}


@pytest.mark.parametrize("case", KEPT)
def test_a_metric_without_half_of_any_kind_of_its_excerpts_has_no_score(world, tmp_path, case) -> None:
    kept, expected = KEPT[case]
    site = scored(world, tmp_path, **kept)
    for metric in METRICS:
        row, neurons = site.rows[metric], rows_of(site, metric)
        if metric in expected:
            assert row["n_scored"] == 4 and row["n_too_few_excerpts"] == 0 and row["mean"] is not None
            assert row["excerpts"] == expected[metric]
            assert {neuron["n_excerpts"] for neuron in neurons} == {expected[metric]}
        else:
            assert (
                row["mean"] is None and row["n_too_few_excerpts"] == row["n_neurons"] == 4 and row["excerpts"] is None
            )
            assert all(n["status"] == "too few excerpts" and n["score"] is None for n in neurons)
            assert all(n["n_tokens"] == 0 for n in neurons)
        assert row["excerpts_asked"] == {"top_and_random": 10, "random_only": 5, "anthropic": 47}[metric]


def test_tokens_and_the_excerpts_of_the_explanation_are_counted(world, tmp_path) -> None:
    row = scored(world, tmp_path, top=8).rows["top_and_random"]
    assert (row["explained"], row["explained_asked"], row["excerpts"], row["excerpts_asked"]) == (4, 5, 9, 10)
    assert (row["tokens"], row["tokens_asked"]) == (9 * 64, 10 * 64)
    assert row["n_units"] == 4 and row["n_null_other"] == 4 and row["n_null_empty"] == 0


def test_the_summary_says_by_kind_what_was_scored(world, tmp_path) -> None:
    site = scored(world, tmp_path, top=30)
    told = summary([site], settings())
    found = {
        (p["kind"], p["explained"]): (p["mean"], p["asked"], p["tokens"]) for p in told["excerpts"]["code"]["anthropic"]
    }
    assert found == {
        ("top", True): (15, 15, 8),
        ("quantile", True): (22, 22, 8),
        ("random", True): (5, 5, 8),
        ("top", False): (10, 10, 8),
        ("quantile", False): (22, 22, 8),
        ("random", False): (5, 5, 8),
        ("out of context", False): (5, 10, 3),
    }
    assert told["metrics"]["anthropic"]["excerpts"] == 42 and told["metrics"]["anthropic"]["excerpts_asked"] == 47


def test_records_without_long_excerpts_have_no_scores_of_them(world, tmp_path) -> None:
    """The short ones do not stand in for them."""
    tokens, records = world
    store, making = Store(tmp_path), Store(tmp_path).making_folder("short")
    table = pq.read_table(records.file("excerpts.parquet"))
    (making / "neurons.parquet").write_bytes(records.file("neurons.parquet").read_bytes())
    pq.write_table(table.filter(pc.equal(table["width"], 8)), making / "excerpts.parquet")
    recipe = {"stage": "activations", "version": 1, "fingerprint": "e" * 32, "settings": {}, "inputs": {}}
    short = store.publish(making, recipe, {}, {})
    rows = score_offline(settings(), tokens, short, sites_of(short)[0]).rows
    assert [rows[metric]["n_too_few_excerpts"] for metric in METRICS] == [4, 4, 0]


def config(**activations: object) -> Config:
    read = {"tokens": 4096, "tokens_short": 4096, **activations}
    return Config.model_validate({"model": {"n_ctx": 64}, "activations": read})


def test_settings_that_can_score_nothing_are_refused_and_the_least_that_can_are_told() -> None:
    with pytest.raises(ConfigError) as error:
        INTERPRET.check(config(top=1, random=2, per_quantile=4))
    assert "1 of 5 top excerpts to explain" in error.value.what and "0 of 5 top excerpts to score" in error.value.what
    assert "needs at least activations.top 6, activations.random 3" in error.value.what


def test_a_metric_that_cannot_be_scored_beside_others_is_told_and_not_planned() -> None:
    few = config(top=10, random=10, per_quantile=4)
    (told,) = INTERPRET.check(few) or ()
    assert "no neuron will have a score of anthropic" in told and "0 of 10 top excerpts to score" in told
    assert limits.scorable(few) == ("top_and_random", "random_only")
    asked = Config.model_validate(few.model_dump() | {"interpret": {"explainer": "http"}})
    two = InterpretConfig(explainer="http", metrics=("top_and_random", "random_only"))
    assert judge_plan(asked) == judge_plan(asked.model_copy(update={"interpret": two}))


def test_rows_of_text_limit_what_the_quantiles_can_give() -> None:
    """A row gives a neuron one excerpt: where top and random ones take most of them, `per_quantile` says nothing."""
    (told,) = INTERPRET.check(config(top=35, random=20, per_quantile=20)) or ()
    assert "0 of 24 quantile excerpts to score" in told and f"tokens_short {(35 + 20 + 36) * 64}" in told
    assert not INTERPRET.check(config(top=35, random=20, per_quantile=20, tokens_short=(35 + 20 + 36) * 64))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("protocol", ["corrected", "paper"])
def test_the_least_settings_that_are_told_are_enough_and_one_less_is_not(metric: Metric, protocol: str) -> None:
    def asked(**read: int) -> Config:
        settings = {"protocol": protocol, "top": 1, "random": 1, "per_quantile": 1, "tokens": 64, "tokens_short": 64}
        interpret = {"metrics": [metric], "protocol": protocol}
        return Config.model_validate({"model": {"n_ctx": 64}, "activations": settings | read, "interpret": interpret})

    needs = limits._needs(asked(), metric)
    assert limits.scorable(asked(**needs)) == (metric,)
    for name, value in needs.items():
        step = 64 if name.startswith("tokens") else 1
        assert not limits.scorable(asked(**needs | {name: value - step})), name


@pytest.mark.parametrize(
    ("layers", "n_layer", "left_out"),
    [([0, 1, 2, 3, 4, 5], 7, None), ([5, 6], 7, 6), ([0, 1, 2, 3, 4, 5], 6, 5), ([3, 4], 5, None), ([11], 12, 11)],
)
@pytest.mark.parametrize("family", ["code-l{}", "code-l{}-16x", "out-l{}"])
def test_the_papers_mean_leaves_out_the_models_last_layer_whichever_were_read(
    layers, n_layer, left_out, family
) -> None:
    from dataclasses import replace

    from pipeline.interpret.basis import Basis

    basis = (Basis({}), np.ones(1, bool))
    sites = []
    for layer in layers:
        facts = {"n_scored": 1, "n_neurons": 1, "n_units": 1, "explained": 5, "excerpts": 5, "tokens": 320}
        facts |= {f"{name}_asked": 5 for name in ("explained", "excerpts", "tokens")}
        row = facts | {"layer": layer, "mean": 0.1 * (layer + 1), "low": 0.0, "high": 1.0}
        name = family.format(layer)
        bootstraps = {"random_only": np.full(20, row["mean"])}
        sites.append(SiteScores(name, layer, pa.table({}), {"random_only": row}, bootstraps, {"random_only": basis}))
    told = summary([replace(site) for site in sites], settings(n_layer=n_layer))["metrics"]["random_only"]
    kept = [0.1 * (layer + 1) for layer in layers if layer != left_out]
    assert told["mean_paper"] == (pytest.approx(np.mean(kept)) if kept else None)
    assert told["mean"] == pytest.approx(np.mean([0.1 * (layer + 1) for layer in layers]))
    assert (told["n_layers"], told["n_layers_of_model"]) == (len(layers), n_layer)


@pytest.mark.parametrize(
    "n_top, protocol, status",
    [
        (0, "corrected", "silent"),
        (2, "corrected", "too few excerpts"),
        (5, "corrected", "too few excerpts"),
        (6, "corrected", "scored"),
        (2, "paper", "scored"),
    ],
)
def test_a_text_on_which_a_neuron_does_nothing_is_no_top_excerpt_of_it(
    world, tmp_path, n_top, protocol, status
) -> None:
    tokens, records = world
    rare = firing_in(records, Store(tmp_path), n_top)
    asked = settings(InterpretConfig(protocol=protocol, metrics=("top_and_random",)))
    rows = rows_of(score_offline(asked, tokens, rare, sites_of(rare)[0]), "top_and_random")
    assert {row["status"] for row in rows} == {status}
    if status == "scored":
        count = n_top // 2 if protocol == "corrected" else 5
        assert {(row["n_explained"], row["n_excerpts"]) for row in rows} == {(count, 5 + count)}


def test_controls_are_of_as_many_neurons_as_are_asked_for_though_few_of_a_chunk_can_be_controlled(world) -> None:
    """Four neurons, judged one by one; the first has no explanation to exchange."""
    tokens, records = world
    asked = []

    class OneByOne(TokenTableJudge):
        def judge(self, chosen: Chosen, rng: np.random.Generator, controls: int) -> Judged:
            asked.append(controls)
            first = chosen.neurons[0] == 0
            return replace(super().judge(chosen, rng, controls), controlled=np.array([controls > 0 and not first]))

    site, config = sites_of(records)[0], settings(InterpretConfig(control_neurons=2, metrics=("random_only",)))
    excerpts = read_excerpts(records, site, np.arange(4), config.activations)
    split = TokenSplit(tokens, "val")
    row = score_site(config, site, excerpts, split, OneByOne(token_strings(), chunk=1)).rows["random_only"]
    assert asked == [2, 2, 1, 0] and (row["n_controls"], row["n_null_other"]) == (2, 2)
