"""Every manifest and the Dockerfile, as they would be applied, judged without a cluster."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from cluster.check.__main__ import check
from cluster.check.network import Peer, allowed
from cluster.check.objects import load, parse, templates
from pipeline.config_load import load_config
from pipeline.sweep import add_arguments
from tests.cluster.manifests import AROUND, CLUSTER, OVERLAYS, ROOT, rendered

CRDS = Path(os.environ["KUBERAY_CRD_DIR"]) if os.environ.get("KUBERAY_CRD_DIR") else None
TOOLS = Path(sysconfig.get_path("scripts"))
APPLIED = [CLUSTER / "overlays" / name for name in OVERLAYS] + [CLUSTER / name for name in ("mlflow", "judge", "setup")]
RAW = ("setup", "mlflow/server.yaml", "mlflow/database.yaml", "mlflow/network-policies.yaml", "judge/judge.yaml")
needs_kubectl = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not on PATH")


@needs_kubectl
@pytest.mark.parametrize("folder", APPLIED, ids=lambda path: path.name)
def test_what_is_applied_has_no_problem(folder: Path) -> None:
    assert check(parse(rendered(folder)), load(list(AROUND)), CRDS) == []


@needs_kubectl
def test_only_the_workers_of_rdma_hold_a_capability() -> None:
    holders = [
        (name, pod.kind, container["securityContext"]["capabilities"].get("add"))
        for name in OVERLAYS
        for pod in templates(parse(rendered(CLUSTER / "overlays" / name)))
        for _, container in pod.containers()
        if container["securityContext"]["capabilities"].get("add")
    ]
    assert holders == [("rdma", "worker", ["IPC_LOCK"])]


@pytest.mark.parametrize("name", [*RAW, "base/sweep.yaml"])
def test_the_files_themselves_have_no_problem(name: str) -> None:
    assert check(load([CLUSTER / name]), None, CRDS) == []


def put_together(folder: Path, resource: str, *components: str) -> str:
    """What an overlay of one's own renders to, as the README has it, in a folder anywhere."""
    paths = [os.path.relpath(CLUSTER / path, folder) for path in (resource, *(f"components/{c}" for c in components))]
    (folder / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
        f"resources: [{paths[0]}]\ncomponents: [{', '.join(paths[1:])}]\n"
    )
    return rendered(folder)


@needs_kubectl
@pytest.mark.parametrize("storage", ["s3", "pvc"])
@pytest.mark.parametrize("hardware", [(), ("gpu-8",), ("gpu-multi-node",)], ids=lambda names: "".join(names) or "cpu")
def test_any_hardware_goes_with_any_storage_spot_nodes_and_a_queue(
    hardware: tuple[str, ...], storage: str, tmp_path: Path
) -> None:
    text = put_together(tmp_path, "base", *hardware, storage, "spot", "kueue")
    assert check(parse(text), load(list(AROUND)), CRDS) == []
    assert "capacity-type" in text and "queue-name" in text


@needs_kubectl
@pytest.mark.parametrize("mode", ["interactive", "preflight"])
@pytest.mark.parametrize("name", ["cpu", "gpu-multi-node", "spot", "rdma"])
def test_interactive_and_preflight_take_any_overlay(mode: str, name: str, tmp_path: Path) -> None:
    """The same pods as the sweep's, whatever the hardware and the storage."""
    objects = {item["kind"]: item for item in parse(put_together(tmp_path, f"overlays/{name}", mode))}
    (job,) = [item for item in parse(rendered(CLUSTER / "overlays" / name)) if item["kind"] == "RayJob"]
    wanted, group = job["spec"]["rayClusterSpec"], job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert "RayJob" not in objects
    if mode == "interactive":
        assert objects["RayCluster"]["spec"] == wanted
        return
    made, (container,) = objects["Job"]["spec"], objects["Job"]["spec"]["template"]["spec"]["containers"]
    (worker,) = group["template"]["spec"]["containers"]
    assert made["completions"] == made["parallelism"] == group["replicas"]
    assert {"name": "NODES", "value": str(group["replicas"])} in container["env"]
    for field in ("image", "resources", "volumeMounts", "envFrom", "securityContext"):
        assert container[field] == worker[field], field
    pod = made["template"]["spec"]
    assert {k: pod.get(k) for k in ("volumes", "tolerations")} == {
        k: group["template"]["spec"].get(k) for k in ("volumes", "tolerations")
    }


