"""EleutherAI's lm-evaluation-harness on a checkpoint folder: its loglikelihoods are ours."""

import json
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch

import crate_model.hf  # noqa: F401  registers CRATE with transformers, which the harness loads it through
from crate_model.checkpoint import save_checkpoint
from crate_model.config import ModelConfig
from crate_model.model import LanguageModel
from pipeline.artifacts.vocabulary import END_OF_TEXT, gpt2_encoding, tokenizer_json

QUESTIONS: list[dict[str, Any]] = [
    {"question": "The first president was", "choices": [" Washington", " a banana", " John Adams"], "gold": 0},
    {"question": "Two and two make", "choices": [" five", " four"], "gold": 1},
    {
        "question": "A sentence of several words, so that",
        "choices": [" rows differ", " all rows are of equal length"],
        "gold": 0,
    },
]
TASK = """
task: local_choices
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def model() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(ModelConfig("crate", 2, 2, 32, 48)).eval()


def test_its_loglikelihoods_are_ours(model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = checkpoint_with_tokenizer(model, tmp_path / "model")
    data, tasks = tmp_path / "questions.jsonl", tmp_path / "tasks"
    data.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    tasks.mkdir()
    (tasks / "local_choices.yaml").write_text(TASK.format(data=data))
    done = lm_eval.simple_evaluate(
        HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=2),
        tasks=["local_choices"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    samples = sorted(done["samples"]["local_choices"], key=lambda sample: sample["doc_id"])
    assert len(samples) == len(QUESTIONS)
    right = 0
    for sample, row in zip(samples, QUESTIONS, strict=True):
        ours = [loglikelihood(model, row["question"], choice) for choice in row["choices"]]
        theirs = [float(answer[0]) for answer in sample["filtered_resps"]]
        assert theirs == pytest.approx(ours, abs=1e-4)
        right += ours.index(max(ours)) == row["gold"]
    assert done["results"]["local_choices"]["acc,none"] == pytest.approx(right / len(QUESTIONS))


def checkpoint_with_tokenizer(model: LanguageModel, folder: Path) -> Path:
    """The folder with GPT-2's tokenizer beside the weights, made without a network."""
    save_checkpoint(model, folder)
    tokenizer = json.loads(tokenizer_json())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer["added_tokens"] = [{"id": END_OF_TEXT, "content": "<|endoftext|>", **flags}]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "bos_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def loglikelihood(model: LanguageModel, question: str, choice: str) -> float:
    """ln p(choice | question), in nats."""
    encoding = gpt2_encoding()
    context, continuation = encoding.encode(question), encoding.encode(choice)
    ids = torch.tensor([context + continuation])
    with torch.no_grad():
        logprobs = model(ids[:, :-1]).log_softmax(-1)
    picked = logprobs[0, len(context) - 1 :].gather(1, ids[0, len(context) :, None])
    return float(picked.sum())
