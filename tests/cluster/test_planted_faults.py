"""Faults planted into a sound sweep, one at a time: the checker must name each by its rule, and find none in the sound one."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.check.__main__ import check
from cluster.check.objects import load, parse
from tests.cluster.manifests import AROUND, Step, altered, settings, sound_sweep

JOB, CLUSTER = "/spec", "/spec/rayClusterSpec"
HEAD, WORKERS = f"{CLUSTER}/headGroupSpec", f"{CLUSTER}/workerGroupSpecs/0"
HEAD_POD, POD, SUBMITTER = f"{HEAD}/template/spec", f"{WORKERS}/template/spec", "/spec/submitterPodTemplate/spec"
BOX = f"{POD}/containers/0"
GPU = "nvidia.com~1gpu"
CRDS = os.environ.get("KUBERAY_CRD_DIR", "")


def add(pointer: str, value: Any) -> Step:
    return ("add", pointer, value)


def put(pointer: str, value: Any) -> Step:
    return ("replace", pointer, value)


def drop(pointer: str) -> Step:
    return ("remove", pointer, None)


def rule_of_deletion(policy: str, status: str, seconds: int) -> dict[str, Any]:
    return {"policy": policy, "condition": {"jobStatus": status, "ttlSeconds": seconds}}


IN_DAYS = [drop(f"{JOB}/shutdownAfterJobFinishes"), drop(f"{JOB}/ttlSecondsAfterFinished")]

FAULTS: dict[str, tuple[str, list[Step]]] = {
    # Kubernetes: what a pod may say
    "typo in a container": ("schema", [add(f"{BOX}/imagePullPolcy", "Always")]),
    "container without a name": ("schema", [drop(f"{BOX}/name")]),
    "number as a variable": ("environment", [add(f"{BOX}/env", [{"name": "N", "value": 1}])]),
    "quantity 64GB": ("quantity", [put(f"{BOX}/resources/limits/memory", "64GB")]),
    "size of a volume": ("quantity", [put(f"{POD}/volumes/1/emptyDir/sizeLimit", "lots")]),
    "request above its limit": ("request-over-limit", [put(f"{BOX}/resources/requests/memory", "641Gi")]),
    "half a GPU": ("device", [put(f"{BOX}/resources/limits/{GPU}", "500m")]),
    "GPU request below its limit": ("device", [put(f"{BOX}/resources/requests/{GPU}", "4")]),
    "GPU in requests only": ("device", [drop(f"{BOX}/resources/limits/{GPU}")]),
    "two volumes of one name": ("duplicate", [add(f"{POD}/volumes/-", {"name": "shm", "emptyDir": {}})]),
    "two mounts at one path": ("duplicate", [add(f"{BOX}/volumeMounts/-", {"name": "shm", "mountPath": "/tmp"})]),
    "two variables of one name": (
        "duplicate",
        [add(f"{BOX}/env", [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}])],
    ),
    "mount without a volume": (
        "mount-without-volume",
        [add(f"{BOX}/volumeMounts/-", {"name": "data", "mountPath": "/data"})],
    ),
    "toleration of no effect": ("toleration", [put(f"{POD}/tolerations/0/effect", "NoScheduling")]),
    "toleration Exists with a value": ("toleration", [add(f"{POD}/tolerations/0/value", "yes")]),
    "toleration by an unknown operator": ("toleration", [put(f"{POD}/tolerations/0/operator", "In")]),
    "submitter that restarts for ever": ("restart-policy", [put(f"{SUBMITTER}/restartPolicy", "Always")]),
    "unknown restart policy": ("restart-policy", [add(f"{POD}/restartPolicy", "Sometimes")]),
    "variable with a space": ("environment", [add(f"{BOX}/env", [{"name": "MY VAR", "value": "1"}])]),
    "variable from two sources": (
        "environment",
        [add(f"{BOX}/env", [{"name": "A", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}])],
    ),
    "image in capitals": ("image", [put(f"{BOX}/image", "Crate/Scaling:0.1.0")]),
    "image without a tag": ("image", [put(f"{BOX}/image", "crate-scaling")]),
    "image latest": ("image", [put(f"{BOX}/image", "crate-scaling:latest")]),
    "container in capitals": ("name", [put(f"{BOX}/name", "Ray_Worker")]),
    "long name of a port": ("name", [put(f"{HEAD_POD}/containers/0/ports/0/name", "global-control-store")]),
    "label value with a space": ("name", [add(f"{WORKERS}/template/metadata/labels/team", "my team")]),
    "no memory limit": ("unbounded", [drop(f"{BOX}/resources/limits/memory")]),
    "no shared memory": ("shared-memory", [drop(f"{BOX}/volumeMounts/0")]),
    "object store above shared memory": (
        "shared-memory",
        [put(f"{WORKERS}/rayStartParams/object-store-memory", "99000000000")],
    ),
    "shared memory above half of memory": ("shared-memory", [put(f"{POD}/volumes/0/emptyDir/sizeLimit", "400Gi")]),
    "nowhere to compile": ("scratch", [drop(f"{BOX}/volumeMounts/1")]),
    "a scratch that is read only": ("scratch", [add(f"{BOX}/volumeMounts/1/readOnly", True)]),
    # Pod Security, restricted
    "root": ("pod-security", [put(f"{POD}/securityContext/runAsUser", 0)]),
    "perhaps root": ("pod-security", [drop(f"{POD}/securityContext/runAsNonRoot")]),
    "no seccomp profile": ("pod-security", [drop(f"{POD}/securityContext/seccompProfile")]),
    "escalation not forbidden": ("pod-security", [drop(f"{BOX}/securityContext/allowPrivilegeEscalation")]),
    "capabilities kept": ("pod-security", [drop(f"{BOX}/securityContext/capabilities")]),
    "IPC_LOCK": ("pod-security", [add(f"{BOX}/securityContext/capabilities/add", ["IPC_LOCK"])]),
    "privileged": ("pod-security", [add(f"{BOX}/securityContext/privileged", True)]),
    "a folder of the node": (
        "pod-security",
        [add(f"{POD}/volumes/-", {"name": "host", "hostPath": {"path": "/data"}})],
    ),
    "the node's network": ("pod-security", [add(f"{POD}/hostNetwork", True)]),
    "a port of the node": ("pod-security", [add(f"{HEAD_POD}/containers/0/ports/1/hostPort", 8265)]),
    "the operator's own submitter": ("pod-security", [drop("/spec/submitterPodTemplate")]),
    # exposure and secrets
    "token of the Kubernetes API": ("exposure", [drop(f"{POD}/automountServiceAccountToken")]),
    "service links": ("exposure", [put(f"{POD}/enableServiceLinks", True)]),
    "password written out": ("secret", [add(f"{BOX}/env", [{"name": "MLFLOW_TRACKING_PASSWORD", "value": "hunter2"}])]),
    "secrets in the runtime environment": (
        "rayjob-runtime-env",
        [add(f"{JOB}/runtimeEnvYAML", "env_vars: {AWS_SECRET_ACCESS_KEY: abc}")],
    ),
    # what only the operator refuses
    "long name": ("ray-name", [put("/metadata/name", "a" * 48)]),
    "name that starts with a digit": ("ray-name", [put("/metadata/name", "4-layers")]),
    "no head container": ("ray-containers", [put(f"{HEAD_POD}/containers", [])]),
    "unknown submission mode": ("rayjob-mode", [put(f"{JOB}/submissionMode", "K8sJob")]),
    "sidecar with a submitter": ("rayjob-mode", [put(f"{JOB}/submissionMode", "SidecarMode")]),
    "time to live without an end": ("rayjob-end", [put(f"{JOB}/shutdownAfterJobFinishes", False)]),
    "suspended without an end": ("rayjob-end", [*IN_DAYS, add(f"{JOB}/suspend", True)]),
    "deadline of nothing": ("rayjob-end", [put(f"{JOB}/activeDeadlineSeconds", 0)]),
    "retries of another's cluster": (
        "rayjob-retries",
        [drop(CLUSTER), add(f"{JOB}/clusterSelector", {"ray.io/cluster": "crate"})],
    ),
    "interactive with retries": ("rayjob-retries", [put(f"{JOB}/submissionMode", "InteractiveMode")]),
    "no cluster": ("rayjob-cluster", [drop(CLUSTER)]),
    "two clusters": ("rayjob-cluster", [add(f"{JOB}/clusterSelector", {"ray.io/cluster": "crate"})]),
    "deletion rules beside shutdown": (
        "rayjob-deletion",
        [add(f"{JOB}/deletionStrategy", {"deletionRules": [rule_of_deletion("DeleteCluster", "SUCCEEDED", 60)]})],
    ),
    "cluster deleted before its workers": (
        "rayjob-deletion",
        [
            *IN_DAYS,
            add(
                f"{JOB}/deletionStrategy",
                {
                    "deletionRules": [
                        rule_of_deletion("DeleteWorkers", "FAILED", 600),
                        rule_of_deletion("DeleteCluster", "FAILED", 60),
                    ]
                },
            ),
        ],
    ),
    "broken runtime environment": ("rayjob-runtime-env", [add(f"{JOB}/runtimeEnvYAML", "{pip: [")]),
    "fewest above most": ("ray-replicas", [put(f"{WORKERS}/minReplicas", 2)]),
    "no most": ("ray-replicas", [drop(f"{WORKERS}/maxReplicas")]),
    "resources said twice": ("ray-resources", [add(f"{HEAD}/resources", {"CPU": "4"})]),
    "labels among the start parameters": ("ray-labels", [add(f"{WORKERS}/rayStartParams/labels", "a=b")]),
    "token with an old Ray": ("ray-token", [put(f"{CLUSTER}/rayVersion", "2.51.1")]),
    "Kubernetes tokens for a job": ("ray-token", [add(f"{CLUSTER}/authOptions/enableK8sTokenAuth", True)]),
    "redis by hand": (
        "ray-redis",
        [add(f"{HEAD_POD}/containers/0/env", [{"name": "RAY_REDIS_ADDRESS", "value": "redis:6379"}])],
    ),
    "autoscaler v2 without autoscaling": (
        "ray-autoscaling",
        [add(f"{HEAD_POD}/containers/0/env", [{"name": "RAY_enable_autoscaler_v2", "value": "1"}])],
    ),
    "built-in network policy": ("ray-gate", [add(f"{CLUSTER}/networkPolicy", {"mode": "DenyAll"})]),
    # what nobody refuses
    "no token": ("token", [put(f"{CLUSTER}/authOptions/mode", "disabled")]),
    "token left to the default": ("token", [drop(f"{CLUSTER}/authOptions")]),
    "work on the head": ("head", [drop(f"{HEAD}/rayStartParams/num-cpus")]),
    "head on spot nodes": ("head", [drop(f"{HEAD_POD}/affinity")]),
    "autoscaling": ("fixed-workers", [add(f"{CLUSTER}/enableInTreeAutoscaling", True)]),
    "range of workers": ("fixed-workers", [put(f"{WORKERS}/maxReplicas", 8)]),
    "another image for workers": ("one-image", [put(f"{BOX}/image", "crate-scaling:0.2.0")]),
    "GPUs said twice": ("gpus", [add(f"{WORKERS}/rayStartParams/num-gpus", "8")]),
    "GPU nodes not tolerated": ("gpus", [drop(f"{POD}/tolerations")]),
    "queue without an end": ("queue", [*IN_DAYS, add("/metadata/labels/kueue.x-k8s.io~1queue-name", "crate")]),
    "driver with a GPU": ("driver", [add(f"{JOB}/entrypointNumGpus", 1)]),
    "waits for ever": ("job-ends", [drop(f"{JOB}/preRunningDeadlineSeconds")]),
    "stays when done": ("job-ends", IN_DAYS),
    "claim that nobody makes": (
        "reference",
        [add(f"{POD}/volumes/-", {"name": "runs", "persistentVolumeClaim": {"claimName": "my-claim"}})],
    ),
    "settings that nobody makes": ("reference", [put(f"{BOX}/envFrom/0/configMapRef/name", "crate-setting")]),
    "account that nobody makes": ("reference", [put(f"{POD}/serviceAccountName", "ray")]),
}

SCHEMA_FAULTS: dict[str, list[Step]] = {
    "typo in the job": [add(f"{JOB}/shutdownAfterJobFinish", True)],
    "typo in the cluster": [add(f"{CLUSTER}/autoscalerOption", {})],
    "number in quotes": [put(f"{JOB}/backoffLimit", "2")],
    "number too large": [put(f"{JOB}/backoffLimit", 2**40)],
    "group without a name": [drop(f"{WORKERS}/groupName")],
    "unknown token mode": [put(f"{CLUSTER}/authOptions/mode", "tokens")],
    "unknown manager": [add(f"{JOB}/managedBy", "me")],
    "deadline of nothing": [put(f"{JOB}/preRunningDeadlineSeconds", 0)],
    "two volumes of one name": [add(f"{POD}/volumes/-", {"name": "shm", "emptyDir": {}})],
    "both ways of deletion": [
        add(
            f"{JOB}/deletionStrategy",
            {
                "onSuccess": {"policy": "DeleteCluster"},
                "onFailure": {"policy": "DeleteCluster"},
                "deletionRules": [rule_of_deletion("DeleteCluster", "SUCCEEDED", 60)],
            },
        )
    ],
    "condition of two kinds": [
        add(
            f"{JOB}/deletionStrategy",
            {
                "deletionRules": [
                    {"policy": "DeleteSelf", "condition": {"jobStatus": "FAILED", "jobDeploymentStatus": "Failed"}}
                ]
            },
        )
    ],
}

OTHER_FAULTS: dict[str, tuple[str, str]] = {
    "a Secret in a file": ("secret", "{apiVersion: v1, kind: Secret, metadata: {name: s}, stringData: {a: b}}"),
    "a password among the settings": (
        "secret",
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: c}, data: {AWS_SECRET_ACCESS_KEY: abc}}",
    ),
    "a dashboard for the world": (
        "exposure",
        "{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {type: LoadBalancer, ports: [{port: 8265}]}}",
    ),
    "an ingress": (
        "exposure",
        "{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: i}, "
        "spec: {defaultBackend: {service: {name: s, port: {number: 8265}}}}}",
    ),
    "a budget that Ray pods do not have": (
        "budget",
        "{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: b}, "
        "spec: {maxUnavailable: 0, selector: {matchLabels: {ray.io/node-type: head}}}}",
    ),
    "a typo in a policy": (
        "schema",
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: n}, "
        "spec: {podSelector: {}, policyType: [Ingress]}}",
    ),
    "a kind that does not exist": ("schema", "{apiVersion: apps/v1, kind: Deploymnet, metadata: {name: d}}"),
}


def found(objects: list[dict[str, Any]], crds: Path | None = None) -> dict[str, list[str]]:
    rules: dict[str, list[str]] = {}
    for problem in check(objects, load(list(AROUND)), crds):
        rules.setdefault(problem.rule, []).append(str(problem))
    return rules


def test_a_sound_sweep_has_no_problem() -> None:
    assert found([sound_sweep(), settings()]) == {}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named_by_its_rule(fault: str) -> None:
    rule, steps = FAULTS[fault]
    rules = found([altered(sound_sweep(), steps), settings()])
    assert rule in rules, f"{fault}: wanted {rule}, found {rules}"


@pytest.mark.parametrize("fault", OTHER_FAULTS)
def test_a_faulty_object_is_named_by_its_rule(fault: str) -> None:
    rule, text = OTHER_FAULTS[fault]
    rules = found(parse(text))
    assert rule in rules, f"{fault}: wanted {rule}, found {rules}"


@pytest.mark.skipif(not CRDS, reason="KUBERAY_CRD_DIR names no folder with KubeRay's CRDs")
@pytest.mark.parametrize("fault", SCHEMA_FAULTS)
def test_the_crds_refuse(fault: str) -> None:
    rules = found([altered(sound_sweep(), SCHEMA_FAULTS[fault]), settings()], Path(CRDS))
    assert "crd" in rules, f"{fault}: found {rules}"


@pytest.mark.skipif(not CRDS, reason="KUBERAY_CRD_DIR names no folder with KubeRay's CRDs")
def test_the_crds_take_the_sound_sweep() -> None:
    assert found([sound_sweep(), settings()], Path(CRDS)) == {}


def _places(node: Any, path: str = "") -> Iterator[str]:
    if path:
        yield path
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from _places(value, f"{path}/{str(key).replace('/', '~1')}")


def test_whatever_stands_in_a_manifest_the_checker_answers() -> None:
    """Any part replaced by something of another shape: problems or none, and never an exception."""
    sweep, draw = sound_sweep(), random.Random(0)
    for place in draw.sample(sorted(_places(sweep)), 30):
        found([altered(sweep, [put(place, draw.choice([None, "word", 3, [], {}, [None], True]))]), settings()])
