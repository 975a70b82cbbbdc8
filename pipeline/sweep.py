"""The whole study in one command: `python pipeline/sweep.py --config configs/quickstart.yaml`.

Configuration -> plan -> Ray DAG -> report. Run it again and what is done is kept; kill it anywhere and run it again and it
goes on. `--plan` says what it would do, and does nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a script: the repository's root is what imports start from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.config_load import LoadedConfig, load_config
from pipeline.errors import ArtifactError, CrateError

LOG_WIDTH = 140  # characters, where there is no terminal to ask
EXIT_INCOMPLETE = 10  # some cell failed; the report says which
STOPPED_BY_SIGNAL = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, help="YAML file, e.g. configs/quickstart.yaml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. pretrain.batch_tokens=2048"
    )
    parser.add_argument("--plan", action="store_true", help="say what would be kept and made, and stop")
    parser.add_argument("--json", action="store_true", help="with --plan: print it as JSON")
    parser.add_argument(
        "--until", default="report", metavar="STAGE", help="make the steps up to this stage only, e.g. tokens"
    )
    parser.add_argument("--max-gpu-hours", type=float, help="refuse to start a sweep that would take more than this")
    parser.add_argument("--gpu", default="", help="that the plan is for, e.g. H200; else the one found here")
    parser.add_argument("--gpus", type=int, default=0, help="how many of them")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="sweep.py", description=__doc__.partition("\n")[0])
    add_arguments(parser)
    return guarded(lambda: run(parser.parse_args(arguments)))


def guarded(call: Any) -> int:
    """Run `call`; a CrateError becomes its two lines on stderr and its exit code."""
    try:
        return call()
    except CrateError as error:
        print(f"error: {error.what}\n  {error.fix}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return STOPPED_BY_SIGNAL + signal.SIGINT


def run(options: argparse.Namespace) -> int:
    from rich.console import Console

    loaded = load_config(options.config, options.set)
    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console = Console(soft_wrap=True, width=LOG_WIDTH)
    if options.plan or options.max_gpu_hours is not None:
        rows = _plan_rows(loaded, options)
        _refuse_above(options.max_gpu_hours, rows)
        if options.plan:
            return _show_plan(rows, options.json, console)
        console.print(f"{rows['forecast']['gpu_hours']:.3g} GPU-hours forecast: {rows['assumed']}", highlight=False)
    return Sweep(loaded, console, options.until).run()


def _plan_rows(loaded: LoadedConfig, options: argparse.Namespace) -> dict[str, Any]:
    from pipeline.dag import kept, plan
    from pipeline.forecast.assumed import assume
    from pipeline.plan import plan_rows
    from pipeline.runtime import open_store

    store = open_store(loaded.config.runtime.store)
    whole = plan(loaded)
    assumed = assume(options.gpu, options.gpus, only_gpus=options.max_gpu_hours is not None)
    return plan_rows(whole, store, kept(whole, store), assumed)


def _show_plan(rows: dict[str, Any], as_json: bool, console: Any) -> int:
    from pipeline.plan import print_plan

    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        print_plan(rows, console)
    return 0


def _refuse_above(max_gpu_hours: float | None, rows: dict[str, Any]) -> None:
    hours = rows["forecast"]["gpu_hours"]
    if max_gpu_hours is not None and hours > max_gpu_hours:
        from pipeline.errors import ResourceError

        raise ResourceError(
            f"this sweep would take about {hours:.3g} GPU-hours, all stages, more than --max-gpu-hours {max_gpu_hours} "
            f"(assumed: {rows['assumed']})",
            fix="Make the grid or pretrain.total_tokens smaller, name the cluster's --gpu and --gpus, or raise the limit. "
            "`--plan` shows each cell's share.",
        )


@dataclass
class Sweep:
    """One run of a configuration: plan, connect, execute, report."""

    loaded: LoadedConfig
    console: Any
    until: str = "report"  # the last stage to make

    def run(self) -> int:
        from pipeline.dag import kept, plan
        from pipeline.runtime import open_store

        config = self.loaded.config
        self.store = open_store(config.runtime.store)
        self.plan = plan(self.loaded)
        self.wanted = plan(self.loaded, self.until)
        self.kept = kept(self.wanted, self.store)
        told: dict[str, None] = {}  # each sentence once
        for name, step in self.wanted.steps.items():
            if name not in self.kept:
                told |= dict.fromkeys(step.stage.check(self.wanted.config_of(step)) or ())
        self._verify(self.kept)
        self._prepare_run()
        to_make = len(self.wanted.steps) - len(self.kept)
        self.console.print(
            f"[bold]{config.name}[/]: {self.plan.models_told}, {len(self.wanted.steps)} steps: "
            f"{len(self.kept)} kept, {to_make} to make  (store: {self.store.place})",
            highlight=False,
        )
        for sentence in told:
            self.console.print(f"[yellow]mind[/]: {sentence}", highlight=False, soft_wrap=True)
        if merged := self.plan.points_told:
            self.console.print(merged, highlight=False)
        if to_make == 0 and self.until != "report":
            return self._say_part({})
        if to_make == 0 and (done := self._finished_report()):
            return self._say_end(done, {})
        return self._execute()

    def _prepare_run(self) -> None:
        from pipeline.artifacts.store import disk_error
        from pipeline.stage import STOP_NOTE

        steps = {step.name: step.recipe for step in self.plan.steps.values()}
        note = json.dumps({"name": self.plan.name, "steps": steps}, indent=1)
        try:
            self.store.delete_note(self.plan.name, STOP_NOTE)
            self.store.write_note(self.plan.name, "plan.json", note.encode())
            self.store.unlink_others(self.plan.name, {name: recipe["fingerprint"] for name, recipe in steps.items()})
            self._take(self.kept)
        except OSError as error:
            raise disk_error(error, self.store.root) from error

    def _take(self, artifacts: Mapping[str, Any]) -> dict[str, str]:
        """Make the artifacts of some steps this run's; returns the links to them."""
        from pipeline.seals import note_seals

        note_seals(self.store, self.plan.name, artifacts)
        return {name: self.store.link(self.plan.name, name, artifact) for name, artifact in artifacts.items()}

    def _verify(self, artifacts: Mapping[str, Any], beside: Mapping[str, Any] | None = None) -> None:
        """Reused artifacts are hashed before anything is built on them, unless their files are as they were when last hashed.

        Nor is anything built on one that has another seal than when this run made or took it, or that was made of another
        content of its inputs than they have; inputs may be `beside` them.
        """
        from pipeline.artifacts.verified import verify_once
        from pipeline.seals import check_made_of, check_seal, read_seals

        seals = read_seals(self.store, self.plan.name) if artifacts else {}
        for name, artifact in artifacts.items():
            try:
                check_seal(seals, name, artifact, self.store.place)
                verify_once(self.store, artifact)
            except ArtifactError as error:
                raise ArtifactError(f"{name}: {error.what}", fix=error.fix) from error
        check_made_of({**(beside or {}), **artifacts}, self.store.place)

    def _finished_report(self) -> Any:
        from pipeline.dag import report_step

        step = report_step(self.plan, self.kept, {})
        if found := self.store.find(step.stage.name, step.fingerprint):
            self._verify({step.name: found}, self.kept)
        return found

    def _execute(self) -> int:
        from pipeline import runtime
        from pipeline.execute import Execution
        from pipeline.seals import check_made_of
        from pipeline.stage import Context
        from pipeline.sweep_tracking import SweepTracking
        from pipeline.watch import Watch

        config = self.loaded.config
        uri = runtime.mlflow_uri(config.runtime, self.store)
        log = self._log_to_file()
        with (
            SweepTracking.start(uri, self.plan, self.store) as tracking,
            _cluster(config.runtime, needed=len(self.kept) < len(self.wanted.steps)) as resources,
            Watch(self.store, config.name, self.console) as watch,
            self._stop_on_signal(),
        ):
            self.console.print(
                f"logs: {log}, {runtime.ray_log_folder()}   MLflow: {tracking.shown_uri}", highlight=False
            )
            resolved = runtime.resolve(config.runtime, resources, len(self.plan.cells))
            base = Context(self.store, resolved, config.name, "", "", tracking.parent)

            def on_result(result: Any) -> None:
                watch.ended(result)
                tracking.ended(result)
                if result.artifact:
                    self._take({result.step: result.artifact})

            results = Execution(self.wanted, base, self.kept, tracking.cells, on_result, watch.tick).run()
            if self._stop_requested():
                self.console.print("Stopped as asked; what is done is kept. Run the same command to go on.")
                return STOPPED_BY_SIGNAL + signal.SIGTERM
            check_made_of({name: r.artifact for name, r in results.items() if r.artifact}, self.store.place)
            missing = {name: result.missing for name, result in results.items() if result.missing}
            if self.until != "report":
                tracking.finished = True
                return self._say_part(missing)
            report = self.make_report(results, missing, base)
            on_result(report)
            if report.artifact is None:
                raise report.error
            tracking.finish(report.artifact, missing)
        return self._say_end(report.artifact, missing)

    def _log_to_file(self) -> Path:
        """Send what libraries and failed steps in this process have to say to a file, and give its path."""
        path = self.store.run_folder(self.plan.name) / "driver.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        logging.basicConfig(filename=path, level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
        logging.captureWarnings(True)
        return path

    def make_report(self, results: dict[str, Any], missing: dict[str, str], base: Any) -> Any:
        """Make the report here, in the driver: it only reads small tables. One that is there already is checked."""
        from dataclasses import replace

        from pipeline.dag import report_step
        from pipeline.execute import run_step

        made = {name: result.artifact for name, result in results.items() if result.artifact}
        step = report_step(self.plan, made, missing)
        context = replace(base, step_name=step.name, fingerprint=step.fingerprint)
        report = run_step(step, context, *(results[name] for name in step.inputs))
        if report.artifact and not report.made:
            self._verify({step.name: report.artifact}, made)
        return report

    @contextlib.contextmanager
    def _stop_on_signal(self) -> Iterator[None]:
        """Turn SIGTERM and Ctrl-C into a request that every step sees; a second Ctrl-C leaves at once."""
        from pipeline.stage import STOP_NOTE

        def request(number: int, frame: Any) -> None:
            if number == signal.SIGINT and self._stop_requested():
                raise KeyboardInterrupt
            self.store.write_note(self.plan.name, STOP_NOTE, b"")
            self.console.print("Stopping: the steps under way save what they have (Ctrl-C again to leave at once).")

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop_requested(self) -> bool:
        from pipeline.stage import STOP_NOTE

        return self.store.read_note(self.plan.name, STOP_NOTE) is not None

    def _say_part(self, missing: dict[str, str]) -> int:
        self._say_missing(missing)
        self.console.print(
            f"Made up to {self.until}, as asked. Without --until the same command goes on.", highlight=False
        )
        return EXIT_INCOMPLETE if missing else 0

    def _say_missing(self, missing: dict[str, str]) -> None:
        for name, reason in missing.items():
            self.console.print(f"[red]missing[/] {name}: {reason}", highlight=False)

    def _say_end(self, report: Any, missing: dict[str, str]) -> int:
        link = self._take({"report": report})["report"]
        self._say_missing(missing)
        self.console.print(f"report: {link}/index.html", highlight=False)
        return EXIT_INCOMPLETE if missing else 0


@contextlib.contextmanager
def _cluster(settings: Any, needed: bool) -> Iterator[dict[str, float]]:
    """The connected Ray cluster's resources; nothing is started when only the report is to be made."""
    if not needed:
        yield {}
        return
    import ray

    from pipeline import runtime

    resources = runtime.connect_ray(settings)
    try:
        yield resources
    finally:
        ray.shutdown()


if __name__ == "__main__":
    sys.exit(main())
