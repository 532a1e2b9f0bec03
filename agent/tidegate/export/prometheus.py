# SPDX-License-Identifier: Apache-2.0
"""A prometheus-client collector over the latest view, with the server that offers it."""

from __future__ import annotations

import errno
import gzip
import itertools
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIServer

import msgspec
from prometheus_client import (
    CollectorRegistry,
    ProcessCollector,
    generate_latest,
    make_wsgi_app,
    start_http_server,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import gzip_accepted
from prometheus_client.registry import Collector

from tidegate.errors import UnavailableError
from tidegate.export import findings, health, text
from tidegate.export.text import PREFIX, key_values, label_values, rows_of
from tidegate.model.fields import Field, Kind, Table
from tidegate.model.histogram import Distribution
from tidegate.model.snapshot import View


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """Files of the server's certificate; with ``client_ca`` only clients that it signed are served."""

    cert: str
    key: str
    client_ca: str | None = None


class ViewCollector(Collector):
    """Metrics of the view that was last given to :meth:`show`; nothing before the first.

    Iterates over the tables and fields that the signals declare, so a new one needs no edit here.
    """

    def __init__(self, tables: Sequence[Table]) -> None:
        self.tables = tables
        self.view: View | None = None

    def show(self, view: View) -> None:
        """Offer this view from now on."""
        self.view = view

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: the names are fixed by the fields."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of one consistent view."""
        view = self.view
        if view is None:
            return
        for table in self.tables:
            for field in table.fields:
                yield _family(table, field, rows_of(view, table))
        yield findings.family(view.findings)
        yield from health.families(view.health, view.node.kernel)


def _family(table: Table, field: Field, rows: Iterable[Any]) -> Metric:
    family: Any = _new_family(field, (*table.labels, *field.key_labels))
    for row in rows:
        value = getattr(row, field.name)
        if value is None:
            continue
        key = label_values(table, row)
        if isinstance(value, Distribution):
            bounds = [*(repr(bound) for bound in field.bounds), "+Inf"]
            family.add_metric(key, list(zip(bounds, value.buckets, strict=True)), sum_value=value.sum)
        elif field.label is None:
            family.add_metric(key, value)
        else:
            for label, count in value.items():
                family.add_metric([*key, *key_values(label)], count)
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


class _Families(Collector):
    """Families that are there already, for prometheus-client's writer."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """Return them."""
        return self._families


class Exporter:
    """The metrics server; it listens from its construction on.

    Clients that take plain text get it from :mod:`tidegate.export.text`; others are answered by prometheus-client.
    """

    def __init__(self, host: str, port: int, tables: Sequence[Table], tls: Tls | None = None) -> None:
        self.registry = CollectorRegistry()
        self._process = ProcessCollector(namespace="tidegate", registry=self.registry)
        self.collector = ViewCollector(tables)
        self.registry.register(self.collector)
        self._library_app = make_wsgi_app(self.registry)
        self._server, self._thread = _listen(host, port, self.registry, tls)
        self._server.set_app(self._answer)

    def scrape(self) -> bytes:
        """Return the metrics in text format 0.0.4."""
        view = self.collector.view
        rows = ""
        families: Iterable[Metric] = self._process.collect()
        if view is not None:
            rows = text.write(self.collector.tables, view)
            families = itertools.chain(
                families, (findings.family(view.findings),), health.families(view.health, view.node.kernel)
            )
        return rows.encode() + generate_latest(_Families(families))

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if not is_plain(environ):
            answer: Iterable[bytes] = self._library_app(environ, start_response)
            return answer
        headers = [("Content-Type", text.CONTENT_TYPE)]
        body = self.scrape()
        if gzip_accepted(environ.get("HTTP_ACCEPT_ENCODING", "")):
            body = gzip.compress(body, compresslevel=1)
            headers.append(("Content-Encoding", "gzip"))
        start_response("200 OK", headers)
        return [body]

    @property
    def port(self) -> int:
        """The port that is served, also where 0 was asked for."""
        return int(self._server.server_port)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def is_plain(environ: Mapping[str, Any]) -> bool:
    """Say whether a request is for the metrics, and takes them as plain text.

    Prometheus prefers OpenMetrics but takes this too; with the same names, values and types nothing is lost.
    """
    if environ["REQUEST_METHOD"] != "GET" or environ["PATH_INFO"] == "/favicon.ico":
        return False
    accepted = environ.get("HTTP_ACCEPT") or "*/*"
    kinds = {kind.split(";")[0].strip() for kind in accepted.split(",")}
    return bool(kinds & {"text/plain", "text/*", "*/*"})


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
