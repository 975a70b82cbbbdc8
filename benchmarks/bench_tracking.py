"""What tracking costs a training step: with a server that answers in 200 ms, and with one that is down.

    python benchmarks/bench_tracking.py [--quick]

Steps of a real model (CRATE, one layer of width 128) and its optimizer on all cores but one, each logged as training logs (the
pipeline's default is every tenth step). The delivery process runs beside them, as in a sweep. Four sides take turns in one
process: nothing tracked, twice, which tells what the machine's noise is; the slow server, which is a process of its own and
answers MLflow's REST calls; an address where nobody listens. Each turn is timed once its delivery has reached, or missed, its
server. A side's cost is the median over the turns of its median step against that of the untracked steps beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
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
N_CTX, ROWS = 256, 4
LOGGED = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "mfu", "tokens", "skipped_steps", "time_left")
SIDES = ("untracked", "slow server", "untracked again", "server down")


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
        return dict.fromkeys(LOGGED, float(loss))

    return step


@contextlib.contextmanager
def tracked(uri: str, folder: Path) -> Iterator[tuple[Any, Path | None]]:
    """A tracker of a cell's run, and its line file's folder; nothing where there is no address."""
    if not uri:
        yield None, None
        return
    from pipeline.tracking_driver import TrackedSweep

    sweep = TrackedSweep(uri, "study", folder / "runs" / "study" / "mlflow-spool")
    parent = sweep.start_parent("study", {}, {})
    child = sweep.start_child(parent, "crate-1l", "f" * 32, {"model": {"n_layer": 1}})
    tracker = child.open()
    try:
        yield tracker, sweep.spool
    finally:
        tracker.close()
        for spec in (child, parent):
            sweep.finish(spec, "FINISHED")
        sweep.close()


def reached(spool: Path) -> bool:
    """Whether the delivery has sent lines of the tracker, or has said that it cannot."""
    sent = [path for path in spool.glob("crate-1l-*/*.sent") if path.stem != "run"]
    return bool(sent) or "not delivered" in (spool / "delivery.log").read_text("utf-8")


def turn(step: Callable[[], dict[str, float]], uri: str, folder: Path, n_steps: int) -> dict[str, float]:
    """Seconds of the median step, and of its tracker's call."""
    steps, calls = [], []
    with tracked(uri, folder) as (tracker, spool):
        number = 0
        while spool and not reached(spool):
            tracker.metrics({f"pretrain/{name}": value for name, value in step().items()}, step=number)
            number += 1
        for later in range(number, number + n_steps):
            started = time.perf_counter()
            values = step()
            told = time.perf_counter()
            if tracker:
                tracker.metrics({f"pretrain/{name}": value for name, value in values.items()}, step=later)
            ended = time.perf_counter()
            steps.append(ended - started)
            calls.append(ended - told)
    return {"step": median(steps), "call": median(calls)}


def closed_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns")
    parser.add_argument("--serve", action="store_true", help="be the slow server")
    options = parser.parse_args()
    if options.serve:
        serve()
    turns, n_steps = (2, 20) if options.quick else (4, 40)
    verdicts = Verdicts("tracking", "mlflow", "torch")
    server = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        slow = f"http://127.0.0.1:{int(server.stdout.readline())}"
        uris = dict(zip(SIDES, ("", slow, "", f"http://127.0.0.1:{closed_port()}"), strict=True))
        step = trainer()
        for _ in range(5):
            step()
        found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in range(turns):
            for side, uri in uris.items():
                with tempfile.TemporaryDirectory() as folder:
                    found[side].append(turn(step, uri, Path(folder), n_steps))
    finally:
        server.terminate()
        server.wait()
    seconds = {side: [one["step"] for one in made] for side, made in found.items()}
    plain = [(a + b) / 2 for a, b in zip(seconds["untracked"], seconds["untracked again"], strict=True)]
    cost = {side: 100 * median(a / b - 1 for a, b in zip(seconds[side], plain, strict=True)) for side in SIDES}
    noise = 100 * median(abs(a / b - 1) for a, b in zip(seconds["untracked"], plain, strict=True))
    call = {side: 100 * median(one["call"] / one["step"] for one in found[side]) for side in SIDES}
    verdicts.measured("tracking_untracked_step", 1000 * median(plain), "ms")
    verdicts.measured("tracking_noise", noise, "%")
    verdicts.at_most("tracking_slow_server", cost["slow server"], "%", 2)
    verdicts.at_most("tracking_slow_server_call", call["slow server"], "%", 2)
    verdicts.at_most("tracking_server_down", cost["server down"], "%", max(0.5, noise))  # 0, as far as it can be told
    verdicts.at_most("tracking_server_down_call", call["server down"], "%", 0.1)
    sides = {re.sub(r"\W", "_", side): made for side, made in found.items()}
    return verdicts.write(sides | {"answer_seconds": ANSWER_SECONDS, "steps_a_turn": n_steps})


if __name__ == "__main__":
    sys.exit(main())
