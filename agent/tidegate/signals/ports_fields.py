# SPDX-License-Identifier: Apache-2.0
"""What is measured of local ports, listeners and network namespaces: each field with its unit and help."""

from __future__ import annotations

from tidegate.model.fields import Field, Kind, Table


def _gauge(name: str, metric: str, unit: str, text: str) -> Field:
    return Field(name=name, metric=metric, kind=Kind.GAUGE, unit=unit, help=text)


def _counter(name: str, metric: str, unit: str, text: str) -> Field:
    return Field(name=name, metric=metric, kind=Kind.COUNTER, unit=unit, help=text)


PORTS = Table(
    name="ports",
    labels=("netns", "service", "container", "source", "endpoint", "name"),
    fields=(
        _gauge(
            "used",
            "ports_used",
            "ports",
            "Local ports that the service holds towards the upstream, those in TIME_WAIT included.",
        ),
        _gauge(
            "limit",
            "ports_limit",
            "ports",
            "Ports that connect() may choose from towards the upstream, for all services of the network "
            "namespace: its range without those reserved or bound.",
        ),
        _gauge("time_wait", "ports_time_wait", "ports", "Of ports_used, those in TIME_WAIT."),
        _gauge(
            "seconds_to_exhaustion",
            "ports_time_to_exhaustion_seconds",
            "seconds",
            "When connect() will find no port at the present rates; 0 is now, +Inf not within an hour.",
        ),
    ),
)
LISTENERS = Table(
    name="listeners",
    labels=("netns", "service", "container", "endpoint"),
    fields=(
        _gauge("backlog", "listen_backlog", "connections", "Connections that wait to be accepted."),
        _gauge("limit", "listen_backlog_limit", "connections", "How many may wait: listen(), at most somaxconn."),
        _counter(
            "drops", "listen_drops_total", "packets", "SYNs and connections that the listening socket has dropped."
        ),
    ),
)
NAMESPACES = Table(
    name="namespaces",
    labels=("netns",),
    fields=(
        _gauge("time_wait", "netns_time_wait", "sockets", "Sockets in TIME_WAIT, of clients and servers."),
        _gauge(
            "bound", "netns_ports_bound", "ports", "Ephemeral ports that connect() passes over: they are bound."
        ),
        _counter(
            "listen_overflows",
            "netns_listen_overflows_total",
            "connections",
            "Connections dropped as their accept queue was full.",
        ),
        _counter(
            "listen_drops", "netns_listen_drops_total", "packets", "SYNs and connections dropped by listeners."
        ),
        _gauge("conntrack_entries", "conntrack_entries", "entries", "Connections that netfilter tracks."),
        _gauge("conntrack_limit", "conntrack_limit", "entries", "Connections that netfilter tracks at most."),
    ),
)
TABLES = (PORTS, LISTENERS, NAMESPACES)
