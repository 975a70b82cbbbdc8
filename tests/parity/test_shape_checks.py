"""The parity tests say nothing about shapes unless the signatures are really checked: they are."""

import jaxtyping
import pytest
import torch

from crate_model.config import ModelConfig
from crate_model.model import LanguageModel
from crate_model.ops import cross_entropy, ista


def test_a_wrong_shape_or_dtype_is_refused_at_the_signature() -> None:
    model = LanguageModel(ModelConfig("crate", 1, 2, 16, 8, 33))
    ids = torch.zeros(2, 8, dtype=torch.long)
    for wrong in (ids[0], ids.float()):
        with pytest.raises(jaxtyping.TypeCheckError, match="ids"):
            model(wrong)
    with pytest.raises(jaxtyping.TypeCheckError, match="targets"):
        model(ids, ids[:, 1:])
    with pytest.raises(jaxtyping.TypeCheckError, match="dictionary"):
        ista.ista(torch.randn(3, 4), torch.randn(8, 5), 0.1, 0.1, 2)
    with pytest.raises(jaxtyping.TypeCheckError, match="targets"):
        cross_entropy.linear_cross_entropy(torch.randn(3, 4), torch.randn(9, 4), ids[0])
