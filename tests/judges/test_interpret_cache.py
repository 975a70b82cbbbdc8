"""No call is made twice, none beyond the budget, and a kill loses at most the calls under way."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts.store import Store
from pipeline.config import Config, InterpretConfig
from pipeline.errors import ArtifactError
from pipeline.interpret import whole
from pipeline.interpret.backends import Simulation, Text, Usage
from pipeline.interpret.budget import Budget
from pipeline.interpret.cache import JudgeCache, key_of
from pipeline.interpret.estimate import judge_plan
from pipeline.interpret.excerpts import Block
from pipeline.interpret.explaining import Explanations
from pipeline.interpret.prompts import own
from pipeline.interpret.prompts.own import OwnPrompts
from pipeline.interpret.replies import explanation
from pipeline.interpret.simulating import Simulations

USAGE = Usage(1000, 10, 0.5)


class Explainer:
    """Answers every prompt; remembers how often it was asked."""

    model = "counted"

    def __init__(self, identity="one", text="boats"):
        self.identity, self.text, self.asked = identity, text, 0

    def explain(self, prompts):
        for index, _ in enumerate(prompts):
            self.asked += 1
            yield index, Text(self.text, USAGE)


def block(n_neurons=6):
    rng = np.random.default_rng(0)
    shape = (n_neurons, 2, 8)
    return Block(rng.integers(300, 400, shape), rng.random(shape).astype(np.float32), np.ones(shape, bool))


def explanations(store, strings, explainer, step="a", paid=True, **config):
    account = Budget(InterpretConfig(**config)).account(paid)
    return Explanations(explainer, OwnPrompts(), JudgeCache(store, step), account, strings, 60, False)


def test_a_key_keeps_its_parts_apart():
    assert key_of("ab", "c") != key_of("a", "bc") != key_of("abc") and key_of("a", b"b") == key_of(b"a", "b")


def test_calls_are_remembered_across_steps_and_told_apart_by_content(tmp_path, strings):
    store = Store(tmp_path)
    first, again, other, changed = Explainer(), Explainer(), Explainer("two"), Explainer()
    answers = explanations(store, strings, first).of(block())
    assert first.asked == 6 and answers == [("boats", None)] * 6
    of_another_step = explanations(store, strings, again, step="b")
    assert of_another_step.of(block()) == answers and again.asked == 0
    assert of_another_step.account.budget.summary() == {"calls": 6, "tokens_in": 6000, "tokens_out": 60, "price": 0.0}
    assert of_another_step.account.budget.calls_made == 0
    explanations(store, strings, other, step="c").of(block())
    assert other.asked == 6
    different = block()
    different.tokens[2, 1, 3] += 1
    explanations(store, strings, changed, step="d").of(different)
    assert changed.asked == 1


class Simulator:
    """Predicts 0, 1, 2, ... for every excerpt but those of the explanation `fails`; remembers how often it was asked."""

    model, metric_suffix, excerpts_a_request = "counted", "", 1

    def __init__(self, identity="one", fails=None):
        self.identity, self.fails, self.asked = identity, fails, 0

    def most_tokens_out(self, request):
        return 0

    def simulate(self, requests):
        for index, request in enumerate(requests):
            self.asked += 1
            predictions = [np.arange(len(tokens), dtype=float) for tokens in request.excerpts]
            failed = request.explanation == self.fails
            yield index, Simulation(None, keep=False) if failed else Simulation(predictions, USAGE)


def simulations(store, strings, simulator, step="a"):
    account = Budget(InterpretConfig()).account(False)
    return Simulations(simulator, OwnPrompts(), JudgeCache(store, step), account, strings)


def test_a_neuron_that_is_remembered_as_a_whole_needs_no_prompt(tmp_path, strings, monkeypatch):
    store, texts = Store(tmp_path), {row: f"number {row}" for row in range(6)}
    excerpts = block()
    excerpts.mask[:, 0, 5:] = False
    excerpts.tokens[1] = excerpts.tokens[2]
    texts[2] = texts[1]  # two neurons with the same calls
    first, asked = explanations(store, strings, Explainer()), simulations(store, strings, Simulator(fails="number 4"))
    answers, (predicted, failed) = first.of(excerpts), asked.of(excerpts, texts)
    assert failed == {4: "refused"} and predicted[0, 0].tolist() == [0, 1, 2, 3, 4, 0, 0, 0]
    looked_up, places = [], Simulations._places
    monkeypatch.setattr(Explanations, "_prompt", lambda *_: pytest.fail("a prompt was built"))
    monkeypatch.setattr(Simulations, "_places", lambda self, text, _: looked_up.append(text) or places(self, text, _))
    again, more = explanations(store, strings, Explainer(), "b"), simulations(store, strings, Simulator(), "b")
    assert again.of(excerpts) == answers and again.account.budget.summary() == first.account.budget.summary()
    second, failed = more.of(excerpts, texts)
    assert not failed and (second[[0, 1, 2, 3, 5]] == predicted[[0, 1, 2, 3, 5]]).all()
    assert looked_up == ["number 1", "number 1", "number 4"], "calls of two neurons, which count once, and a failed one"
    assert more.account.budget.calls == 2 * 5 and more.simulator.asked == 2


def test_nothing_that_a_prompt_is_made_of_may_change(strings, monkeypatch):
    excerpts, prompts = block(), OwnPrompts()

    def key(kind="explain", identity="one", prompts=prompts, strings=strings, text="", token=0, fired=0.0, last=True):
        tokens, activations, mask = (array.copy() for array in (excerpts.tokens, excerpts.activations, excerpts.mask))
        tokens[0, 1, 7] += token
        activations[0, 0, 0] += fired
        mask[0, 1, 7] = last
        return whole.keys(whole.begun(kind, identity, prompts, strings), [text], [0], tokens, activations, mask)[0]

    changes = [{}, {"kind": "simulate"}, {"identity": "two"}, {"strings": [*strings[:-1], "x"]}, {"text": "boats"}]
    changes += [{"token": 1}, {"last": False}, {"fired": 1e-4}, {"prompts": OwnPrompts("another set")}]
    found = [key(**change) for change in changes]
    for name in ("EXPLAIN", "SIMULATE"):  # as if the text were written anew
        with monkeypatch.context() as patch:
            patch.setattr(own, name, "Say it. ")
            OwnPrompts.simulation_head.cache_clear()
            found.append(key())
        OwnPrompts.simulation_head.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(whole, "_sources", lambda: b"other sources")
        found.append(key())
    assert len(set(found)) == len(found) and key() == found[0]
    wide, long = np.zeros((1, 2, 8), np.int64), np.zeros((1, 8, 2), np.int64)
    begin = whole.begun("simulate", "one", prompts, strings)
    assert whole.keys(begin, ["a"], [0], wide) != whole.keys(begin, ["a"], [0], long)


@pytest.mark.parametrize("text, status", [("", "unparsed"), ("...", "unparsed"), ("<|im_start|>user", "unparsed")])
def test_replies_that_are_no_explanation_are_counted_and_not_paid_again(tmp_path, strings, text, status):
    asked, again = Explainer(text=text), Explainer(text=text)
    for explainer, step in ((asked, "a"), (again, "b")):
        answers = explanations(Store(tmp_path), strings, explainer, step).of(block())
        assert answers == [(None, status)] * 6
    assert (asked.asked, again.asked) == (6, 0)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize(
    "reply",
    [
        "<think>\nWhat do they share?\n</think>\n\ncats and dogs",
        "So, </think>?\n</think>\ncats and dogs",
        "cats and dogs",
    ],
)
def test_what_a_judge_reasons_before_it_answers_is_no_explanation(reply, raw):
    assert explanation(reply, raw) == ("cats and dogs", None)
    assert explanation("It fires on </think> in chats", raw) == ("It fires on </think> in chats", None)
    assert explanation("<think>\nWhat do they share", raw) == (None, "unparsed")


def test_the_budget_is_never_exceeded_and_what_is_left_out_is_counted(tmp_path, strings):
    prices = {"price_in": 1000.0, "price_out": 1000.0}  # a call: 1.01, and before it is answered under 1.9
    explainer = Explainer()
    limited = explanations(Store(tmp_path), strings, explainer, budget=4.0, **prices)
    answers = limited.of(block())
    assert limited.account.budget.spent == pytest.approx(3.03) and explainer.asked == 3
    assert [status for _, status in answers] == [None] * 3 + ["over budget"] * 3
    more = explanations(Store(tmp_path), strings, again := Explainer(), step="b", budget=100.0, **prices)
    assert [status for _, status in more.of(block())] == [None] * 6 and again.asked == 3


def test_what_may_be_the_most_of_calls_under_way_counts_before_they_are_answered():
    """No call may begin whose highest price is not covered, however little the others cost in the end."""
    account = Budget(InterpretConfig(budget=1.0, price_in=1000.0, price_out=1000.0)).account(paid=True)
    reserved = [account.reserve(prompt_bytes=400, most_tokens_out=50) for _ in range(3)]
    assert reserved == [0.45, 0.45, None]
    account.settle(0.45, Usage(100, 10, 0.1))
    assert account.reserve(400, 50) is None and account.reserve(390, 50) == pytest.approx(0.44)


def test_a_judge_of_ones_own_is_free_beside_a_paid_one(tmp_path, strings):
    explainer = Explainer()
    free = explanations(Store(tmp_path), strings, explainer, paid=False, budget=1e-9, price_in=1000.0)
    assert free.of(block()) == [("boats", None)] * 6 and explainer.asked == 6
    assert free.account.budget.summary() == {"calls": 6, "tokens_in": 6000, "tokens_out": 60, "price": 0.0}


def test_silent_neurons_are_not_asked_about(tmp_path, strings):
    silent = block()
    silent.activations[1] = 0
    silent.activations[4] *= -1
    explainer = Explainer()
    answers = explanations(Store(tmp_path), strings, explainer).of(silent)
    assert [status for _, status in answers] == [None, "silent", None, None, "silent", None] and explainer.asked == 4


def test_a_kill_loses_no_answered_call(tmp_path):
    """A process that is killed without warning right after its third reply leaves three on disk."""
    program = f"""
        import os, signal
        from pathlib import Path
        from pipeline.artifacts.store import Store
        from pipeline.interpret.backends import Usage
        from pipeline.interpret.cache import JudgeCache, key_of
        cache = JudgeCache(Store(Path({str(tmp_path)!r})), "killed")
        for number in range(10):
            cache.keep({{key_of(str(number)): (b"reply", Usage(1, 2, 3.0))}})
            if number == 2:
                os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=os.environ | {"PYTHONPATH": str(Path.cwd())}
    )
    assert done.returncode == -signal.SIGKILL
    for step in ("killed", "another"):
        found = JudgeCache(Store(tmp_path), step).find(key_of(str(number)) for number in range(10))
        assert found == {key_of(str(number)): (b"reply", Usage(1, 2, 3.0)) for number in range(3)}


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "old.sqlite").write_bytes(b"SQLite format 3\x00 torn" * 100)
    with pytest.raises(ArtifactError, match=r"old\.sqlite"):
        JudgeCache(Store(tmp_path), "new")


