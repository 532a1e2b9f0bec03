# SPDX-License-Identifier: Apache-2.0
"""Envoy's ``/clusters?format=json``: the answers of hosts between two samples, as events; pure.

What a host's counters count (Envoy 1.40, tests/lab/test_feed_upstreams.py): each try, retries too.

| what happened | rq_success | rq_error | rq_total | others |
|---|---|---|---|---|
| an answer below 500 | 1 | | 1 | |
| an answer with 5xx | | 1 | 1 | |
| reset or closed before the answer | | 1 | 1 | |
| no answer within the route's timeout | | 1 | 1 | rq_timeout 1 |
| no connection: refused, or timed out | | 1 | | cx_connect_fail 1 a connection |

So a 5xx can't be told from a connection that breaks before its answer; what was not connected, or waited too long,
can, and is left to the kernel.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

import msgspec

from tidegate.config import units
from tidegate.feeds.answers import Answers, events_of
from tidegate.model.breaker import Event

_NUMBER = re.compile(r"[0-9]{1,20}", re.ASCII)


class Passed(StrEnum):
    """Why a host is no endpoint."""

    NO_ADDRESS = "no_address"  # a Unix socket, or another cluster's listener
    MALFORMED = "malformed"


class Host(NamedTuple):
    """What Envoy has counted of a host: ``not_connected`` are connections, ``active`` the requests under way.

    ``is_ejected`` by Envoy's own detection.
    """

    successes: int
    errors: int
    timeouts: int
    requests: int
    not_connected: int
    active: int
    is_ejected: bool


class Sample(NamedTuple):
    """The hosts, by cluster and endpoint, and how many are none, by reason."""

    hosts: Mapping[tuple[str, str], Host]
    passed: Mapping[Passed, int]


class _Socket(msgspec.Struct):
    address: str = ""
    port_value: int = 0


class _Address(msgspec.Struct):
    socket_address: _Socket | None = None


class _Health(msgspec.Struct):
    failed_outlier_check: bool = False


class _Metric(msgspec.Struct):
    name: str = ""
    value: str = "0"  # Envoy leaves a zero out


class _Host(msgspec.Struct):
    address: _Address = msgspec.field(default_factory=_Address)
    stats: list[_Metric] = msgspec.field(default_factory=list)
    health_status: _Health = msgspec.field(default_factory=_Health)


class _Cluster(msgspec.Struct):
    name: str = ""
    host_statuses: list[_Host] = msgspec.field(default_factory=list)


class _Clusters(msgspec.Struct):
    cluster_statuses: list[_Cluster]


_DECODER = msgspec.json.Decoder(_Clusters)
#: As in :class:`Host`.
_STATS = ("rq_success", "rq_error", "rq_timeout", "rq_total", "cx_connect_fail", "rq_active")


def parse(text: str | bytes, cluster: str | None = None) -> Sample | None:
    """Return what Envoy has answered, of one cluster or of all; None where that isn't its statistics."""
    try:
        found = _DECODER.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    hosts: dict[tuple[str, str], Host] = {}
    passed: Counter[Passed] = Counter(dict.fromkeys(Passed, 0))
    for status in found.cluster_statuses:
        for each in status.host_statuses if cluster in (None, status.name) else ():
            endpoint, host = _endpoint(each.address.socket_address), _host(each)
            if endpoint is None:
                passed[Passed.NO_ADDRESS] += 1
            elif host is None or (status.name, endpoint) in hosts:
                passed[Passed.MALFORMED] += 1
            else:
                hosts[status.name, endpoint] = host
    return Sample(hosts, passed)


def _endpoint(socket: _Socket | None) -> str | None:
    if socket is None:
        return None
    address = f"[{socket.address}]" if ":" in socket.address else socket.address
    try:
        return units.endpoint(f"{address}:{socket.port_value}")
    except ValueError:
        return None


def _host(host: _Host) -> Host | None:
    values = {metric.name: metric.value for metric in host.stats}
    if not all(_NUMBER.fullmatch(values.get(name, "")) for name in _STATS):
        return None
    successes, errors, timeouts, requests, not_connected, active = (int(values[name]) for name in _STATS)
    is_ejected = host.health_status.failed_outlier_check
    return Host(successes, errors, timeouts, requests, not_connected, active, is_ejected)


def ejected(sample: Sample) -> frozenset[str]:
    """Return the endpoints that Envoy's own detection has ejected in any of the clusters."""
    return frozenset(endpoint for (_, endpoint), host in sample.hosts.items() if host.is_ejected)


def changes(before: Sample, after: Sample) -> dict[str, Answers]:
    """Return the answers of each endpoint between two samples, of all clusters together.

    Counters that have gone down began at 0 in between, as Envoy was started again or the host was removed and came
    back. A host that is new has no answers yet: what it has counted may be older.
    """
    found: dict[str, Answers] = {}
    for key, now in after.hosts.items():
        old = before.hosts.get(key)
        if old is None:
            continue
        is_anew = any(new < was for new, was in zip(now[:5], old[:5], strict=True))
        since = Host(0, 0, 0, 0, 0, 0, False) if is_anew else old
        found[key[1]] = found.get(key[1], Answers()).plus(_between(since, now)._replace(is_anew=is_anew))
    return found


def _between(old: Host, now: Host) -> Answers:
    successes, errors, timeouts = (mine - theirs for mine, theirs in zip(now[:3], old[:3], strict=True))
    waited = min(timeouts, errors)
    not_connected = 0
    if now.not_connected > old.not_connected:
        # What ended without having been on a connection; at most, as those on one may have no answer yet.
        ended, carried = successes + errors, now.requests - old.requests
        not_connected = min(max(ended - carried + now.active, 0), errors - waited)
    return Answers(successes, errors - waited - not_connected, waited + not_connected)


def difference(before: Sample, after: Sample, endpoints: Mapping[str, str]) -> list[Event]:
    """Return the events between two samples, of those ``endpoints`` that have a pool there."""
    return [
        event
        for endpoint, answers in changes(before, after).items()
        if endpoint in endpoints
        for event in events_of(endpoints[endpoint], endpoint, answers)
    ]
