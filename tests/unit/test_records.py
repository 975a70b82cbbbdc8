"""Reading excerpts by row group gives what a whole read and a filter give."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.artifacts.records import EXCERPTS, Records
from tests.synthetic_sweep import SyntheticSweep, fresh_store

COLUMNS = ["neuron", "kind", "rank", "start", "activations"]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """128 neurons a layer: several row groups a site."""
    sweep = SyntheticSweep(fresh_store(tmp_path_factory.mktemp("records")), top=2, random=1)
    sweep.add("crate", 2)
    return Records(sweep.inputs["crate-2l/activations"])


@pytest.mark.parametrize("neurons", [None, [0], [63, 64], [127, 3], []])
def test_rows_of_a_site(records: Records, neurons: list[int] | None) -> None:
    site, width = records.sites[1], records.longest()
    table = pq.read_table(records.artifact.file(EXCERPTS))
    table = table.filter(pc.and_(pc.equal(table["site"], site), pc.equal(table["width"], width)))
    found = records.excerpt_rows(site, width, COLUMNS, neurons)
    wanted = pa.array(range(records.n_neurons(site)) if neurons is None else neurons, pa.int32())
    assert found.filter(pc.is_in(found["neuron"], wanted)).equals(
        table.filter(pc.is_in(table["neuron"], wanted)).select(COLUMNS)
    )
    others = set(found["neuron"].to_pylist()) - set(wanted.to_pylist())
    assert len(others) < 64 * max(1, len(wanted)) if len(wanted) else not others


def test_the_longest_excerpts_are_found(records: Records) -> None:
    table = pq.read_table(records.artifact.file(EXCERPTS), columns=["width"])
    assert records.longest() == pc.max(table["width"]).as_py()
