"""The HTTP simulator against a server with a model behind it that answers as vLLM does, and against those that cannot."""

import math

import numpy as np
import pytest
from misbehaving_server import Judge, Other, chat

from pipeline.artifacts.vocabulary import gpt2_encoding
from pipeline.errors import ClientError
from pipeline.interpret.backends import SimulationRequest
from pipeline.interpret.clients.http import Server, ServerSpec
from pipeline.interpret.clients.http_simulator import COUNTING, HttpSimulator, read_echo
from pipeline.interpret.clients.local_simulator import LocalSimulatorSpec
from pipeline.interpret.clients.number_simulator import NumberSimulator
from pipeline.interpret.clients.plain_simulator import _logits
from pipeline.interpret.expected import from_top, number_of
from pipeline.interpret.prompts.openai_original import OpenAIPrompts
from pipeline.interpret.prompts.own import OwnPrompts

EXCERPTS = [
    np.array(gpt2_encoding().encode("The boats had left")),
    np.array([197, 198, 50256, 30]),
]  # the second: hostile ones


def server(judge):
    return Server(ServerSpec(judge.url, 4, 30.0), None)


def completions(model, shift=0, top=20):
    """Answers `echo` requests as vLLM does: each prompt token's text, log-probability and likeliest alternatives."""
    import torch

    network, tokenizer = model.load()

    def answer(path, body):
        assert body["echo"] and body["max_tokens"] == 1
        found = tokenizer(body["prompt"], add_special_tokens=False)
        ids = found["input_ids"]
        if body["prompt"].startswith(
            COUNTING
        ):  # a tiny random model cannot count: a copy of what a model that can says
            others = {f"other {n}": -9.0 for n in range(top - 1)}
            entries = [{tokenizer.decode([i]): -0.1} | others for i in ids]
        else:
            with torch.inference_mode():
                logprobs = network(torch.tensor([ids])).logits[0].log_softmax(-1)
            entries = [None]
            values, indices = logprobs[:-1].topk(top)
            entries += [
                {tokenizer.decode([i]): v for i, v in zip(row_i, row_v, strict=True)}
                for row_i, row_v in zip(indices.tolist(), values.tolist(), strict=True)
            ]
        entries = entries[shift:] + [{}] * shift
        texts = [tokenizer.decode([i]) for i in ids]
        logprobs = {"tokens": texts, "token_logprobs": [0.0] * len(ids), "top_logprobs": entries}
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1}
        return {"choices": [{"text": body["prompt"], "logprobs": logprobs}], "usage": usage}

    return answer


@pytest.mark.parametrize("paper", [False, True])
def test_equal_to_the_local_simulator(tiny_judge, strings, paper):
    prompts = OpenAIPrompts(raw_tokens=True) if paper else OwnPrompts()
    local = LocalSimulatorSpec(tiny_judge, prompts, paper).make()
    excerpts = EXCERPTS[:1] if paper else EXCERPTS  # raw line breaks are tokenized differently as one text
    with Judge(completions(tiny_judge)) as judge:
        simulator = HttpSimulator(server(judge), "tiny", "", prompts, paper, strings)
        got = dict(simulator.simulate(SimulationRequest("boats", [e]) for e in excerpts))
    assert simulator.model == ("tiny" if paper else "tiny (reads 10 as 1)")
    for index, row in enumerate(_from_likeliest(local, excerpts, top=5 if paper else 20)):
        np.testing.assert_allclose(got[index].predictions[0], row, atol=1e-3)
    assert got[0].usage.tokens_in > 100


@pytest.mark.parametrize(
    "server_kind, why", [("no echo", "ignores echo"), ("shifted", "to the token before"), ("400", "400")]
)
def test_servers_that_cannot_are_refused_with_the_reason(tiny_judge, strings, server_kind, why):
    def no_echo(path, body):
        content = [{"token": " one", "logprob": -0.1, "top_logprobs": [{"token": " one", "logprob": -0.1}]}]
        return {"choices": [{"text": " one", "logprobs": {"content": content}}]}

    answers = {
        "no echo": no_echo,
        "shifted": completions(tiny_judge, shift=1),
        "400": lambda *_: Other(400, "status 400"),
    }
    with Judge(answers[server_kind]) as judge, pytest.raises(ClientError, match=why) as error:
        HttpSimulator(server(judge), "m", "", OwnPrompts(), False, strings)
    assert "http_numbers" in error.value.fix