def test_a_file_that_another_step_has_just_begun_is_passed_over(tmp_path):
    (tmp_path / "judge").mkdir()
    sqlite3.connect(tmp_path / "judge" / "begun.sqlite").close()
    assert JudgeCache(Store(tmp_path), "new").find([b"x"]) == {}


LADDER = [(1, 128), (2, 128), (3, 128), (6, 768), (12, 768)]


def test_the_plan_counts_the_published_study():
    """Both models on the ladder, and GPT-2's autoencoders up to three layers, by metric."""
    passes = {}
    for metric in ("top_and_random", "random_only", "anthropic"):
        passes[metric] = neurons = 0
        for architecture in ("crate", "gpt2"):
            for n_layer, d_model in LADDER:
                size = {"n_layer": n_layer, "d_model": d_model, "n_head": 4 if d_model == 128 else 12}
                config = Config.model_validate(
                    {
                        "model": size | {"architecture": architecture},
                        "activations": {"protocol": "paper"},
                        "sae": {"expansions": (16,) if architecture == "gpt2" and n_layer <= 3 else ()},
                        "interpret": {"metrics": (metric,), "protocol": "paper", "explainer": "http", "price_in": 1.0},
                    }
                )
                plan = judge_plan(config)
                passes[metric] += plan.simulations
                neurons += plan.n_neurons
                assert plan.explanations == plan.n_neurons and plan.price > 0 and plan.by_llm
        assert neurons == 116_736 + 49_152
    assert passes == {"top_and_random": 1_658_880, "random_only": 829_440, "anthropic": 7_796_736}


def test_the_plan_of_the_offline_judge_is_free():
    plan = judge_plan(Config())
    assert plan.explanations == 0 and plan.price == 0 and not plan.by_llm


def test_the_plan_prices_what_is_asked_behind_http():
    def plan(simulator):
        asked = {"simulator": simulator, "neurons_per_layer": 2, "price_in": 1.0, "price_out": 2.0}
        return judge_plan(Config.model_validate({"interpret": {"explainer": "http"} | asked}))

    local, http, numbers = plan("transformers"), plan("http"), plan("http_numbers")
    assert 0 < local.price < http.price < numbers.price
    assert http.price == pytest.approx((http.tokens_in + 2 * http.tokens_out) / 1e6, abs=1e-5)
    assert local.tokens_in == http.tokens_in and local.tokens_out < http.tokens_out < numbers.tokens_out
    assert http.tokens_out - local.tokens_out == http.simulations + http.simulations_of_controls
    assert (
        http.simulations_of_controls == 2 * http.simulations
    )  # two a sampled neuron: another's explanation, an empty one
