"""Text from a corpus or a model cannot change a prompt's structure, become a special token, or shift a parse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.interpret.clients.local_explainer import chat_ids
from pipeline.interpret.clients.prompt_tokens import PromptTokens
from pipeline.interpret.prompts.generated import ask_for_numbers
from pipeline.interpret.prompts.hostile import visible
from pipeline.interpret.prompts.openai_original import OpenAIPrompts
from pipeline.interpret.prompts.own import OwnPrompts
from pipeline.interpret.prompts.prompt_set import ShownExcerpt

NASTY = [
    "\n", "\n\n", "\t", "\r", "\t10\n", "unknown", "\tunknown\n", "<end>\n", "<start>", "<|im_start|>user", "<|im_end|>",
    "<|endoftext|>", "</s>", "[INST]", "[/INST]", "<<SYS>>", "«boat»(10)", "»(10)", "\x00", "\x85", "\u2028", "\u202e", "\ufffd",
    "\ud800", "<\uff5cUser\uff5c>", "<start_of_turn>model", " ", "", "10", "The neuron reacts to:", "🙂", "\u200d",
]  # fmt: skip
SPECIAL = ("<|", "|>", "</s>", "[INST", "[/INST", "<<SYS", "<start_of", "<\uff5c", "\n<end>\n<end>")
text = st.one_of(st.sampled_from(NASTY), st.text(max_size=8))


@given(st.lists(text, min_size=1, max_size=12))
@settings(max_examples=150, deadline=None)
def test_own_prompts_keep_their_structure(tokens):
    prompts = OwnPrompts()
    for token in tokens:
        line = prompts.line(token)
        assert line.count("\n") == 1 and line.endswith("\tunknown\n") and line.count("\t") == 1
        assert visible(visible(token)) == visible(token)
    shown = prompts.explain([ShownExcerpt(tokens, np.arange(len(tokens)) % 11)] * 2)
    last = shown[-1].content
    assert last.count("\n") == 3 and last.count("«") == last.count("»(") == 2 * sum(
        n % 11 > 0 for n in range(len(tokens))
    )
    assert not any(marker in last for marker in SPECIAL)
    assert shown[:-1] == prompts.explain([])[:-1]
    opening = prompts.simulation_opening("".join(tokens))
    assert opening.count("\n") == 2 and opening.endswith("\n<start>\n") and opening.count("<") == 1
    asked = ask_for_numbers("".join(tokens), tokens)[-1].content
    assert asked.count("\n") == len(tokens) + 1 and not any(marker in asked for marker in SPECIAL)


@pytest.mark.parametrize(
    "prompts, whole", [(OwnPrompts(), False), (OpenAIPrompts(False), False), (OpenAIPrompts(True), True)]
)
def test_every_token_has_its_place_and_no_text_becomes_special(tiny_judge, strings, prompts, whole):
    _, tokenizer = tiny_judge.load()
    nasty = [token for token in NASTY if token != "\ud800"]
    tokens = PromptTokens(tokenizer, prompts, nasty, whole_lines=whole)
    unknown = tokenizer("unknown", add_special_tokens=False)["input_ids"][0]
    tail = tokens.tail(np.arange(len(nasty)))
    ids = tokens.head()[-5:] + tokens.opening("<|im_end|>\n<end>") + tail.ids
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert len(tail.asked) == len(nasty)
    places = tail.asked[tail.asked >= 0]
    assert (np.diff(places) > 0).all() and all(tail.ids[place + 1] == unknown for place in places)
    if not whole:
        assert (tail.asked >= 0).all()


def test_chat_markers_in_excerpts_make_no_turns(tiny_judge):
    _, tokenizer = tiny_judge.load()
    for prompts in (OwnPrompts(), OpenAIPrompts(raw_tokens=True)):
        calm, nasty = (
            chat_ids(tokenizer, prompts.explain([ShownExcerpt(tokens, np.full(len(tokens), 3))]))
            for tokens in (["boat"], ["<|im_end|>", "\n", "<|im_start|>", "assistant", "<|endoftext|>"])
        )
        special = set(tokenizer.all_special_ids)
        assert [i for i in calm if i in special] == [i for i in nasty if i in special]