@needs_kubectl
@pytest.mark.parametrize(
    ("overlay", "config", "store"),
    [("cpu", "configs/quickstart.yaml", "/mnt/runs"), ("spot", "configs/pile.yaml", "s3://your-bucket/crate")],
)
def test_the_job_s_command_is_one_that_the_sweep_understands(overlay: str, config: str, store: str) -> None:
    """The submitter's shell expands it from the settings, as here; then the sweep's own parser reads it."""
    objects = {item["kind"]: item for item in parse(rendered(CLUSTER / "overlays" / overlay))}
    variables = objects["ConfigMap"]["data"] | {
        "CRATE_ARGS": "--max-gpu-hours=200 --until=tokens",
        "PATH": os.environ["PATH"],
    }
    script = f"printf '%s\\n' {objects['RayJob']['spec']['entrypoint']}"
    done = subprocess.run(["bash", "-ec", script], env=variables, capture_output=True, text=True, check=True)
    python, program, *arguments = done.stdout.splitlines()
    assert (python, program) == ("python", "pipeline/sweep.py") and (ROOT / program).is_file()
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = parser.parse_args(arguments)
    loaded = load_config(ROOT / options.config, options.set)
    assert (str(options.config), loaded.config.runtime.store) == (config, store)
    assert (options.max_gpu_hours, options.until) == (200, "tokens")


RAY = {"app.kubernetes.io/component": "ray"}
HEAD, WORKER = Peer(RAY | {"ray.io/node-type": "head"}), Peer(RAY | {"ray.io/node-type": "worker"})
SUBMITTER, PREFLIGHT = (
    Peer({"app.kubernetes.io/component": "submitter"}),
    Peer({"app.kubernetes.io/component": "preflight"}),
)
MLFLOW, DATABASE = Peer({"app.kubernetes.io/component": "mlflow"}), Peer({"app.kubernetes.io/component": "mlflow-db"})
JUDGE, STRANGER = Peer({"app.kubernetes.io/component": "judge"}), Peer({"app": "somebody-else"})
OPERATOR = Peer({"app.kubernetes.io/name": "kuberay-operator"}, "kuberay-system")
FALSE_OPERATOR = Peer({"app.kubernetes.io/name": "kuberay-operator"}, "default")
NEIGHBOUR = Peer(RAY | {"ray.io/node-type": "worker"}, "another-team")
DNS = Peer({"k8s-app": "kube-dns"}, "kube-system")
INTERNET, METADATA, INTRANET = Peer(address="52.216.8.1"), Peer(address="169.254.169.254"), Peer(address="10.1.2.3")

MAY = [
    (SUBMITTER, HEAD, 8265),
    (OPERATOR, HEAD, 8265),
    (WORKER, HEAD, 6379),
    (WORKER, WORKER, 29500),
    (HEAD, WORKER, 10002),
    (PREFLIGHT, PREFLIGHT, 29500),
    (HEAD, MLFLOW, 5000),
    (WORKER, MLFLOW, 5000),
    (PREFLIGHT, MLFLOW, 5000),
    (MLFLOW, DATABASE, 5432),
    (WORKER, JUDGE, 8000),
    (WORKER, INTERNET, 443),
    (MLFLOW, INTERNET, 443),
    (JUDGE, INTERNET, 443),
    (SUBMITTER, DNS, 53),
]
MAY_NOT = [
    (STRANGER, HEAD, 8265),
    (STRANGER, HEAD, 6379),
    (NEIGHBOUR, HEAD, 8265),
    (NEIGHBOUR, WORKER, 10002),
    (FALSE_OPERATOR, HEAD, 8265),
    (PREFLIGHT, HEAD, 8265),  # it asks a head of its own for the token
    (OPERATOR, HEAD, 6379),
    (OPERATOR, WORKER, 8265),
    (SUBMITTER, HEAD, 10001),
    (SUBMITTER, WORKER, 8265),
    (SUBMITTER, INTERNET, 443),
    (INTERNET, HEAD, 8265),
    (STRANGER, MLFLOW, 5000),
    (SUBMITTER, MLFLOW, 5000),
    (WORKER, DATABASE, 5432),
    (STRANGER, DATABASE, 5432),
    (DATABASE, INTERNET, 443),
    (STRANGER, JUDGE, 8000),
    (JUDGE, HEAD, 8265),
    (WORKER, METADATA, 80),
    (WORKER, METADATA, 443),
    (WORKER, INTRANET, 443),
    (WORKER, INTERNET, 22),
    (STRANGER, INTERNET, 443),
    (NEIGHBOUR, SUBMITTER, 22),
]


