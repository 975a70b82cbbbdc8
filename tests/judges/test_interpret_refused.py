"""What a judge refuses is asked again, at the end of the step and by the next run, and never missing without a word."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from interpret_world import planted, settings
from misbehaving_server import Judge, Other, chat

from pipeline.artifacts.store import Store
from pipeline.config import InterpretConfig, RuntimeConfig
from pipeline.errors import ClientError
from pipeline.interpret import refusals
from pipeline.interpret.clients import http
from pipeline.interpret.online import score_sites_online
from pipeline.interpret.reading import sites_of
from pipeline.interpret.stage import INTERPRET
from pipeline.progress import progress_of
from pipeline.stage import Context
from pipeline.tracking import TrackerSpec

WIDTHS = {12: 0, 8: 11}
NEURONS = 12
REFUSALS = {
    "400": lambda: Other(400, "filtered"),
    "422": lambda: Other(422, "filtered"),
    "503 for long": lambda: Other(503, "overloaded"),
    "content filter": lambda: chat("no", finish_reason="content_filter"),
    "no text": lambda: chat(None),
    "blanks": lambda: chat("  "),
    "no end of reasoning": lambda: chat("<think>\nThe tokens share"),
}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(refusals, "PAUSES_SECONDS", (0.0, 0.0, 0.0))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = tmp_path_factory.mktemp("refused")
    tokens, records, _ = planted(folder, n_neurons=NEURONS, n_tokens=20_000, widths=WIDTHS)
    return tokens, records


class Fickle:
    """A judge that gives some prompts no answer, the first `times` that it is asked them. Which, follows from the prompt."""

    def __init__(self, refusal: str = "400", role: str = "explainer", times: float = 1, every: int = 3) -> None:
        self.refusal, self.role, self.times, self.every = REFUSALS[refusal], role, times, every
        self.asked: Counter[str] = Counter()
        self.times *= (
            http.ATTEMPTS if refusal.startswith("503") else 1
        )  # it is asked so often before it counts as refused
        self.refused: set[str] = set()
        self.explained: set[str] = set()
        self.numbers: dict[str, int] = {}

    def __call__(self, path: str, body: dict[str, Any]) -> Any:
        prompt = json.dumps(body["messages"])
        asked = body["messages"][-1]["content"]
        explanation, _, tokens = asked.partition("\n\n")
        simulates = explanation.startswith("The neuron reacts to:")
        if asked == http.SHORT_QUESTION:
            return chat("yes")
        number = self.numbers.setdefault(prompt, len(self.numbers))
        self.asked[prompt] += 1
        if simulates == (self.role == "simulator") and number % self.every == 0:
            self.refused.add(prompt)
            if self.asked[prompt] <= self.times:
                return self.refusal()
        if not simulates:
            self.explained.add(prompt)
            return chat(f"words like {len(prompt)}")
        return chat("\n".join(f"{token}\t{len(token) % 11}" for token in tokens.split("\n")))


def judged(world: tuple[Any, Any], store: Store, answer: Any, fingerprint: str = "a", **config: Any):
    """(the site's scores, the summary's facts, what was told) with the judge `answer`."""
    with Judge(answer) as judge:
        both = {"explainer": "http", "explainer_model": "m", "simulator": "http_numbers", "metrics": ("random_only",)}
        asked = settings(InterpretConfig(**both | {"control_neurons": 2} | config), window=12)
        runtime = RuntimeConfig(judge_url=judge.url, judge_concurrency=1)
        where = Context(store, runtime, "run", "c/interpret", fingerprint * 32, TrackerSpec())
        progress = where.progress(NEURONS, "neurons")
        (site,), facts = score_sites_online(asked, *world, sites_of(world[1]), where, progress)
        state = progress_of(store, "run", "c/interpret")
        return site, facts, state.told if state else []


@pytest.mark.parametrize("role", ["explainer", "simulator"])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_was_refused_once_is_asked_again_and_the_step_ends_as_if_it_had_not_been(
    world, tmp_path: Path, refusal: str, role: str
) -> None:
    fickle = Fickle(refusal, role)
    site, facts, told = judged(world, Store(tmp_path / "fickle"), fickle)
    steady, undisturbed, _ = judged(world, Store(tmp_path / "steady"), Fickle(every=1 << 30))
    assert len(fickle.refused) > 2 and site.rows["random_only_generated"]["n_refused"] == 0 and not told
    assert site.neurons.equals(steady.neurons)
    assert {name: facts["cost"][name] for name in ("calls", "tokens_in")} == {
        name: undisturbed["cost"][name] for name in ("calls", "tokens_in")
    }
    answered = [prompt for prompt in fickle.asked if prompt not in fickle.refused]
    assert all(fickle.asked[prompt] == 1 for prompt in answered), "no answered call is repeated"


def test_more_than_may_be_refused_fails_the_step_and_the_next_run_asks_what_was_refused(world, tmp_path: Path) -> None:
    store, stubborn = Store(tmp_path), Fickle(times=1e9)
    with pytest.raises(ClientError, match=f"refused {NEURONS // 3} of {NEURONS} neurons.*filtered") as error:
        judged(world, store, stubborn)
    assert "only what was refused is asked" in error.value.fix and "max_refused" in error.value.fix
    healthy = Fickle(every=1 << 30)
    site, _, told = judged(world, store, healthy)
    assert site.rows["random_only_generated"]["n_refused"] == 0 and not told
    assert healthy.explained == stubborn.refused, "only the refused ones are explained now"


def test_nothing_is_written_where_too_much_was_refused(world, tmp_path: Path) -> None:
    store, making = Store(tmp_path), Store(tmp_path).making_folder("made")
    with Judge(Fickle(times=1e9)) as judge:
        both = {"explainer": "http", "explainer_model": "m", "simulator": "http_numbers", "metrics": ("random_only",)}
        runtime = RuntimeConfig(judge_url=judge.url, judge_concurrency=1)
        where = Context(store, runtime, "run", "c/interpret", "a" * 32, TrackerSpec())
        inputs = {"tokens": world[0], "activations": world[1]}
        with pytest.raises(ClientError, match="refused"):
            INTERPRET.run(settings(InterpretConfig(**both), window=12), inputs, making, where)
    assert not list(making.iterdir())


def test_what_may_be_refused_is_told_and_has_a_status(world, tmp_path: Path) -> None:
    """Prompts that stay refused, many in a row, do not end the step; they are asked in every round."""
    stubborn = Fickle(times=1e9)
    site, _, told = judged(world, Store(tmp_path), stubborn, max_refused=0.5)
    row = site.rows["random_only_generated"]
    assert row["n_refused"] == NEURONS // 3 and row["n_scored"] > 0
    (said,) = told
    assert f"refused {NEURONS // 3} of {NEURONS} neurons" in said and "filtered" in said and "no score" in said
    assert {stubborn.asked[prompt] for prompt in stubborn.refused} == {1 + len(refusals.PAUSES_SECONDS)}


def test_many_refused_in_a_row_do_not_end_the_round_in_which_only_they_are_asked(
    world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "FAILURES_IN_A_ROW", 2)
    site, _, _ = judged(world, Store(tmp_path), Fickle(times=1e9), max_refused=0.5)
    assert site.rows["random_only_generated"]["n_refused"] == NEURONS // 3


def test_a_judge_that_refuses_whatever_it_is_asked_is_given_up_early(
    world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "HOPELESS", 5)
    fickle = Fickle(times=1e9, every=1)
    with pytest.raises(ClientError, match=f"refused all of the first {NEURONS} prompts: status 400 filtered"):
        judged(world, Store(tmp_path), fickle)
    assert set(fickle.asked.values()) == {1}, "no round more"


def test_what_a_reply_without_text_cost_stays_in_the_budget(world, tmp_path: Path) -> None:
    """Each of them is paid, in each round."""
    price = {"price_in": 1e4, "max_refused": 1.0}  # a call: 1
    _, facts, _ = judged(world, Store(tmp_path), Fickle("no text", times=1e9), control_neurons=0, **price)
    fickle = Fickle("no text", times=1e9)
    limit = facts["cost"]["price"] - 1
    _, limited, _ = judged(world, Store(tmp_path / "2"), fickle, control_neurons=0, budget=limit, **price)
    assert sum(fickle.asked.values()) <= limit and limited["cost"]["price"] <= limit
    assert facts["cost"]["price"] == facts["cost"]["calls"] + len(refusals.PAUSES_SECONDS) * (NEURONS // 3)


class Bare(Fickle):
    """Refuses to simulate with an empty explanation."""

    def __call__(self, path: str, body: dict[str, Any]) -> Any:
        empty = body["messages"][-1]["content"].startswith("The neuron reacts to: \n\n")
        return Other(400, "filtered") if empty else super().__call__(path, body)


def test_controls_that_stay_refused_fail_the_step_where_the_nulls_would_stand_on_few(world, tmp_path: Path) -> None:
    with pytest.raises(ClientError, match=r"refused the controls of 4 of 4 neurons.*filtered"):
        judged(world, Store(tmp_path), Bare(every=1 << 30), control_neurons=4)
    site, _, told = judged(world, Store(tmp_path), Fickle(every=1 << 30), control_neurons=4)
    row = site.rows["random_only_generated"]
    assert (row["n_controls"], row["n_controls_refused"], told) == (4, 0, [])


def test_how_much_may_be_refused_is_a_part_of_the_recipe() -> None:
    few, many = (settings(InterpretConfig(max_refused=share)) for share in (0.01, 0.5))
    assert INTERPRET.fingerprint(few, {}) != INTERPRET.fingerprint(many, {})
