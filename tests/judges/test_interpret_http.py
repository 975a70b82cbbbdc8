"""HTTP judges under bad weather: what is retried, what is not, what is counted, and that the key stays where it is."""

import logging
import threading
import time

import pytest
from misbehaving_server import Judge, Other, chat

from pipeline.config import RuntimeConfig
from pipeline.errors import ClientError, ConfigError
from pipeline.interpret.clients import http
from pipeline.interpret.clients.http import PromptRefused, Server, ServerSpec, origin
from pipeline.interpret.clients.http_explainer import HttpExplainer
from pipeline.interpret.judges import judge_server, simulator_server
from pipeline.interpret.prompts.prompt_set import Message

KEY = "sk-do-not-tell-anybody-3141592653"
ASK = (Message("user", "what is it?"),)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(http, "FIRST_PAUSE_SECONDS", 0.01)


def server(judge, concurrency=4, timeout=5.0, key=KEY):
    return Server(ServerSpec(judge.url, concurrency, timeout), key)


def explainer(judge, **options):
    return HttpExplainer(server(judge, **options), "m", "", 0.0, 60, 0)


def slow(answer, seconds):
    answer.seconds = seconds
    return answer


PASSING = {
    "429": lambda: Other(429, headers={"retry-after": "0"}),
    "429 until a date": lambda: Other(429, headers={"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}),
    "500": lambda: Other(500, "<html>oops"),
    "503": lambda: Other(503),
    "half a reply": lambda: Other(200, '{"choices": [{"mess', cut=True),
    "not JSON": lambda: Other(200, "<html>hello"),
    "bytes that are no text": lambda: Other(200, "\x00\x01"),
    "nonsense": lambda: {"choices": "yes"},
    "no choices": lambda: {"choices": []},
    "a list": lambda: [1, 2],
    "too late": lambda: slow(Other(200, "{}"), 1.2),
}


@pytest.mark.parametrize("trouble", PASSING)
def test_passing_trouble_is_retried_and_the_answer_taken(trouble):
    replies = [PASSING[trouble](), PASSING[trouble](), chat("boats")]
    with Judge(lambda path, body: replies[min(len(judge.calls), 3) - 1]) as judge:
        reply = explainer(judge, timeout=0.6).one(ASK)
    assert reply.text == "boats" and reply.usage.tokens_in == 100 and reply.usage.tokens_out == 7
    assert len(judge.calls) == 3


def test_a_server_that_tells_no_usage_is_charged_the_most_it_can_have_been():
    silent = {name: value for name, value in chat("boats").items() if name != "usage"}
    with Judge(lambda path, body: silent) as judge:
        asking = explainer(judge)
        reply = asking.one(ASK)
    assert reply.usage.tokens_in == sum(len(turn.content.encode()) for turn in ASK)
    assert reply.usage.tokens_out == asking.most_tokens


@pytest.mark.parametrize("trouble", ["500", "nonsense"])
def test_trouble_that_does_not_pass_is_a_refusal_of_this_prompt_not_remembered(trouble):
    with Judge(lambda path, body: PASSING[trouble]()) as judge:
        reply = explainer(judge).one(ASK)
    assert reply.text is None and not reply.keep and len(judge.calls) == http.ATTEMPTS


def test_a_server_that_is_gone_ends_the_step():
    with Judge(lambda path, body: Other(500)) as judge:
        asked = explainer(judge, concurrency=2)
        with pytest.raises(ClientError, match="does not answer") as error:
            list(asked.explain([ASK] * 50))
    assert error.value.retryable and len(judge.calls) < http.ATTEMPTS * (http.FAILURES_IN_A_ROW + 3)


def test_never_an_answer():
    never = threading.Event()
    with Judge(lambda path, body: never.wait(20)) as judge:
        started = time.monotonic()
        reply = explainer(judge, timeout=0.1).one(ASK)
        assert reply.text is None and time.monotonic() - started < 5
        never.set()


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_prompt_that_is_refused_is_not_retried_and_not_remembered(status):
    with Judge(lambda path, body: Other(status, '{"error": "context length"}')) as judge:
        reply = explainer(judge).one(ASK)
    assert reply.text is None and not reply.keep and "context length" in reply.why and len(judge.calls) == 1


def test_a_server_that_refuses_every_prompt_ends_the_step():
    """As a model does whose context is too short: not a layer of refused neurons."""
    with Judge(lambda path, body: Other(400, "too long")) as judge:
        with pytest.raises(ClientError, match="refuses: status 400 too long"):
            list(explainer(judge, concurrency=2).explain([ASK] * 50))
    assert len(judge.calls) < http.FAILURES_IN_A_ROW + 5  # and the short question of each of those under way


def test_a_server_that_refuses_these_prompts_and_answers_others_does_not_end_the_step():
    """As when only those are left to be asked that a filter refuses."""
    with Judge(lambda path, body: chat("yes") if "Say yes" in str(body) else Other(400, "filtered")) as judge:
        replies = [reply for _, reply in explainer(judge, concurrency=2).explain([ASK] * 50)]
    assert len(replies) == 50 and not any(reply.keep for reply in replies)


@pytest.mark.parametrize("status", [401, 403, 404, 301])
def test_a_server_that_refuses_us_ends_the_step_without_telling_the_key(status, caplog):
    caplog.set_level(logging.DEBUG)
    with Judge(lambda path, body: Other(status, f"bad key Bearer {KEY} for you", {"location": "/x"})) as judge:
        with pytest.raises(ClientError) as error:
            explainer(judge).one(ASK)
    assert error.value.status == status and len(judge.calls) == 1
    assert judge.calls[0][2]["Authorization"] == f"Bearer {KEY}"
    shown = str(error.value) + repr(error.value.__dict__) + repr(error.getrepr(style="long")) + caplog.text
    assert KEY not in shown and "CRATE_JUDGE_API_KEY" in shown


def test_declined_replies():
    """They are paid, and asked again: a filter's or an overloaded server's word is not the last one."""
    for answer in (chat(None), chat(" \n"), chat("no", finish_reason="content_filter")):
        with Judge(lambda path, body, answer=answer: answer) as judge:
            reply = explainer(judge).one(ASK)
        assert reply.text is None and not reply.keep and reply.usage.tokens_in == 100


def test_concurrency_is_bounded_and_prompts_are_drawn_as_there_is_room():
    drawn = []
    three_at_once = threading.Barrier(3)

    def prompts():
        for number in range(12):
            drawn.append(number)
            yield (Message("user", str(number)),)

    def answer(path, body):
        three_at_once.wait(30)
        assert len(drawn) <= len(judge.calls) + 3
        return chat(f"reply {body['messages'][0]['content']}")

    with Judge(answer) as judge:
        replies = dict(explainer(judge, concurrency=3).explain(prompts()))
    assert judge.most_at_once == 3
    assert {index: reply.text for index, reply in replies.items()} == {n: f"reply {n}" for n in range(12)}


def test_answers_that_came_before_a_failure_are_handed_over():
    def answer(path, body):
        number = int(body["messages"][0]["content"])
        time.sleep(0.2 if number < 3 else 0.0)
        return chat(str(number)) if number < 3 else Other(401, "no")

    got = []
    with Judge(answer) as judge:
        with pytest.raises(ClientError):
            for index, _ in explainer(judge, concurrency=4).explain((Message("user", str(n)),) for n in range(40)):
                got.append(index)
    assert sorted(got) == [0, 1, 2] and len(judge.calls) < 10


@pytest.mark.parametrize(
    "url", ["", "ftp://judge/v1", "judge", f"http://me:{KEY}@judge/v1", f"http://judge/v1?key={KEY}"]
)
def test_wrong_addresses(url):
    with pytest.raises(ConfigError) as error:
        Server(ServerSpec(url, 1, 1.0), None)
    assert KEY not in str(error.value)


@pytest.mark.parametrize("own_key", ["", "sk-of-the-simulator"])
def test_the_key_goes_to_the_judge_s_own_address_only(monkeypatch, tmp_path, own_key):
    monkeypatch.setenv("CRATE_JUDGE_API_KEY", KEY)
    if own_key:
        (tmp_path / "key").write_text(own_key + "\n")
        monkeypatch.setenv("CRATE_SIMULATOR_API_KEY_FILE", str(tmp_path / "key"))

    def told(runtime):
        judge_server(runtime).model()
        simulator_server(runtime).model()
        keys = [[headers.get("Authorization") for _, _, headers in judge.calls] for judge in (first, second)]
        first.calls.clear()
        second.calls.clear()
        return keys

    def answer(path, body):
        return {"data": [{"id": "judge"}]}

    judges, simulators = f"Bearer {KEY}", f"Bearer {own_key}" if own_key else None
    with Judge(answer) as first, Judge(answer) as second:
        other_path = first.url.removesuffix("/v1") + "/simulator/v1"
        assert told(RuntimeConfig(judge_url=first.url)) == [[judges, judges], []]
        both = RuntimeConfig(judge_url=first.url, judge_simulator_url=other_path)
        assert told(both) == [[judges, simulators or judges], []]
        apart = RuntimeConfig(judge_url=first.url, judge_simulator_url=second.url)
        assert told(apart) == [[judges], [simulators]]
        simulator_server(RuntimeConfig(judge_simulator_url=second.url)).model()  # another explains
        assert [headers.get("Authorization") for _, _, headers in second.calls] == [simulators]
    assert origin("https://a/v1") == origin("https://a:443/") != origin("http://a/v1")
    assert origin("https://a/v1") != origin("https://a.b/v1") and origin("") is None


def test_nobody_there():
    with pytest.raises((ClientError, PromptRefused)):
        Server(ServerSpec("http://127.0.0.1:9/v1", 1, 0.2), KEY).model()


def test_the_only_model_is_found():
    with Judge(lambda path, body: {"data": [{"id": "judge-8b"}]} if path == "models" else chat("x")) as judge:
        assert HttpExplainer(server(judge), "", "", 0.0, 60, 0).model == "judge-8b"
    with Judge(lambda path, body: {"data": []}) as judge, pytest.raises(ClientError, match="lists no model"):
        HttpExplainer(server(judge), "", "", 0.0, 60, 0)
