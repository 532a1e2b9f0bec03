# SPDX-License-Identifier: Apache-2.0
"""Istio's DestinationRule as outlier detection, mapped the way Istio maps it to Envoy's.

Success rates are off; a number of errors N > 0 is enforced by 100 %, 0 by none; minHealthPercent is the panic
threshold, 0 where it isn't set; there is no max_ejection_time. A part for a port takes the place of the whole
policy; one for a subset takes the place of what it sets (pilot/pkg/networking/util, MergeSubsetTrafficPolicy).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from tidegate.config.nodes import documents
from tidegate.errors import ConfigError
from tidegate.importers.parts import Note, Part, Source
from tidegate.model.outliers import ConnectionPool, OutlierDetection

_GROUP = "networking.istio.io"
_VERSIONS = ("v1", "v1beta1", "v1alpha3")

#: What Tidegate doesn't do, and who does.
_SPEC = {
    "exportTo": "a pool holds for this node, whatever the namespace",
    "workloadSelector": "a pool holds for all services of this node; drivers.failfast.services names some",
}
_NAMED = ("name", "trafficPolicy")
_SUBSET = {"labels": "name the endpoints of the subset's pool, labels find none"}
_POLICY = {
    "loadBalancer": "the proxy balances",
    "tls": "the proxy encrypts",
    "tunnel": "the proxy tunnels",
    "proxyProtocol": "the proxy writes its header",
    "retryBudget": "the proxy retries",
}
_TCP = {
    "maxConnectionDuration": "the proxy closes connections",
    "idleTimeout": "the proxy closes connections",
    "tcpKeepalive": "the proxy sets the socket's options",
}
_PENDING = (
    "the queue is in the proxy, nothing in the kernel shows it; requests that find it full get a 503 from the "
    "proxy, which is charged to no endpoint"
)
_HTTP = {
    "http1MaxPendingRequests": _PENDING,
    "http2MaxRequests": "the proxy counts its requests; HTTP/2 isn't read here",
    "maxRetries": "the proxy retries",
    "idleTimeout": "the proxy closes connections",
    "h2UpgradePolicy": "the proxy chooses its protocol",
    "useClientProtocol": "the proxy chooses its protocol",
    "maxConcurrentStreams": "HTTP/2 isn't read here",
}
_ERRORS = "Istio ignores it; consecutive5xxErrors and consecutiveGatewayErrors took its place"


class Settings(NamedTuple):
    """What one part of a rule asks for; None where it says nothing, and Istio then does nothing."""

    detection: OutlierDetection | None = None
    healthy_panic_threshold: int = 0
    empties: bool = False  # maxEjectionPercent: 100 was written
    connect_timeout: float | None = None
    connection_pool: ConnectionPool | None = None
    notes: tuple[Note, ...] = ()


class Choice(NamedTuple):
    """A rule for one subset and port of a host, or for all of them."""

    host: str
    subset: str | None
    port: int | None
    settings: Settings


class _Policy(NamedTuple):
    """A trafficPolicy: what it sets itself, and by port what takes its place there."""

    own: Settings
    ports: dict[int, Settings]


class Rule(NamedTuple):
    """One DestinationRule; ``notes`` are of no part in particular."""

    name: str
    host: str
    policy: _Policy
    subsets: dict[str, _Policy]
    notes: tuple[Note, ...]

    def settings(self, subset: str | None = None, port: int | None = None) -> Settings:
        """Return what holds for a subset and a port."""
        base = self.policy.own if port is None else self.policy.ports.get(port, self.policy.own)
        if subset is None:
            return base
        policy = self.subsets[subset]
        if port is not None and port in policy.ports:
            return policy.ports[port]
        return _over(base, policy.own)

    def choices(self) -> Iterator[Choice]:
        """Yield each part that may ask for something of its own, the whole first."""
        for subset in (None, *self.subsets):
            yield Choice(self.host, subset, None, self.settings(subset))
            ports = self.policy.ports.keys() | (self.subsets[subset].ports.keys() if subset is not None else set())
            for port in sorted(ports):
                yield Choice(self.host, subset, port, self.settings(subset, port))


def read(text: bytes, name: str) -> list[Rule]:
    """Read the rules of a file called ``name``; raises ConfigError with all that is wrong."""
    source = Source()
    rules: list[Rule] = []
    strangers: list[Note] = []
    for node in documents(text, name):
        for item in _items(Part(source, node, "")):
            kind, version = item.get("kind").text(), item.get("apiVersion").text()
            if kind == "DestinationRule" and version in [f"{_GROUP}/{each}" for each in _VERSIONS]:
                rules.append(_rule(item))
            elif kind == "DestinationRule":
                wanted = f"{_GROUP}/{{{','.join(_VERSIONS)}}}"
                item.get("apiVersion").complain(f"expected {wanted}, found {version}")
            else:
                strangers.append(item.note(f"left out: {kind or 'no kind'} is no DestinationRule"))
    if source.complaints:
        raise ConfigError([complaint.of(name) for complaint in sorted(set(source.complaints))])
    if not rules:
        raise ConfigError([f"{name}:1:1: expected a DestinationRule, found none"])
    rules[0] = rules[0]._replace(notes=(*strangers, *rules[0].notes))
    return rules


def _items(document: Part) -> list[Part]:
    return document.get("items").list() if document.get("kind").text() == "List" else [document]


def _rule(item: Part) -> Rule:
    spec, notes = item.get("spec"), []
    host = spec.get("host").text()
    if not host:
        (spec.get("host") if spec.get("host") else spec or item).complain("expected a host, found none")
    for name, part in spec.items():
        if name not in ("host", "trafficPolicy", "subsets"):
            notes.append(_left_out(part, name, _SPEC))
    subsets: dict[str, _Policy] = {}
    for part in spec.get("subsets").list():
        subset = part.get("name").text()
        if not subset:
            part.complain("expected a subset with a name, found none")
        else:
            subsets[subset] = _policy(part.get("trafficPolicy"))
            notes += [_left_out(value, key, _SUBSET) for key, value in part.items() if key not in _NAMED]
    name = item.get("metadata").get("name").text() or host or ""
    return Rule(name, host or "", _policy(spec.get("trafficPolicy")), subsets, tuple(notes))


def _policy(policy: Part) -> _Policy:
    ports: dict[int, Settings] = {}
    for part in policy.get("portLevelSettings").list():
        port = part.get("port").get("number").number(65535)
        if not port:
            part.complain("expected port.number of 1 to 65535, found none")
        else:
            ports[port] = _settings(part, ("port",))
    return _Policy(_settings(policy, ("portLevelSettings",)), ports)


def _settings(policy: Part, structure: tuple[str, ...]) -> Settings:
    notes = []
    for name, part in policy.items():
        if name not in (*structure, "connectionPool", "outlierDetection"):
            notes.append(_left_out(part, name, _POLICY))
    settings = _detection(policy.get("outlierDetection"), notes)
    return _connection_pool(policy.get("connectionPool"), settings, notes)._replace(notes=tuple(notes))


def _left_out(part: Part, name: str, known: dict[str, str]) -> Note:
    return part.note(f"not taken: {known[name]}" if name in known else "not taken: not known to Tidegate")


def _connection_pool(pool: Part, settings: Settings, notes: list[Note]) -> Settings:
    if not pool:
        return settings
    tcp, http = pool.get("tcp"), pool.get("http")
    taken = {"tcp": ("maxConnections", "connectTimeout"), "http": ("maxRequestsPerConnection",)}
    for name, part in pool.items():
        if name not in taken:
            notes.append(_left_out(part, name, {}))
            continue
        for key, value in part.items():
            if key not in taken[name]:
                notes.append(_left_out(value, key, _TCP if name == "tcp" else _HTTP))
    # 0 is "not set" to Istio.
    limits = ConnectionPool(
        max_connections=tcp.get("maxConnections").number() or None,
        max_requests_per_connection=http.get("maxRequestsPerConnection").number() or None,
    )
    timeout = tcp.get("connectTimeout").duration()
    return settings._replace(connection_pool=limits, connect_timeout=timeout)


def _detection(part: Part, notes: list[Note]) -> Settings:
    if not part:
        return Settings()
    split = part.get("splitExternalLocalOriginErrors").boolean()
    keys: dict[str, Any] = {
        "split_external_local_origin_errors": split,
        "enforcing_success_rate": 0,
        "enforcing_local_origin_success_rate": 0,
    }
    for theirs, ours in (
        ("consecutive5xxErrors", "consecutive_5xx"),
        ("consecutiveGatewayErrors", "consecutive_gateway_failure"),
    ):
        errors = part.get(theirs).number()
        if errors is not None:
            keys |= {ours: errors, f"enforcing_{ours}": 100 if errors else 0}
    local = part.get("consecutiveLocalOriginFailures")
    failures = local.number()
    if failures and split:
        keys |= {"consecutive_local_origin_failure": failures, "enforcing_consecutive_local_origin_failure": 100}
    elif local and not split:
        notes.append(local.note("not taken: without splitExternalLocalOriginErrors it has no effect"))
    for theirs, ours in (("interval", "interval"), ("baseEjectionTime", "base_ejection_time")):
        seconds = part.get(theirs).duration()
        if seconds is not None:
            keys[ours] = seconds
    percent = part.get("maxEjectionPercent").number(100)
    if percent:
        keys["max_ejection_percent"] = percent
    if part.get("consecutiveErrors"):
        notes.append(part.get("consecutiveErrors").note(f"not taken: {_ERRORS}"))
    known = (
        "splitExternalLocalOriginErrors", "consecutive5xxErrors", "consecutiveGatewayErrors", "consecutiveErrors",
        "consecutiveLocalOriginFailures", "interval", "baseEjectionTime", "maxEjectionPercent", "minHealthPercent",
    )  # fmt: skip
    notes += [_left_out(value, name, {}) for name, value in part.items() if name not in known]
    return Settings(
        detection=OutlierDetection(**keys),
        healthy_panic_threshold=part.get("minHealthPercent").number(100) or 0,
        empties=percent == 100,
    )


def _over(base: Settings, own: Settings) -> Settings:
    """Return a subset's settings: what it doesn't set is the rule's."""
    merged = base
    if own.detection is not None:
        merged = merged._replace(
            detection=own.detection,
            healthy_panic_threshold=own.healthy_panic_threshold,
            empties=own.empties,
        )
    if own.connection_pool is not None:
        merged = merged._replace(connection_pool=own.connection_pool, connect_timeout=own.connect_timeout)
    return merged._replace(notes=(*base.notes, *own.notes))
