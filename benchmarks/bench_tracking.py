"""What tracking costs a training step: with a server that answers in 200 ms, and with one that is down.

    python benchmarks/bench_tracking.py [--quick]

Steps of a real model (CRATE, one layer of width 128) and its optimizer on all cores but one, each logged as training logs (the
pipeline's default is every tenth step), with the delivery process beside them as in a sweep. Blocks of ten steps take turns in
one process: tracked, and untracked with the delivery process stopped, so that what the machine does besides falls on both
alike. A side's cost is the median over its pairs of blocks, with the interval in which that median lies. Where the machine is
too noisy for that to tell, two other figures do, as shares of the steps' time: the seconds that the tracker's calls hold a step
up, and the seconds that a processor works for its thread and its delivery process, which is the most that they can cost. Three
sides: nothing tracked at all, which tells the noise; a server that answers MLflow's REST calls late and is a process of its
own; an address where nobody listens. A side begins once its delivery has reached, or missed, its server.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

from verdicts import Verdicts

ANSWER_SECONDS = 0.2
N_CTX, ROWS = 128, 1
LOGGED = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "mfu", "tokens", "skipped_steps", "time_left")
SIDES = ("nothing", "slow server", "server down")
STEPS_A_BLOCK = 10


class SlowServer(BaseHTTPRequestHandler):
    """As much of MLflow's REST interface as a run's delivery asks for, late."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer({"experiment": {"experiment_id": "1", "name": "study", "lifecycle_stage": "active"}})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        run = {"info": {"run_id": "a" * 32, "experiment_id": "1", "status": "RUNNING", "start_time": 0}, "data": {}}
        called = self.path.rpartition("/")[2]
        self._answer({"create": {"run": run}, "update": {"run_info": run["info"]}}.get(called, {}))

    def _answer(self, answer: dict[str, Any]) -> None:
        time.sleep(ANSWER_SECONDS)
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the program's output is its figures."""


def serve() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), SlowServer)
    print(server.server_port, flush=True)
    server.serve_forever()


def trainer() -> Callable[[], dict[str, float]]:
    """A function that makes one training step and returns what is logged of it."""
    import torch

    from crate_model.config import ModelConfig
    from crate_model.model import LanguageModel

    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(n_layer=1, n_head=4, d_model=128, n_ctx=N_CTX))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    ids = torch.randint(model.config.vocab_size, (ROWS, N_CTX + 1))

    def step() -> dict[str, float]:
        loss = model(ids[:, :-1], ids[:, 1:])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return dict.fromkeys(LOGGED, loss.item())

    return step


@contextlib.contextmanager
def tracked(uri: str, folder: Path) -> Iterator[tuple[Any, Any]]:
    """A tracker of a cell's run and its sweep; nothing where there is no address."""
    if not uri:
        yield None, None
        return
    from pipeline.tracking_driver import TrackedSweep

    sweep = TrackedSweep(uri, "study", folder / "runs" / "study" / "mlflow-spool")
    parent = sweep.start_parent("study", {}, {})
    child = sweep.start_child(parent, "crate-1l", "f" * 32, {"model": {"n_layer": 1}})
    tracker = child.open()
    try:
        yield tracker, sweep
    finally:
        tracker.close()
        for spec in (child, parent):
            sweep.finish(spec, "FINISHED")
        sweep.close()


def reached(spool: Path) -> bool:
    """Whether the delivery has sent lines of the tracker, or has said that it cannot."""
    sent = [path for path in spool.glob("crate-1l-*/*.sent") if path.stem != "run"]
    return bool(sent) or "not delivered" in (spool / "delivery.log").read_text("utf-8")


