"""Errors cross process borders whole, and print as two lines."""

from __future__ import annotations

import pickle

import pytest

from pipeline.errors import ArtifactError, ClientError, ConfigError, CrateError, ResourceError, StageError

ERRORS = [
    ConfigError("a", fix="b"),
    ArtifactError("a", fix="b"),
    ResourceError("a", fix="b"),
    StageError("a", fix="b", stage="pretrain", fingerprint="f00"),
    ClientError("a", fix="b", status=503, retryable=True),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling(error: CrateError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert copy.__dict__ == error.__dict__
    assert str(copy) == "a\nb"


def test_each_kind_has_its_own_exit_code() -> None:
    codes = [error.exit_code for error in ERRORS]
    assert len(set(codes)) == len(codes) and 0 not in codes
