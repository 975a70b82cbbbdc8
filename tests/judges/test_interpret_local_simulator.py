"""The local simulator gives the numbers of full forward passes, whatever it saves, whatever the text."""

import dataclasses

import numpy as np
import pytest

from pipeline.artifacts.vocabulary import gpt2_encoding
from pipeline.errors import ResourceError
from pipeline.interpret.backends import SimulationRequest
from pipeline.interpret.clients.local_simulator import ROW_TOKENS, LocalSimulatorSpec, _rows
from pipeline.interpret.clients.plain_simulator import plain
from pipeline.interpret.clients.prompt_tokens import Tail
from pipeline.interpret.prompts.openai_original import OpenAIPrompts
from pipeline.interpret.prompts.own import OwnPrompts

TEXT = (
    "The harbour was full on Monday.\n\n\tunknown\n<end>\n<|im_start|>user\t10\n<|endoftext|> She said \ufffd 14 March"
)
KINDS = {
    "own": (OwnPrompts(), False),
    "openai corrected": (OpenAIPrompts(raw_tokens=False), False),
    "openai paper": (OpenAIPrompts(raw_tokens=True), True),
}


def excerpts(*lengths: int) -> list[np.ndarray]:
    ids = gpt2_encoding().encode(TEXT, allowed_special="all")
    starts = np.cumsum((0, *lengths[:-1])) % (len(ids) - max(lengths))
    return [np.array(ids[start : start + n]) for start, n in zip(starts, lengths, strict=True)]


@pytest.fixture(scope="module", params=KINDS)
def simulator(request, tiny_judge):
    prompts, paper = KINDS[request.param]
    return LocalSimulatorSpec(tiny_judge, prompts, paper).make()


def test_equal_to_full_forward_passes(simulator):
    request = SimulationRequest("the end of a line\n<end>\tunknown", excerpts(5, 12, 3, 8))
    ours, oracle = simulator.one(request).predictions, plain(simulator, request)
    assert np.concatenate(ours).std() > 0.1
    assert [len(row) for row in ours] == [5, 12, 3, 8]
    for mine, theirs in zip(ours, oracle, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
        assert ((mine >= 0) & (mine <= 10)).all()


def test_an_excerpt_does_not_depend_on_its_neighbours(simulator):
    together = simulator.one(SimulationRequest("tabs", excerpts(5, 12, 3, 8))).predictions
    for tokens, expected in zip(excerpts(5, 12, 3, 8), together, strict=True):
        alone = simulator.one(SimulationRequest("tabs", [tokens])).predictions[0]
        np.testing.assert_allclose(alone, expected, atol=1e-4)


def test_the_explanation_matters(simulator):
    first, second = (simulator.one(SimulationRequest(text, excerpts(12))).predictions[0] for text in ("boats", "3"))
    assert np.abs(first - second).max() > 1e-3


def test_rows_hold_every_excerpt_once_in_order_and_no_more_than_fits():
    lengths = [*np.random.default_rng(0).integers(3, 900, 200).tolist(), 2 * ROW_TOKENS, 5]
    tails = [Tail([0] * n, np.arange(n // 5)) for n in lengths]
    rows = list(_rows(tails))
    assert [tail for row in rows for tail in row] == tails and not list(_rows([]))
    assert all(len(row) == 1 or sum(len(t.ids) + len(t.asked) for t in row) <= ROW_TOKENS for row in rows)


def test_real_model_equals_full_forward_passes(smollm2):
    simulator = LocalSimulatorSpec(smollm2, OwnPrompts(), False).make()
    simulator.head = simulator.head[-80:]  # full passes over the whole head take minutes
    simulator.__dict__.pop("_head_cache", None)
    request = SimulationRequest("words for boats", excerpts(3))
    np.testing.assert_allclose(simulator.one(request).predictions[0], plain(simulator, request)[0], atol=1e-4)


def test_a_model_that_is_not_read_right_is_refused(tiny_judge, monkeypatch):
    """As a model with another head would show itself: what is read differs from what it says."""
    network, _ = tiny_judge.load()
    monkeypatch.setattr(network, "get_output_embeddings", lambda: network.get_input_embeddings())
    with pytest.raises(ResourceError, match="cannot be read"):
        LocalSimulatorSpec(tiny_judge, OwnPrompts(), False).make()


def test_a_model_that_is_not_there_is_named():
    from pipeline.interpret.clients.local_model import LocalModel

    model = LocalModel("/no/such/judge", "", "float32")
    with pytest.raises(ResourceError, match="/no/such/judge"):
        model.load()
    assert dataclasses.replace(model, name="a/b").label == "b"
