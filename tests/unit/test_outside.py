"""What is neither a setting nor an artifact and yet decides bits: it is in the recipe, by content."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from pipeline.artifacts.manifest import Manifest, fingerprint_of
from pipeline.artifacts.store import Store
from pipeline.config import Config, RuntimeConfig, TokensConfig
from pipeline.config_load import LoadedConfig
from pipeline.dag import Step, kept, plan, why_made
from pipeline.errors import ArtifactError
from pipeline.execute import run_step
from pipeline.pretrain.__main__ import find_tokens
from pipeline.stage import Context, Stage, Summary
from pipeline.tokens import packaged
from pipeline.tokens.stage import STAGE, TokensSettings
from pipeline.tracking import TrackerSpec


def packaged_step() -> Step:
    return plan(LoadedConfig(Config(), {}, {}), until="tokens").steps["tokens"]


def other_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the standard library is another one."""
    (folder / "lib").mkdir()
    (folder / "lib" / "other.py").write_text("x = 1\n", "utf-8")
    monkeypatch.setattr(packaged.sysconfig, "get_paths", lambda: {"stdlib": str(folder / "lib")})


def test_another_python_s_corpus_is_another_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, files = TokensSettings(TokensConfig()), TokensSettings(TokensConfig(source="text", train=("x",)))
    before = [STAGE.fingerprint(asked, {}) for asked in (settings, files)]
    digest = packaged.corpus_digest()
    assert packaged_step().recipe["outside"] == {"packaged corpus": digest}
    other_python(tmp_path, monkeypatch)
    after = [STAGE.fingerprint(asked, {}) for asked in (settings, files)]
    assert before[0] != after[0] and before[1] == after[1]  # files are none of Python's
    assert (
        packaged_step().recipe["outside"]
        == {"packaged corpus": packaged.corpus_digest()}
        != {"packaged corpus": digest}
    )


def test_the_digest_is_of_the_documents_that_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    import zstandard

    other_python(tmp_path, monkeypatch)
    written = packaged.write_corpus(tmp_path / "corpus")
    lines = [
        zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes()).splitlines(True) for path in written
    ]
    together = [lines[number % packaged.FILES][number // packaged.FILES] for number in range(sum(map(len, lines)))]
    assert packaged.corpus_digest() == hashlib.sha256(b"".join(together)).hexdigest()


def test_a_node_with_another_corpus_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = packaged_step()
    context = Context(Store(tmp_path / "store"), RuntimeConfig(), "run", step.name, step.fingerprint, TrackerSpec())
    other_python(tmp_path, monkeypatch)
    result = run_step(step, context)
    assert (
        result.error
        and "tokens: packaged corpus is not here what it was where the sweep was planned" in result.error.what
    )
    assert "same Python" in result.error.fix
    assert list((tmp_path / "store" / ".making").glob("*")) == list((tmp_path / "store" / ".scratch").glob("*")) == []


@dataclasses.dataclass(frozen=True)
class Named:
    place: str


def made_of(digest: str) -> Stage:
    def run(settings: Named, inputs: object, out: Path, context: Context) -> Summary:
        (out / "copy").write_text(digest, "utf-8")
        return {}

    return Stage("copy", 1, "cell", (), Named, run, outside=lambda settings: {f"file {settings.place}": digest})


def test_what_lies_outside_is_in_the_manifest_and_tells_why_a_step_is_made(tmp_path: Path) -> None:
    store, settings = Store(tmp_path), Named("here")
    steps = []
    for digest in ("a" * 64, "b" * 64):
        stage = made_of(digest)
        fingerprint, outside = stage.fingerprint(settings, {}), stage.outside(settings)
        steps.append(Step("c/copy", stage, "c", settings, {}, fingerprint, {}, outside))
    assert steps[0].fingerprint != steps[1].fingerprint
    context = Context(store, RuntimeConfig(), "run", "c/copy", steps[0].fingerprint, TrackerSpec())
    made = run_step(steps[0], context).artifact
    assert made and made.manifest.outside == {"file here": "a" * 64}
    assert fingerprint_of(json.loads(made.manifest.to_json())) == made.fingerprint
    assert why_made(steps[1], store) == "differs in outside.file here"
    (made.folder.parent / "of-another-run").mkdir()
    (made.folder.parent / "of-another-run" / "manifest.json").write_text("torn", "utf-8")
    assert "of-another-run is not a manifest" in why_made(steps[1], store), "which stops nobody's plan"
    shutil.rmtree(made.folder.parent / "of-another-run")
    old = json.loads(made.manifest.to_json())
    del old["outside"], old["sha256"]  # as a manifest was written before
    assert Manifest.from_json(json.dumps(old), "old").outside == {}


def test_two_texts_of_one_configuration_are_not_chosen_from(tmp_path: Path) -> None:
    store, config = Store(tmp_path), Config()
    step = packaged_step()
    for digest in ("a" * 64, "b" * 64):
        outside = {"packaged corpus": digest}
        recipe = STAGE.recipe(step.settings, {}, outside)
        store.publish(store.making_folder(recipe["fingerprint"]), recipe, {}, {})
    assert kept(plan(LoadedConfig(config, {}, {})), store) == {}
    with pytest.raises(ArtifactError, match="has 2 texts of this configuration"):
        find_tokens(store, config)
