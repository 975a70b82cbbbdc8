"""A driver that trains one model under Ray in a store: started, killed and started again by the tests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

STEPS = 150
TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]


def train_one(root: str, name: str, **runtime: Any) -> Path:
    """Train the small world's model through the stage, in a task that takes no core; returns the artifact's folder."""
    import ray
    from training_world import make_job, with_runtime

    from pipeline.artifacts.store import Store

    job = make_job(Path(root), Store(Path(root) / "store").get("tokens", "7" * 32), name, total_tokens=STEPS * 256)
    job = with_runtime(job, optimizer="torch_fused", checkpoint_every_steps=5, **runtime)

    def task() -> Any:
        from pipeline.pretrain.stage import run

        return run(job.settings, {"tokens": job.tokens}, job.out_folder, job.context)

    ray.get(ray.remote(num_cpus=0)(task).remote())
    return job.out_folder


if __name__ == "__main__":
    from pipeline import runtime
    from pipeline.config import RuntimeConfig

    runtime.connect_ray(RuntimeConfig(cpus=2))
    train_one(sys.argv[1], sys.argv[2])
    print("trained", flush=True)
