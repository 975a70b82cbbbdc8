"""A real server of a real model: SmolLM2 behind llama.cpp, as it comes in the package `xllamacpp`."""

import pytest
from interpret_world import planted
from interpret_world import settings as interpret_settings

from pipeline.artifacts.store import Store
from pipeline.config import InterpretConfig, RuntimeConfig
from pipeline.errors import ClientError
from pipeline.interpret.clients.http import Server, ServerSpec
from pipeline.interpret.clients.http_simulator import HttpSimulator
from pipeline.interpret.judges import in_this_process
from pipeline.interpret.online import score_sites_online
from pipeline.interpret.prompts.own import OwnPrompts
from pipeline.interpret.reading import sites_of
from pipeline.stage import Context
from pipeline.tracking import TrackerSpec


@pytest.fixture(scope="module")
def url(smollm2):
    """The server's address, ending in /v1. It ends with the fixture."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="requirements-judges.txt is not installed")
    params = xllamacpp.CommonParams()
    params.model.path = smollm2.path
    params.model_alias = {"smollm2"}
    params.port = 0  # any that is free
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.warmup = 2048, 1, 0, False
    params.verbosity = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1  # more wait for one another busily
    server = xllamacpp.Server(params)
    yield f"{server.listening_address}/v1"
    del server


def test_it_explains_and_the_same_model_in_torch_simulates(url, smollm2, tmp_path):
    words = tuple(range(2000, 2032))
    tokens, records, _ = planted(
        tmp_path, n_layers=1, n_neurons=2, n_tokens=4000, widths={12: 0, 8: 11}, vocabulary=words
    )
    judges = {"explainer": "http", "simulator": "transformers", "max_explanation_tokens": 12, "control_neurons": 0}
    settings = interpret_settings(InterpretConfig(**judges, metrics=("random_only",)), 7, window=12)
    store, runtime = Store(tmp_path), RuntimeConfig(judge_url=url, judge_concurrency=2, threads_per_worker=1)
    where = Context(store, runtime, "run", "c/interpret", "a" * 32, TrackerSpec())
    progress = where.progress(2, "neurons")
    ((site,), facts) = score_sites_online(
        settings, tokens, records, sites_of(records), where, progress, in_this_process
    )
    rows = site.neurons.to_pylist()
    assert facts["judge"].startswith("smollm2 explains, SmolLM2-135M-Instruct") and len(rows) == 2
    for row in rows:
        assert row["status"] == "scored" and -1 <= row["score"] <= 1 and row["explanation"]
    assert facts["cost"]["calls"] == 2 * (1 + 5) and facts["cost"]["tokens_out"] > 2


def test_it_cannot_simulate_and_that_is_found_out(url, strings):
    """llama.cpp takes `echo` and gives no prompt back, without a word."""
    server = Server(ServerSpec(url, 1, 60.0), None)
    with pytest.raises(ClientError, match="it ignores echo"):
        HttpSimulator(server, "smollm2", "", OwnPrompts(), False, strings)
