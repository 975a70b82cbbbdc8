"""One clear error each, before anything is made."""

from __future__ import annotations

import pytest
import torch

from crate_model.config import ModelConfig
from pipeline.activations.extract import Extractor
from pipeline.activations.job import plan_job
from pipeline.activations.stage import ACTIVATIONS
from pipeline.artifacts.records import Records
from pipeline.artifacts.store import Store
from pipeline.config import Config
from pipeline.errors import ArtifactError, ConfigError
from tests.unit import activation_cases as cases


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture
def inputs(store):
    return {"tokens": cases.tokens_artifact(store, 2000), "pretrain": cases.model_artifact(store)}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"top": 60}, "60 top and 6 random excerpts a neuron cannot be had from 50 rows"),
        ({"protocol": "paper", "top": 1601}, "1601 top excerpts a neuron cannot be had from 1600 tokens"),
        ({"window": 33}, "excerpts of 33 tokens do not fit into rows of 32"),
        ({"window_short": 16}, "window_short is 16, not less than activations.window, 16"),
        ({"layers": (0, 2)}, "names layer 2, but the model has 2"),
    ],
)
def test_settings_that_cannot_be_met(store, inputs, changes, what):
    with pytest.raises(ConfigError, match=what) as error:
        plan_job(cases.settings(**changes), inputs, cases.context(store))
    assert error.value.fix


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"layers": (3,)}, "names layer 3, but the model has 3"), ({"window": 2048}, "do not fit into rows of 1024")],
)
def test_what_no_training_can_mend_is_told_before_it(changes, what):
    asked = Config(name="x", activations=cases.settings(**changes).activations, model=ModelConfig(n_layer=3))
    with pytest.raises(ConfigError, match=what):
        ACTIVATIONS.check(asked)


def test_text_shorter_than_a_row(store, inputs):
    inputs["pretrain"] = cases.model_artifact(Store(store.root / "long"), n_ctx=4096)
    with pytest.raises(ConfigError, match="less than one window of 4096"):
        plan_job(cases.settings(), inputs, cases.context(store))


def test_text_of_another_tokenizer(store, inputs):
    inputs["tokens"] = cases.tokens_artifact(Store(store.root / "other"), 2000, vocabulary=5000)
    with pytest.raises(ConfigError, match="but the model's vocabulary has 97: another tokenizer's text"):
        plan_job(cases.settings(), inputs, cases.context(store))


def test_weights_that_are_not_finite(store, inputs):
    inputs["pretrain"] = cases.model_artifact(Store(store.root / "spoilt"), spoil=True)
    job = plan_job(cases.settings(), inputs, cases.context(store))
    with pytest.raises(ArtifactError, match=r"not finite, in final_norm\.weight"):
        Extractor(job)


def test_records_that_are_torn_or_asked_for_what_they_have_not(store, inputs):
    artifact = cases.extract(store, cases.settings(), inputs)
    records = Records(artifact)
    with pytest.raises(ConfigError, match=r"code-l1 has no neuron 32\nIt has 32"):
        records.neuron(1, 32)
    with pytest.raises(ConfigError, match=r"no layer 7\nThey have: code-l0, code-l1"):
        records.neuron(7, 0)
    path = artifact.folder / "excerpts.parquet"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(ArtifactError, match="damaged"):
        Records(artifact)
    path.write_bytes(b"x" * len(data))
    with pytest.raises(ArtifactError, match="no Parquet file"):
        Records(artifact)


def test_a_nan_that_arises_in_the_forward_pass_is_an_error(store, inputs):
    job = plan_job(cases.settings(), inputs, cases.context(store))
    extractor = Extractor(job)
    with torch.no_grad():
        extractor.reader.model.blocks[1].feedforward.dictionary.fill_(torch.nan)
    with pytest.raises(ArtifactError, match="activations of code-l1 are not finite"):
        extractor.read_shard(0)
