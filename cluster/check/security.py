"""The Pod Security Standard *restricted*, and what this project adds: no secret in a file, nothing open to the world.

*Source:* https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

from __future__ import annotations

import re

from cluster.check.objects import PodTemplate
from cluster.check.problem import Object, Problem, Problems, name_of

VOLUME_KINDS = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
SAFE_SYSCTLS = {"kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start"}
ALLOWED = "cluster.check/allow-capabilities"  # annotation of a pod: told apart on purpose, in the manifest itself
SECRET_NAME = re.compile(r"(PASSWORD|TOKEN|SECRET|API_?KEY|ACCESS_KEY|PRIVATE_KEY|CREDENTIAL)", re.I)


def check_pod_security(pod: PodTemplate) -> Problems:
    spec, context = pod.spec, pod.spec.get("securityContext") or {}
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield _refused(f"{pod.where}.spec.{field}", "shares the node's own")
    for index, volume in enumerate(spec.get("volumes") or []):
        if kinds := set(volume) - {"name"} - VOLUME_KINDS:
            yield _refused(f"{pod.where}.spec.volumes[{index}]", f"a volume of kind {kinds.pop()}")
    for sysctl in context.get("sysctls") or []:
        if sysctl.get("name") not in SAFE_SYSCTLS:
            yield _refused(f"{pod.where}.spec.securityContext.sysctls", f"{sysctl.get('name')}")
    allowed = set((pod.metadata.get("annotations") or {}).get(ALLOWED, "").split(",")) | {"NET_BIND_SERVICE"}
    for where, container in pod.containers():
        yield from _container(where, container.get("securityContext") or {}, context, allowed)
        for port in container.get("ports") or []:
            if port.get("hostPort"):
                yield _refused(f"{where}.ports", f"hostPort {port['hostPort']}")


def _container(where: str, own: Object, pod: Object, allowed: set[str]) -> Problems:
    where = f"{where}.securityContext"
    if own.get("privileged"):
        yield _refused(where, "privileged")
    if own.get("allowPrivilegeEscalation") is not False:
        yield _refused(where, "allowPrivilegeEscalation is not false")
    if own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        yield _refused(where, "runAsNonRoot is not true")
    if own.get("runAsUser", pod.get("runAsUser")) == 0:
        yield _refused(where, "runAsUser 0")
    profile = own.get("seccompProfile") or pod.get("seccompProfile") or {}
    if profile.get("type") not in ("RuntimeDefault", "Localhost"):
        yield _refused(where, "seccompProfile is neither RuntimeDefault nor Localhost")
    capabilities = own.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or []):
        yield _refused(where, "capabilities.drop lacks ALL")
    if added := set(capabilities.get("add") or []) - allowed:
        yield _refused(where, f"adds the capability {', '.join(sorted(added))}")


def check_tokens_and_links(pod: PodTemplate) -> Problems:
    """No pod of ours talks to the Kubernetes API; and service links would set MLFLOW_PORT and its like from outside."""
    for field in ("automountServiceAccountToken", "enableServiceLinks"):
        if pod.spec.get(field) is not False and "the operator's own" not in pod.where:
            yield Problem("exposure", f"{pod.where}.spec.{field}", "must be false")


def check_secrets(item: Object) -> Problems:
    """Secrets are made on the cluster by hand and named here, never written here."""
    if item.get("kind") == "Secret":
        yield Problem("secret", name_of(item), "a Secret does not belong in a file; make it with kubectl create secret")
    if item.get("kind") == "ConfigMap":
        for key in item.get("data") or {}:
            if SECRET_NAME.search(key):
                yield Problem("secret", f"{name_of(item)} data.{key}", "belongs in a Secret")
    yield from _literals(name_of(item), item.get("spec"))


def _literals(where: str, node: object) -> Problems:
    if isinstance(node, list):
        for index, value in enumerate(node):
            yield from _literals(f"{where}[{index}]", value)
    elif isinstance(node, dict):
        name = node.get("name")
        if isinstance(name, str) and SECRET_NAME.search(name) and node.get("value"):
            yield Problem("secret", f"{where}.{name}", "a secret written out; use valueFrom.secretKeyRef")
        for key, value in node.items():
            yield from _literals(f"{where}.{key}", value)


def check_exposure(item: Object) -> Problems:
    """An open Ray dashboard is a shell for strangers: no Ingress, no Service with an address outside."""
    kind, spec = item.get("kind"), item.get("spec") or {}
    if kind in ("Ingress", "HTTPRoute", "Gateway"):
        yield Problem("exposure", name_of(item), f"an {kind} opens it to others; use kubectl port-forward")
    if kind == "Service" and spec.get("type", "ClusterIP") != "ClusterIP":
        yield Problem(
            "exposure", name_of(item), f"type {spec['type']} opens it to others; ClusterIP and port-forward do"
        )


def _refused(where: str, what: str) -> Problem:
    return Problem("pod-security", where, f"{what}: refused by the restricted standard")
