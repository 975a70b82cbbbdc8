"""Who may talk to whom under a set of NetworkPolicies, worked out as the API's documentation states it."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.check.problem import Object


@dataclass(frozen=True)
class Peer:
    """A pod, or with an address something outside the cluster."""

    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = "crate"
    address: str = ""


def allowed(policies: list[Object], source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    """Both ends must agree: the source's egress and the target's ingress. No policy on an end: it agrees."""
    return _agrees(policies, "Egress", source, target, port, protocol) and _agrees(
        policies, "Ingress", target, source, port, protocol
    )


def selects(selector: Object | None, labels: Mapping[str, str]) -> bool:
    """A label selector; an empty one selects everything."""
    selector = selector or {}
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(_matches(expression, labels) for expression in selector.get("matchExpressions") or [])


def _matches(expression: Object, labels: Mapping[str, str]) -> bool:
    value, wanted = labels.get(expression["key"]), expression.get("values") or []
    match expression["operator"]:
        case "In":
            return value in wanted
        case "NotIn":
            return value not in wanted
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    raise ValueError(f"no such operator: {expression['operator']}")


def _agrees(policies: list[Object], way: str, end: Peer, other: Peer, port: int, protocol: str) -> bool:
    if end.address:
        return True
    mine = [p for p in policies if way in _ways(p["spec"]) and p["metadata"].get("namespace", "crate") == end.namespace]
    mine = [p for p in mine if selects(p["spec"].get("podSelector"), end.labels)]
    rules = [rule for p in mine for rule in p["spec"].get(way.lower()) or []]
    peers = "to" if way == "Egress" else "from"
    namespace = {p["metadata"].get("namespace", "crate") for p in mine}
    return not mine or any(
        _port(rule.get("ports"), port, protocol) and _peer(rule.get(peers), other, namespace) for rule in rules
    )


def _ways(spec: Object) -> list[str]:
    return spec.get("policyTypes") or (["Ingress", "Egress"] if "egress" in spec else ["Ingress"])


def _port(ports: list[Object] | None, port: int, protocol: str) -> bool:
    if not ports:
        return True
    same = [p for p in ports if p.get("protocol", "TCP") == protocol]
    return any("port" not in p or port in range(p["port"], (p.get("endPort") or p["port"]) + 1) for p in same)


def _peer(peers: list[Object] | None, other: Peer, namespaces: set[str]) -> bool:
    return not peers or any(_is(peer, other, namespaces) for peer in peers)


def _is(peer: Object, other: Peer, namespaces: set[str]) -> bool:
    if block := peer.get("ipBlock"):
        return bool(other.address) and _inside(block, other.address)
    if other.address:
        return False
    if "namespaceSelector" in peer:
        there = selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": other.namespace})
    else:
        there = other.namespace in namespaces
    return there and selects(peer.get("podSelector"), other.labels)


def _inside(block: Object, address: str) -> bool:
    where = ipaddress.ip_address(address)
    return where in ipaddress.ip_network(block["cidr"]) and not any(
        where in ipaddress.ip_network(hole) for hole in block.get("except") or []
    )