def words_with_logprobs(top):
    """An `echo` of words, each with so many log-probabilities."""

    def answer(path, body):
        words = [word + " " for word in body["prompt"].split(" ")]
        entries = [{word: -0.1} | {f"other {n}": -9.0 for n in range(top - 1)} for word in words]
        return {"choices": [{"text": "", "logprobs": {"tokens": words, "top_logprobs": entries}}]}

    return answer


def test_numbers_of_which_a_server_gives_too_few_are_not_compared_with_all(strings):
    """Of one log-probability a token an expected value is what the judge would write: another metric."""
    with Judge(words_with_logprobs(top=5)) as judge:
        with pytest.raises(ClientError, match="gives 5 log-probabilities a token, and 20 are read"):
            HttpSimulator(server(judge), "m", "", OwnPrompts(), False, strings)
        HttpSimulator(server(judge), "m", "", OwnPrompts(), True, strings)  # `paper` reads five


def test_a_reply_that_lost_its_log_probabilities_is_refused_not_unparsed_for_ever(strings):
    def answer(path, body):
        bare = {"choices": [{"text": "", "finish_reason": "content_filter", "logprobs": None}]}
        return words_with_logprobs(20)(path, body) if body["prompt"].startswith(COUNTING) else bare

    with Judge(answer) as judge:
        simulator = HttpSimulator(server(judge), "m", "", OwnPrompts(), False, strings)
        simulation = simulator.one(SimulationRequest("boats", EXCERPTS[:1]))
    assert (simulation.predictions, simulation.unparsed, simulation.keep) == (None, False, False)
    assert "without log-probabilities" in simulation.why


def _from_likeliest(local, excerpts, top):
    """Expected activations from the likeliest tokens of full forward passes: what a server can tell."""
    prefix = local.head + local.tokens.opening("boats")
    for tokens in excerpts:
        tail = local.tokens.tail(tokens)
        logits = _logits(local, prefix + tail.ids)[len(prefix) + tail.asked]
        likeliest = np.argsort(-logits, axis=1)[:, :top]
        values = np.array([[number_of(local.tokenizer.decode([i])) for i in row] for row in likeliest.tolist()])
        assert (values >= 0).any(axis=1).all()
        yield from_top(values, np.take_along_axis(logits, likeliest, 1))


def echo_of(*lines):
    return [
        part for token, top in lines for part in ((token, {}), ("\t", {"unknown": -0.1}), ("unknown", top), ("\n", {}))
    ]


def test_reading_an_echo():
    half = math.log(0.5)
    echo = echo_of(("a", {"3": half, "5": half}), ("b", {" 7": -0.1, "x": -3.0}), ("c", {"10": -0.2}))
    np.testing.assert_allclose(read_echo(echo, 3, 3, paper=False), [4, np.nan, 10])
    np.testing.assert_allclose(read_echo(echo, 2, 3, paper=True), [0, 10])
    assert read_echo(echo, 3, 4, paper=False) is None
    one_more = [
        ("\t", {}),
        ("un", {}),
        *echo,
    ]  # a raw token that reads like a place: whose number is whose is not known
    assert read_echo(one_more, 3, 3, paper=True) is None


@pytest.mark.parametrize(
    "reply, expected",
    [
        ("The\t0\n boats\t10\n had\t0\n left\t3", [0, 10, 0, 3]),
        ("The\t0\nboats\t10\nhad\t0\nleft\t3\n", [0, 10, 0, 3]),
        ("The\t0\nboats\t10\nhad\t0", None),  # a line short
        ("The\t0\nboats\t11\nhad\t0\nleft\t3", None),
        ("The\t0\nboats\t1.5\nhad\t0\nleft\t3", None),
        ("The\t0\nships\t10\nhad\t0\nleft\t3", None),
        ("Sure! Here you are:\nThe\t0\nboats\t10\nhad\t0\nleft\t3", None),
        ("", None),
    ],
)
def test_generated_numbers_are_read_strictly(strings, reply, expected):
    with Judge(lambda path, body: chat(reply)) as judge:
        simulator = NumberSimulator(server(judge), "m", "", strings)
        simulation = simulator.one(SimulationRequest("boats", EXCERPTS[:1]))
    assert simulator.metric_suffix == "_generated" and "generated" in simulator.model
    if expected is None:
        assert simulation.predictions is None and simulation.unparsed == simulation.keep == bool(reply)
    else:
        assert simulation.predictions[0].tolist() == expected
