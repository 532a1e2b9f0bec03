# SPDX-License-Identifier: Apache-2.0
"""Each finding: a fault that makes exactly it, and near misses that make none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.unit.faults import FAR, FAULTS, FULL, NEAR_MISSES, SERVED, home
from tests.unit.picture import (
    endpoint,
    namespace,
    ports,
    program,
    resource,
    view,
    window,
)
from tidegate.advice import RULES, advise
from tidegate.model.finding import Finding
from tidegate.model.limits import Advice, Residency
from tidegate.model.snapshot import View

pytestmark = pytest.mark.unit
RUNBOOKS = Path(__file__).parents[2] / "docs/runbooks"
HOME = Residency(allowed=("home",))


def judged(*views: View, advice: Advice | None = None, residency: Residency = HOME) -> tuple[Finding, ...]:
    return advise(window(*views), advice or Advice(), residency)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_finding(name: str) -> None:
    id_, subject, views = FAULTS[name]
    (finding,) = judged(*views)
    assert (finding.id, finding.subject) == (id_, subject)
    assert finding.runbook == f"docs/runbooks/{id_}.md"
    assert finding.evidence
    assert finding.remedies
    assert all(text.isprintable() for remedy in finding.remedies for text in (remedy.what, *remedy.lines))


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_a_near_miss_is_none(name: str) -> None:
    assert judged(*NEAR_MISSES[name]) == ()


def test_every_rule_has_a_fault_that_makes_it_limits_and_a_runbook() -> None:
    ids = [rule.id for rule in RULES]
    assert len(set(ids)) == len(ids)
    assert {id_ for id_, _, _ in FAULTS.values()} | {"connection_pool"} == set(ids)
    limits = {field for field in Advice.__struct_fields__ if isinstance(getattr(Advice(), field), msgspec.Struct)}
    assert limits | {"residency", "connection_pool"} == set(ids)
    assert sorted(path.stem for path in RUNBOOKS.glob("*.md")) == sorted(ids)


@pytest.mark.parametrize("id_", [rule.id for rule in RULES])
def test_a_runbook_says_what_it_means_how_to_verify_what_to_do_and_what_refutes_it(id_: str) -> None:
    text = (RUNBOOKS / f"{id_}.md").read_text(encoding="utf-8")
    headings = [line.removeprefix("#").strip(" #") for line in text.splitlines() if line.startswith("#")]
    assert headings == [id_, "What it means", "Verify", "Remedies", "What refutes it"]


def test_what_is_ignored_is_no_finding() -> None:
    _, _, views = FAULTS["refused"]
    assert judged(*views, advice=Advice(ignore=("connect_failures",))) == ()


def test_without_allowed_locations_nothing_is_said_of_residency() -> None:
    assert judged(view([endpoint(sent_bytes=1, location="abroad")]), residency=Residency()) == ()


def test_ports_that_are_exhausted_are_so_now_whatever_the_forecast_says() -> None:
    row = ports(used=20_000, exhausted=4, will_exhaust=True, time_to_exhaustion=500.0)
    (finding,) = judged(view(ports=[row]))
    assert finding.evidence["time_left_seconds"] == 0.0
    assert " now: " in finding.summary
    assert finding.severity == "critical"


def test_what_explains_another_finding_says_so() -> None:
    _, _, views = FAULTS["no ports for want of keep-alive"]
    (finding,) = judged(*views)
    assert finding.evidence["explains"] == "missing_keepalive"


def test_the_three_remedies_of_ports_are_in_order_of_worth() -> None:
    shop = program("nginx", "1.22.1")
    known = namespace(tw_reuse=2, range_low=32_768, range_high=60_999)
    (finding,) = judged(view(ports=[ports(**FULL)], resources=[shop], namespaces=[known]))
    assert [remedy.lines[0] for remedy in finding.remedies] == [
        "proxy_http_version 1.1;",
        "net.ipv4.tcp_tw_reuse = 1",
        "net.ipv4.ip_local_port_range = 1024 65535",
    ]


def test_ports_of_open_connections_are_no_matter_of_keepalive() -> None:
    (finding,) = judged(view(ports=[ports(used=28_000, time_wait=10)]))
    assert finding.remedies[0].what.startswith("Most ports belong to connections that are open")


KEEPALIVE = {
    "nginx": ("1.22.1", "proxy_http_version 1.1;"),
    "haproxy": ("2.6.12", "http-reuse safe"),
    "envoy": (None, "    max_requests_per_connection: 0"),
    "python3.11": ("3.11.2", "session = requests.Session()"),
    "java": (None, "static final HttpClient CLIENT = HttpClient.newHttpClient();"),
    "node": ("18.1", "const agent = new http.Agent({ keepAlive: true, maxFreeSockets: 16 });"),
    "go": ("1.22", "transport.MaxIdleConnsPerHost = 16"),
}


@pytest.mark.parametrize("name", KEEPALIVE)
def test_the_lines_are_those_of_the_program(name: str) -> None:
    version, line = KEEPALIVE[name]
    (finding,) = judged(view([home(connects=200)], resources=[program(name, version)]))
    assert any(line in remedy.lines for remedy in finding.remedies)
    assert finding.confidence == "high"
    assert str(finding.evidence["program"]).startswith(name[:4])


@pytest.mark.parametrize(
    ("version", "keeps"),
    [("1.22.1", False), ("1.29.6", False), ("1.29.7", True), ("1.30.0", True), ("1.31.2", True), (None, False)],
)
def test_nginx_keeps_connections_by_itself_from_1_29_7_on(version: str | None, keeps: bool) -> None:
    (finding,) = judged(view([home(connects=200)], resources=[program("nginx", version)]))
    assert ("keeps connections by itself" in finding.remedies[0].what) is keeps


def test_of_an_unknown_program_all_proxies_are_told() -> None:
    (finding,) = judged(view([home(connects=200)]))
    places = [remedy.where.partition(":")[0] for remedy in finding.remedies]
    assert [place for place in places if place] == ["nginx", "nginx", "haproxy", "envoy"]
    assert finding.confidence == "medium"


def test_a_program_that_keeps_by_itself_points_at_the_upstream_that_closes() -> None:
    (finding,) = judged(view([home(connects=200, local=0)], resources=[program("haproxy", "2.6")]))
    assert finding.remedies[0].what.startswith("The upstream is the first to close")


@pytest.mark.parametrize(
    ("cgroup", "line"),
    [
        ("/kubepods.slice/kubepods-pod1.slice/x.scope", "limits: {memory: 188Mi}"),
        ("/system.slice/docker-0123.scope", "docker update --memory 188m --memory-swap 188m shop"),
        ("/system.slice/shop.service", "systemctl set-property shop.service MemoryMax=188M"),
        ("/jobs/7", "echo 197132288 > memory.max"),
    ],
)
def test_limits_are_raised_where_they_were_set(cgroup: str, line: str) -> None:
    row = resource("shop", cgroup=cgroup, memory_working_set=125 << 20, memory_limit=128 << 20)
    (finding,) = judged(view(resources=[row]))
    assert finding.remedies[0].lines[0] == line


def test_distance_sums_up_by_place_and_by_request() -> None:
    rows = [home(f"10.0.{n}.6:80", **{**FAR, "exchanges": 200}, location="vienna") for n in range(2)]
    (finding,) = judged(view([*rows, SERVED]), residency=Residency())
    assert finding.subject == "shop.service -> vienna"
    assert finding.evidence["calls_per_request"] == 20.0
    assert finding.evidence["added_seconds_per_request"] == 0.5
    assert "20 calls for each request at 25 ms each: 500 ms" in finding.summary


def test_a_loss_says_which_key_gives_more_room() -> None:
    map_ = {"entries": 64, "limit": 64, "bytes": 1}
    health = {"losses": {"tcp_untracked": 3}, "maps": {"tcp_sockets": msgspec.convert(map_, _map_type())}}
    (finding,) = judged(view(health=health))
    assert finding.remedies[0].lines == ("signals: {tcp: {max_sockets: 128}}",)


def _map_type() -> Any:
    from tidegate.model.snapshot import MapHealth  # noqa: PLC0415

    return MapHealth
