# SPDX-License-Identifier: Apache-2.0
"""The fast text writer against prometheus-client's, and what each kind of client is answered."""

from __future__ import annotations

import gzip
import http.client
from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.unit.test_outputs import scrape as library_scrape
from tests.unit.test_outputs import view
from tidegate.export import text
from tidegate.export.prometheus import Exporter, is_plain
from tidegate.identity.cgroups import text_of
from tidegate.model.fields import Field, Kind, Table
from tidegate.model.resources import NodeResources, Pressure, ResourceRow
from tidegate.model.snapshot import View
from tidegate.signals import resource_fields
from tidegate.signals.tcp_fields import TABLE

pytestmark = pytest.mark.unit
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
OPENMETRICS_ALONE = "application/openmetrics-text;version=1.0.0"

Family = tuple[str, str, str, Counter[tuple[str, tuple[tuple[str, str], ...], float]]]


def families(exposition: str, names: Sequence[str]) -> list[Family]:
    """Return what an exposition says of metrics that begin with one of ``names``, in order."""
    return [
        (
            f.name,
            f.type,
            f.documentation,
            Counter((s.name, tuple(sorted(s.labels.items())), s.value) for s in f.samples),
        )
        for f in text_string_to_metric_families(exposition)
        if f.name.startswith(tuple(names))
    ]


def assert_same(shown: View, fields: Sequence[Field] = TABLE.fields) -> None:
    names = [text.PREFIX + field.metric.removesuffix("_total") for field in fields]
    table = msgspec.structs.replace(TABLE, fields=tuple(fields))
    ours = families(text.write([table], shown), names)
    assert ours == families(library_scrape(shown, [table]), names)
    assert len(ours) == len(fields)


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=5, unique=True))
def test_it_says_the_same_as_the_library(names: list[bytes]) -> None:
    assert_same(view(*dict.fromkeys(text_of(name) for name in names)))


@settings(max_examples=50)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=5, unique=True))
def test_any_text_is_a_label(names: list[str]) -> None:
    assert_same(view(*(name.encode("utf-8", "replace").decode() for name in names)))


def test_all_of_many_rows_are_there() -> None:
    assert_same(view(*(f"service-{n}" for n in range(120))))


@pytest.mark.parametrize("value", [0, 1, 2**63, 1e300, 1e-9, 0.1 + 0.2, float("inf"), float("-inf")])
def test_every_number_reads_back(value: float) -> None:
    shown = view("a")
    rows = [msgspec.structs.replace(row, open=value) for row in shown.endpoints]
    assert_same(msgspec.structs.replace(shown, endpoints=tuple(rows)))


def test_help_and_names_follow_the_library() -> None:
    odd = Field(name="open", metric="odd", kind=Kind.COUNTER, unit="x", help='a "b" \\ c\nd')
    assert_same(view("a"), [odd])


def test_rows_without_a_value_have_no_sample() -> None:
    shown = view("a")
    rows = [msgspec.structs.replace(row, connects=None, handshake=None) for row in shown.endpoints]
    assert_same(msgspec.structs.replace(shown, endpoints=tuple(rows)))


def resources() -> View:
    pressure = {
        "cpu": Pressure(some_seconds=1.5, some=0.1, full_seconds=0.5, full=0.0),
        "io": Pressure(some_seconds=2.0, some=None, full_seconds=None, full=None),
    }
    node = NodeResources(
        cpu=1.0,
        steal=0.0,
        steal_seconds=0.25,
        memory_total=1,
        memory_available=1,
        oom_kills=0,
        pressure=pressure,
    )
    row = ResourceRow(
        service='we"b',
        container="c",
        cgroup="/w",
        cpu_seconds=3.0,
        cpu=None,
        cpu_limit=0.5,
        throttled_seconds=1.0,
        throttled=None,
        memory=4096,
        memory_working_set=None,
        memory_limit=None,
        oom_kills=2,
        pressure=pressure,
        executables=(),
    )
    shown = view("a")
    node_row = msgspec.structs.replace(shown.node, resources=node)
    bare = msgspec.structs.replace(row, service="b", pressure=None, oom_kills=None)
    return msgspec.structs.replace(shown, node=node_row, resources=(row, bare))


@pytest.mark.parametrize("table", [resource_fields.TABLE, resource_fields.NODE_TABLE])
def test_tables_with_two_labels_of_a_key_or_none_of_a_row_are_the_librarys(table: Table) -> None:
    shown = resources()
    names = [text.PREFIX + field.metric.removesuffix("_total") for field in table.fields]
    ours = families(text.write([table], shown), names)
    assert ours == families(library_scrape(shown, [table]), names)
    assert sum(len(samples) for *_, samples in ours) > len(table.fields)


def test_a_row_without_labels_has_no_braces() -> None:
    lines = text.write([resource_fields.NODE_TABLE], resources()).splitlines()
    assert "tidegate_cpu_steal_seconds_total 0.25" in lines
    assert 'tidegate_pressure_seconds_total{resource="io",kind="some"} 2.0' in lines
    assert [line for line in lines if line[0] != "#"] == lines[2:3] + lines[5:8]


def test_node_that_was_not_measured_has_no_sample() -> None:
    assert [
        line for line in text.write([resource_fields.NODE_TABLE], view("a")).splitlines() if line[0] != "#"
    ] == []


@pytest.fixture(scope="module")
def exporter() -> Iterator[Exporter]:
    serving = Exporter("127.0.0.1", 0, [TABLE])
    serving.collector.show(view("shop.service"))
    yield serving
    serving.close()


def get(exporter: Exporter, target: str = "/metrics", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", exporter.port, timeout=5)
    connection.request("GET", target, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_a_scrape_is_the_librarys_with_every_other_family(exporter: Exporter) -> None:
    _, body = get(exporter)
    ours, theirs = (
        families(t, ["tidegate_"]) for t in (body.decode(), generate_latest(exporter.registry).decode())
    )
    changing = ("tidegate_process_",)  # CPU time, memory: read at each scrape
    assert {f[0] for f in ours} == {f[0] for f in theirs} > {"tidegate_process_cpu_seconds"}
    for kept in (ours, theirs):
        kept[:] = sorted((f for f in kept if not f[0].startswith(changing)), key=lambda f: f[0])
    assert ours == theirs


@pytest.mark.parametrize("accept", [PROMETHEUS_3, "text/plain", "*/*", ""])
def test_who_takes_plain_text_gets_it(exporter: Exporter, accept: str) -> None:
    answer, body = get(exporter, Accept=accept)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert b"tidegate_process_resident_memory_bytes" in body
    assert not body.endswith(b"# EOF\n")


def test_who_takes_openmetrics_alone_gets_that(exporter: Exporter) -> None:
    answer, body = get(exporter, Accept=OPENMETRICS_ALONE)
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")
    assert b'service="shop.service"' in body


def test_gzip_where_it_is_asked_for(exporter: Exporter) -> None:
    answer, body = get(exporter, **{"Accept-Encoding": "gzip"})
    assert answer.headers["Content-Encoding"] == "gzip"
    assert b'service="shop.service"' in gzip.decompress(body)
    answer, body = get(exporter)
    assert answer.headers["Content-Encoding"] is None


def test_other_methods_are_the_librarys() -> None:
    assert not is_plain({"REQUEST_METHOD": "OPTIONS", "PATH_INFO": "/metrics"})
    assert is_plain({"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics"})
