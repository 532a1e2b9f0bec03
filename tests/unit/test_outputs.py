# SPDX-License-Identifier: Apache-2.0
"""The view as metrics and as text, with names that try to break them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tidegate.errors import UsageError
from tidegate.export.prometheus import ViewCollector
from tidegate.identity.cgroups import text_of
from tidegate.identity.services import Service
from tidegate.model.fields import Role, Table
from tidegate.model.finding import Confidence, Finding, Severity
from tidegate.model.snapshot import Health, MapHealth, Node, ProgramHealth, View
from tidegate.rates import Rates
from tidegate.signals.tcp_fields import COUNTERS, TABLE, Counter
from tidegate.top.columns import duration
from tidegate.top.plain import Options, frame, header
from tidegate.totals import Row, RowKey

pytestmark = pytest.mark.unit
HEALTH = Health(
    version="1.2.3",
    pid=7,
    loader="libbpf",
    maps={"tcp_rows": MapHealth(entries=2, limit=10, bytes=4096)},
    programs={
        "tcp_state": ProgramHealth(runs=40, seconds=0.002, misses=1),
        "tcp_destroyed": ProgramHealth(runs=None, seconds=None, misses=None),
    },
    statistics_refused=None,
    events_lost={"cgroup_events": 0},
    losses={"tcp_rows_full": 3},
    rows=2,
    rows_limit=10,
    ticks=100,
    ticks_late=4,
    ticks_skipped=1,
    late_seconds=0.0,
    tick_seconds=0.01,
    cpu=0.0123,
    cpu_seconds=3.5,
    program_cpu=0.0004,
    rss_bytes=44 << 20,
)


def counters(**values: int) -> tuple[int, ...]:
    found = [0] * COUNTERS
    for name, value in values.items():
        found[Counter[name.upper()]] = value
    return tuple(found)


def view(*names: str) -> View:
    rows = {}
    for n, name in enumerate(names):
        client = counters(connects=10 + n, established=8, closed=6, failures=2, handshake_ns=4_000_000)
        rows[RowKey(Service(name), Role.CLIENT, "10.0.0.6:5000")] = Row(client, ({50: 8}, {}, {}))
        rows[RowKey(Service(name), Role.SERVER, ":80")] = Row(counters(established=5, closed=5), ({}, {}, {}))
    node = Node(name="n1", kernel="6.1.0", cpus=2, uptime=90_000.0)
    taken = Rates().snapshot(rows, time=1.0, interval=1.0, node=node)
    return View(**{name: getattr(taken, name) for name in taken.__struct_fields__}, health=HEALTH)


def scrape(shown: View, tables: Sequence[Table] = (TABLE,)) -> str:
    collector = ViewCollector(tables)
    collector.show(shown)
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry).decode()


def samples(text: str) -> dict[tuple[str, str, str], float]:
    return {
        (
            sample.name,
            sample.labels.get("service", ""),
            sample.labels.get("reason", sample.labels.get("role", "")),
        ): (sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


def test_metrics_carry_names_and_values_of_the_view() -> None:
    found = samples(scrape(view("shop.service")))
    assert found["tidegate_tcp_connects_total", "shop.service", "client"] == 10
    assert found["tidegate_tcp_accepts_total", "shop.service", "server"] == 5
    assert found["tidegate_tcp_connections_established_total", "shop.service", "client"] == 8
    assert found["tidegate_tcp_connect_failures_total", "shop.service", "refused"] == 2
    assert found["tidegate_tcp_open_connections", "shop.service", "client"] == 2
    assert found["tidegate_tcp_handshake_seconds_count", "shop.service", "client"] == 8
    assert found["tidegate_tcp_handshake_seconds_sum", "shop.service", "client"] == 0.004
    assert ("tidegate_tcp_connects_total", "shop.service", "server") not in found
    assert found["tidegate_bpf_map_bytes", "", ""] == 4096


def test_histograms_have_at_most_twelve_buckets_which_grow() -> None:
    buckets = [
        sample.value
        for family in text_string_to_metric_families(scrape(view("a")))
        for sample in family.samples
        if sample.name == "tidegate_tcp_handshake_seconds_bucket"
    ]
    assert len(buckets) == 12
    assert buckets == sorted(buckets)
    assert buckets[-1] == 8


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=5, unique=True))
def test_no_name_breaks_a_scrape_or_a_frame(names: list[bytes]) -> None:
    texts = list(dict.fromkeys(text_of(name) for name in names))
    shown = view(*texts)
    found = samples(scrape(shown))
    for n, text in enumerate(texts):
        assert found["tidegate_tcp_connects_total", text, "client"] == 10 + n
    assert all(line.isprintable() for line in frame(shown, Options()))
    again = msgspec.json.decode(msgspec.json.encode(shown), type=View)
    assert again == shown


def test_nothing_is_offered_before_the_first_view() -> None:
    registry = CollectorRegistry()
    registry.register(ViewCollector([TABLE]))
    assert generate_latest(registry) == b""


def test_a_frame_shows_who_to_whom_and_what_fails() -> None:
    text = "\n".join(frame(view("shop.service"), Options()))
    assert "n1  Linux 6.1.0" in text
    line = next(line for line in text.splitlines() if "10.0.0.6:5000" in line)
    assert line.split()[:3] == ["shop.service", "client", "10.0.0.6:5000"]
    assert line.endswith("refused 2")


def test_a_header_has_the_agents_own_state() -> None:
    node, agent = header(view("shop.service"))
    assert node == "tidegate 1.2.3  n1  Linux 6.1.0  2 CPUs  up 1d01h  interval 1.0s"
    assert agent == (
        "agent 1.2% CPU  programs 0.04% CPU  44.0 MiB RSS  maps 4.0 KiB  rows 2/10  lost 3 (tcp_rows_full 3)  "
        "ticks 4 late 1 skipped"
    )


def test_a_header_leaves_out_what_is_not_measured_or_well() -> None:
    shown = view("shop.service")
    health = msgspec.structs.replace(
        shown.health, cpu=None, program_cpu=None, rss_bytes=None, losses={}, ticks_late=0, ticks_skipped=0
    )
    assert header(msgspec.structs.replace(shown, health=health))[1] == "agent  maps 4.0 KiB  rows 2/10  lost 0"


def test_a_late_tick_is_in_the_header_while_it_is() -> None:
    shown = view("shop.service")
    health = msgspec.structs.replace(shown.health, late_seconds=0.25)
    assert header(msgspec.structs.replace(shown, health=health))[1].endswith(
        "ticks 4 late 1 skipped, now by 250ms"
    )


def test_a_frame_fits_the_terminal() -> None:
    lines = frame(view(*(f"service-{n}.service" for n in range(60))), Options(), width=80, height=24)
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert "more)" in lines[-1]


def test_rows_are_filtered_sorted_and_cut_to_columns() -> None:
    shown = view("a.service", "b.service", "c.service")
    options = Options(tables=("services",), sort="connects", columns=("service", "connects"))
    lines = frame(shown, options)[3:]
    assert [line.split() for line in lines] == [
        ["SERVICE", "CONNECTS"],
        ["c.service", "12"],
        ["b.service", "11"],
        ["a.service", "10"],
    ]
    assert len(frame(shown, Options(tables=("services",), filter="b.serv"))) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(tables=("nothing",)), "--view nothing: expected one of services, endpoints"),
        (Options(sort="colour"), "column colour: expected one of accept_rate"),
    ],
)
def test_unknown_tables_and_columns_are_refused(options: Options, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        options.check()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (7.7e-6, "7.70us"),
        (0.0000999, "99.9us"),
        (0.000999, "999us"),
        (0.0009996, "1.00ms"),
        (0.153, "153ms"),
        (1.02, "1.02s"),
        (127.0, "127s"),
    ],
)
def test_durations_have_three_digits(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_findings_are_a_metric_to_alert_on() -> None:
    finding = Finding(
        id="retransmits",
        severity=Severity.CRITICAL,
        subject='a"b -> [::1]:80',
        summary="",
        evidence={},
        confidence=Confidence.LOW,
        refuted_by="",
        remedies=(),
        runbook="",
    )
    shown = msgspec.structs.replace(view("shop.service"), findings=(finding,) * 101)
    found = [
        (sample.labels, sample.value)
        for family in text_string_to_metric_families(scrape(shown))
        for sample in family.samples
        if sample.name == "tidegate_finding"
    ]
    assert found == [({"id": "retransmits", "severity": "critical", "subject": 'a"b -> [::1]:80'}, 1.0)] * 100
    assert "tidegate_finding{" not in scrape(view("shop.service"))
