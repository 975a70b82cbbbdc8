"""What all tests share: one private Ray cluster, a closed network, quiet libraries."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pipeline import runtime
from pipeline.config import RuntimeConfig
from tests import shape_checks

shape_checks.switch_on()
runtime.quiet_libraries()
os.environ["HF_HUB_OFFLINE"] = "1"


def _is_loopback(host: str) -> bool:
    if host in ("localhost", "", "0.0.0.0", "::"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback or ipaddress.ip_address(host).is_private
    except ValueError:
        return host == socket.gethostname()


@pytest.fixture(scope="session", autouse=True)
def closed_network() -> Iterator[None]:
    """Only this machine may be talked to: a test that needs the internet fails at once, with the host's name."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and not _is_loopback(str(address[0])):
            raise OSError(f"a test wanted to reach {address[0]}; the network is closed in tests")
        connect(self, address)  # type: ignore[arg-type]

    socket.socket.connect = guarded  # type: ignore[method-assign,assignment]
    yield
    socket.socket.connect = connect  # type: ignore[method-assign]


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[dict[str, float]]:
    """A private two-core cluster, started once for the whole session; gives its total resources."""
    import ray

    yield runtime.connect_ray(RuntimeConfig(cpus=2))
    ray.shutdown()


@pytest.fixture(scope="session")
def built_report(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The report of a small made-up sweep (tests/report_world.py), made once."""
    from tests.report_world import build, small_sweep

    folder = tmp_path_factory.mktemp("report")
    return build(small_sweep(folder / "store"), folder / "report")
