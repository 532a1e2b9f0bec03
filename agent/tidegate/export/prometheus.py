# SPDX-License-Identifier: Apache-2.0
"""A prometheus-client collector over the latest view, with the server that offers it."""

from __future__ import annotations

import errno
import ssl
from collections.abc import Iterable, Iterator, Sequence
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIServer

import msgspec
from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from tidegate.errors import UnavailableError
from tidegate.model.fields import Field, Kind
from tidegate.model.snapshot import Distribution, EndpointRow, Health, View

PREFIX = "tidegate_"
LABELS = ("service", "container", "role", "endpoint", "name")


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """Files of the server's certificate; with ``client_ca`` only clients that it signed are served."""

    cert: str
    key: str
    client_ca: str | None = None


class ViewCollector(Collector):
    """Metrics of the view that was last given to :meth:`show`; nothing before the first.

    Iterates over the fields that the signals declare, so a new field needs no edit here.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        self._fields = fields
        self._view: View | None = None

    def show(self, view: View) -> None:
        """Offer this view from now on."""
        self._view = view

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: the names are fixed by the fields."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of one consistent view."""
        view = self._view
        if view is None:
            return
        for field in self._fields:
            yield _family(field, view.endpoints)
        yield from _health(view.health, view.node.kernel)


def _family(field: Field, rows: Iterable[EndpointRow]) -> Metric:
    labels = LABELS if field.label is None else (*LABELS, field.label)
    family: Any = _new_family(field, labels)
    for row in rows:
        if row.role not in field.roles:
            continue
        value = getattr(row, field.name)
        if value is None:
            continue
        key = [row.service, row.container, row.role.value, row.endpoint, row.name]
        if isinstance(value, Distribution):
            bounds = [*(repr(bound) for bound in field.bounds), "+Inf"]
            family.add_metric(key, list(zip(bounds, value.buckets, strict=True)), sum_value=value.sum)
        elif field.label is None:
            family.add_metric(key, value)
        else:
            for label, count in value.items():
                family.add_metric([*key, label], count)
    assert isinstance(family, Metric)
    return family


def _new_family(field: Field, labels: Sequence[str]) -> Metric:
    name = PREFIX + field.metric
    match field.kind:
        case Kind.COUNTER:
            return CounterMetricFamily(name, field.help, labels=labels)
        case Kind.GAUGE:
            return GaugeMetricFamily(name, field.help, labels=labels)
        case Kind.HISTOGRAM:
            return HistogramMetricFamily(name, field.help, labels=labels)


def _health(health: Health, kernel: str) -> Iterator[Metric]:
    info = GaugeMetricFamily(
        PREFIX + "build_info",
        "Version, kernel and loader of the agent.",
        labels=["version", "kernel", "loader"],
    )
    info.add_metric([health.version, kernel, health.loader], 1)
    yield info
    entries = GaugeMetricFamily(
        PREFIX + "bpf_map_entries", "Entries of a BPF map at the last read.", labels=["map"]
    )
    limit = GaugeMetricFamily(PREFIX + "bpf_map_limit", "Entries that a BPF map can hold.", labels=["map"])
    size = GaugeMetricFamily(
        PREFIX + "bpf_map_bytes", "Memory that the kernel charges for a BPF map.", labels=["map"]
    )
    for name, map_health in health.maps.items():
        if map_health.limit is not None:
            limit.add_metric([name], map_health.limit)
        if map_health.entries is not None:
            entries.add_metric([name], map_health.entries)
        if map_health.bytes is not None:
            size.add_metric([name], map_health.bytes)
    yield from (entries, limit, size)
    lost = CounterMetricFamily(
        PREFIX + "events_lost_total", "Events that found no place in a ring buffer.", labels=["ring"]
    )
    for ring, count in health.events_lost.items():
        lost.add_metric([ring], count)
    yield lost
    losses = CounterMetricFamily(
        PREFIX + "losses_total", "What could not be tracked or told apart, by kind.", labels=["kind"]
    )
    for kind, count in health.losses.items():
        losses.add_metric([kind], count)
    yield losses
    rows = GaugeMetricFamily(PREFIX + "rows", "Rows that the agent keeps, of at most rows_limit.")
    rows.add_metric([], health.rows)
    yield rows
    rows_limit = GaugeMetricFamily(PREFIX + "rows_limit", "Rows that the agent keeps at most.")
    rows_limit.add_metric([], health.rows_limit)
    yield rows_limit


class Exporter:
    """The metrics server; it listens from its construction on."""

    def __init__(self, host: str, port: int, fields: Sequence[Field], tls: Tls | None = None) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(namespace="tidegate", registry=self.registry)
        self.collector = ViewCollector(fields)
        self.registry.register(self.collector)
        self._server, self._thread = _listen(host, port, self.registry, tls)

    @property
    def port(self) -> int:
        """The port that is served, also where 0 was asked for."""
        return int(self._server.server_port)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _listen(host: str, port: int, registry: CollectorRegistry, tls: Tls | None) -> tuple[WSGIServer, Thread]:
    files: dict[str, Any] = {}
    if tls is not None:
        files = {"certfile": tls.cert, "keyfile": tls.key}
        if tls.client_ca is not None:
            files |= {"client_cafile": tls.client_ca, "client_auth_required": True}
    try:
        return start_http_server(port, host, registry, **files)
    except ssl.SSLError as error:
        raise UnavailableError(
            f"metrics.tls: expected a certificate and its key in PEM, found: {error}; "
            "check metrics.tls.cert, key and client_ca"
        ) from error
    except OSError as error:
        remedy = "set metrics.listen to an address of this host"
        if error.errno == errno.EADDRINUSE:
            remedy = f"find who has it with 'ss -ltnp sport = :{port}', or set metrics.listen to another port"
        raise UnavailableError(f"metrics.listen {host}:{port}: {error.strerror or error}; {remedy}") from error
