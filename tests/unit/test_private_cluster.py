"""A private cluster that is late to start is begun anew once; then the person is told in two lines."""

from __future__ import annotations

import pytest

from pipeline import runtime
from pipeline.config import RuntimeConfig
from pipeline.errors import ResourceError

LATE = "The current node timed out during startup. This could happen because the GCS has become overloaded."


def starts(monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> list[RuntimeConfig]:
    """What is asked for, each time; the first calls end in `errors`."""
    import ray

    asked: list[RuntimeConfig] = []

    def start(config: RuntimeConfig) -> None:
        asked.append(config)
        if len(asked) <= len(errors):
            raise errors[len(asked) - 1]

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(runtime, "_init_here", start)
    monkeypatch.setattr(runtime, "_wait_for_room", lambda address: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    return asked


def test_it_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = starts(monkeypatch, Exception(LATE))
    assert runtime.connect_ray(RuntimeConfig(cpus=2)) == {"CPU": 2.0}
    assert len(asked) == 2


def test_late_again_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = starts(monkeypatch, Exception(LATE), Exception(LATE))
    with pytest.raises(ResourceError, match="cannot start Ray here: The current node timed out during startup") as told:
        runtime.connect_ray(RuntimeConfig(cpus=2))
    assert len(asked) == 2 and len(str(told.value).splitlines()) == 2


def test_another_failure_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = starts(monkeypatch, OSError("no room"))
    with pytest.raises(ResourceError, match="no room"):
        runtime.connect_ray(RuntimeConfig(cpus=2))
    assert len(asked) == 1
