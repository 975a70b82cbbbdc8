"""What a sweep needs from its nodes, measured where it will run: `python -m cluster.preflight [--only shm,store]`.

One line a fact: `ok`, `BAD` with what to do, or `--` for what is not there and not needed; exit code 1 when any is BAD.
On several nodes run it on each with NODES, JOB_COMPLETION_INDEX and RENDEZVOUS (host:port of node 0) set, as the overlay
`preflight` does. Knows nothing of the pipeline, so that it tells the cluster's faults alone; of the models' code it asks one
thing, whether Triton's kernels run.
"""

from __future__ import annotations

import argparse
import os
import sys

from cluster.preflight.collectives import collectives
from cluster.preflight.node import fused, gpus, scratch, shm, store, triton, user
from cluster.preflight.services import judge, mlflow, token

CHECKS = {
    check.__name__: check
    for check in (user, shm, scratch, store, gpus, triton, fused, mlflow, judge, token, collectives)
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="preflight", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default=",".join(CHECKS), help=f"comma-separated, of {', '.join(CHECKS)}")
    wanted = parser.parse_args().only.split(",")
    if unknown := [name for name in wanted if name not in CHECKS]:
        parser.error(f"no such check: {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    bad = 0
    for name in wanted:
        for fact in CHECKS[name]():
            bad += fact.good is False
            print(fact.line(name), flush=True)
    print(f"preflight of node {os.environ.get('JOB_COMPLETION_INDEX', '0')}: {f'{bad} bad' if bad else 'fit'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