def blocks(step: Callable[[], dict[str, float]], uri: str, folder: Path, n_pairs: int) -> dict[str, Any]:
    """Seconds of blocks of steps, tracked and untracked in turns, and of the tracker's calls in the tracked ones; and
    seconds that processors worked for the tracker's thread and for the delivery."""
    found: dict[str, Any] = {"tracked": [], "untracked": [], "call": [], "processor": 0.0}
    with tracked(uri, folder) as (tracker, sweep):
        numbers = itertools.count()
        while sweep and not reached(sweep.spool):
            tracker.metrics({f"pretrain/{name}": value for name, value in step().items()}, step=next(numbers))
        before = processor_seconds(tracker, sweep)
        for pair in range(n_pairs):
            for side in ("tracked", "untracked") if pair % 2 else ("untracked", "tracked"):
                logs = bool(tracker) and side == "tracked"
                with contextlib.nullcontext() if logs or not sweep else stopped(sweep.delivery):
                    told, started = 0.0, time.perf_counter()
                    for number in itertools.islice(numbers, STEPS_A_BLOCK):
                        values = step()
                        if logs:
                            called = time.perf_counter()
                            tracker.metrics({f"pretrain/{n}": v for n, v in values.items()}, step=number)
                            told += time.perf_counter() - called
                    found[side].append(time.perf_counter() - started)
                if logs:
                    found["call"].append(told)
        found["processor"] = processor_seconds(tracker, sweep) - before
    return found


def processor_seconds(tracker: Any, sweep: Any) -> float:
    """What the tracker's thread and the delivery process have taken so far; 0 where there are none."""
    if not sweep:
        return 0.0
    import psutil

    delivery = psutil.Process(sweep.delivery.pid).cpu_times()
    threads = {thread.id: thread for thread in psutil.Process().threads()}
    own = threads[tracker._thread.native_id]
    return delivery.user + delivery.system + own.user_time + own.system_time


@contextlib.contextmanager
def stopped(process: subprocess.Popen) -> Iterator[None]:
    """A process without a processor, for a while."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def closed_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer turns")
    parser.add_argument("--serve", action="store_true", help="be the slow server")
    options = parser.parse_args()
    if options.serve:
        serve()
    n_pairs = 6 if options.quick else 40
    verdicts = Verdicts("tracking", "mlflow", "torch")
    server = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        slow = f"http://127.0.0.1:{int(server.stdout.readline())}"
        uris = dict(zip(SIDES, ("", slow, f"http://127.0.0.1:{closed_port()}"), strict=True))
        step = trainer()
        for _ in range(5):
            step()
        found: dict[str, dict[str, list[float]]] = {}
        for side, uri in uris.items():
            with tempfile.TemporaryDirectory() as folder:
                found[side] = blocks(step, uri, Path(folder), n_pairs)
    finally:
        server.terminate()
        server.wait()
    cost = {}
    for side, made in found.items():
        ratios = sorted(a / b for a, b in zip(made["tracked"], made["untracked"], strict=True))
        # Where the median lies, by its order statistics: 95 of 100 such intervals hold it.
        reach = 0.98 * len(ratios) ** 0.5
        low, high = (ratios[round(len(ratios) / 2 + sign * reach - 0.5)] for sign in (-1, 1))
        cost[side] = {"percent": 100 * (median(ratios) - 1), "low": 100 * (low - 1), "high": 100 * (high - 1)}
        print(f"  {side}: {cost[side]['percent']:+.2f} % of a step, between {low - 1:+.2%} and {high - 1:+.2%}")
    call = {
        side: 100 * median(a / b for a, b in zip(m["call"], m["tracked"], strict=True))
        for side, m in found.items()
        if m["call"]
    }
    worked = {side: 100 * made["processor"] / sum(made["tracked"]) for side, made in found.items()}
    noise = abs(cost["nothing"]["percent"])
    verdicts.measured("tracking_untracked_step", 1000 * median(found["nothing"]["untracked"]) / STEPS_A_BLOCK, "ms")
    verdicts.measured("tracking_noise", noise, "%")
    verdicts.at_most("tracking_slow_server", cost["slow server"]["percent"], "%", 2)
    verdicts.at_most("tracking_slow_server_call", call["slow server"], "%", 2)
    verdicts.at_most("tracking_slow_server_processor", worked["slow server"], "%", 2)
    none = 0.5  # as far as it can be told
    verdicts.at_most("tracking_server_down", cost["server down"]["percent"], "%", max(none, noise))
    verdicts.at_most("tracking_server_down_call", call["server down"], "%", 0.1)
    verdicts.at_most("tracking_server_down_processor", worked["server down"], "%", none)
    sides = {re.sub(r"\W", "_", side): made | cost[side] for side, made in found.items()}
    return verdicts.write(sides | {"answer_seconds": ANSWER_SECONDS, "steps_a_block": STEPS_A_BLOCK})


if __name__ == "__main__":
    sys.exit(main())