def _policies() -> list[dict]:
    files = [
        CLUSTER / p
        for p in ("setup/network-policies.yaml", "mlflow/network-policies.yaml", "judge/network-policy.yaml")
    ]
    return load(files)


def test_the_network_admits_what_the_work_needs() -> None:
    refused = [pair for pair in MAY if not allowed(_policies(), *pair)]
    assert refused == []


def test_the_network_admits_nothing_else() -> None:
    admitted = [pair for pair in MAY_NOT if allowed(_policies(), *pair)]
    assert admitted == []


def test_every_policy_is_needed() -> None:
    """Without any one of them something that must work does not, or something that must not does."""
    idle = []
    for policy in _policies():
        rest = [p for p in _policies() if p["metadata"]["name"] != policy["metadata"]["name"]]
        if all(allowed(rest, *pair) for pair in MAY) and not any(allowed(rest, *pair) for pair in MAY_NOT):
            idle.append(policy["metadata"]["name"])
    assert idle == []


@needs_kubectl
def test_the_labels_that_the_policies_name_are_on_the_pods() -> None:
    """The operator adds ray.io/node-type itself; app.kubernetes.io/component is ours and must be on every pod."""
    texts = [rendered(CLUSTER / "overlays" / name) for name in ("gpu-8", "preflight")]
    texts += [rendered(CLUSTER / name) for name in ("mlflow", "judge")]
    found = {
        (p.kind, p.metadata["labels"]["app.kubernetes.io/component"]) for p in templates(parse("---\n".join(texts)))
    }
    assert found == {
        ("head", "ray"),
        ("worker", "ray"),
        ("submitter", "submitter"),
        ("Job", "preflight"),
        ("Deployment", "mlflow"),
        ("StatefulSet", "mlflow-db"),
        ("Deployment", "judge"),
    }


def test_the_dockerfile_passes_hadolint() -> None:
    done = subprocess.run([TOOLS / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_manifests_pass_yamllint() -> None:
    rules = "{extends: default, rules: {line-length: {max: 130}, document-start: disable, braces: disable, "
    rules += "comments: {min-spaces-from-content: 1}, indentation: {indent-sequences: whatever}}}"
    done = subprocess.run([TOOLS / "yamllint", "-d", rules, CLUSTER], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_image_holds_only_what_is_named() -> None:
    """.dockerignore is an allow-list: its first rule leaves everything out, and all that the Dockerfile copies is let in."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    copied = set(re.findall(r"^COPY (?!--from)(\S+) ", (ROOT / "Dockerfile").read_text(), re.M))
    let_in = {rule[1:].rstrip("/") for rule in rules if rule.startswith("!")}
    assert copied <= let_in
    assert let_in - copied <= {"cluster", "cluster/mlflow"}  # the folders on the way
    assert all((ROOT / path).exists() for path in copied)


def test_no_secret_is_in_a_file() -> None:
    suspicious = re.compile(r"(AKIA[0-9A-Z]{16}|hf_[A-Za-z0-9]{20,}|-----BEGIN|eyJ[A-Za-z0-9_-]{20,})")
    files = [p for p in [ROOT / "Dockerfile", *CLUSTER.rglob("*")] if p.is_file() and p.suffix not in (".lock", ".pyc")]
    assert [str(path) for path in files if suspicious.search(path.read_text())] == []
