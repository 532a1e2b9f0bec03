# SPDX-License-Identifier: Apache-2.0
"""HAProxy's driver before a real one: under load, with clients that are bound, half open, by addresses."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.closedloop import ClosedLoop, Request
from lab.lab import Lab
from lab.network import enter
from tests.lab.rigs.haproxy import BACKEND, PORT, SERVERS, HaproxyRig, until
from tests.lab.rigs.rig import ENDPOINTS, journal
from tidegate.config.pools import HaproxyDriver as Config
from tidegate.model.driver import Use
from tidegate.pools.haproxy import HaproxyDriver
from tidegate.pools.haproxy_runtime import rows

pytestmark = pytest.mark.lab

FIRST, SECOND, THIRD = ENDPOINTS
ALL_ACTIVE = dict.fromkeys(ENDPOINTS, Use.ACTIVE)
ROUNDS = 10
GATEWAY = "10.0.0.16"


def arrived(request: Request) -> tuple[str, float]:
    """Return who answered, and when the request had come to it by its own clock."""
    endpoint, _, at = request.body.partition(" ")
    return endpoint, float(at or 0)


# Under load.


def test_no_request_fails_while_endpoints_come_and_go(
    lab: Lab, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    rig = HaproxyRig(lab)
    driver = rig.driver(journal(tmp_path, rig.name))
    load = ClosedLoop(rig.client, GATEWAY, PORT, workers=20)
    ejections = []
    for number in range(ROUNDS):
        endpoint = ENDPOINTS[number % 3]
        answer_more(rig, endpoint)
        applied, wall = time.monotonic(), time.time()
        driver.apply({endpoint: 0})
        assert driver.read()[endpoint] is Use.EJECTED
        known = time.monotonic()
        answer_more(rig, ENDPOINTS[(number + 1) % 3])
        restored = time.monotonic()
        ejections.append((endpoint, applied, wall, known, restored))
        driver.apply({})
        assert driver.read() == ALL_ACTIVE
    for endpoint in ENDPOINTS:
        answer_more(rig, endpoint)
    requests = load.stop()
    assert [request for request in requests if request.status != 200] == []
    assert len(requests) > 1000
    lasts = []
    for endpoint, applied, wall, known, restored in ejections:
        assert sum(known < request.start < restored for request in requests) > 100, "there was load without it"
        its = [request for request in requests if request.start < restored and arrived(request)[0] == endpoint]
        lasts.append(
            (
                max(request.start for request in its) - applied,
                max(arrived(request)[1] for request in its) - wall,
                known - applied,
            )
        )
    by_client, by_endpoint, verified = (
        [round(1000 * value, 1) for value in column] for column in zip(*lasts, strict=True)
    )
    record_property("requests", len(requests))
    record_property("last_started_ms", by_client)
    record_property("last_arrived_ms", by_endpoint)
    record_property("applied_and_read_ms", verified)
    assert max(by_client) < 500
    assert max(by_endpoint) < 500


def test_applying_and_reading_takes_little(
    lab: Lab, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    rig = HaproxyRig(lab)
    driver = rig.driver(journal(tmp_path, rig.name))
    driver.read()
    times = []
    for number in range(100):
        began = time.perf_counter()
        driver.apply({FIRST: 0} if number % 2 else {})
        driver.read()
        times.append(time.perf_counter() - began)
    times.sort()
    record_property("apply_and_read_ms", [round(1000 * times[n], 2) for n in (10, 50, 90, 99)])
    assert times[50] < 0.05


# Clients that are bound to a server.

COOKIES = "    cookie S insert\n" + "".join(
    f"    server s{number} 10.0.0.{number}:5000 cookie c{number}\n" for number in (6, 7, 8)
)
TABLE = "    stick-table type ip size 1k expire 30m\n    stick on src\n" + SERVERS


def bound_to(rig: HaproxyRig, cookie: str, requests: int = 10) -> set[str]:
    """Return who answers a client with a cookie."""
    argv = ["curl", "-s", "--max-time", "5", "-H", f"Cookie: {cookie}"]
    argv += [f"http://{GATEWAY}:{PORT}/?[1-{requests}]"]
    done = subprocess.run(enter(rig.client.namespace, argv), check=True, capture_output=True, text=True)
    return {line.split(" ")[0] for line in done.stdout.splitlines()}


def test_a_client_with_a_cookie_goes_elsewhere(lab: Lab, tmp_path: Path) -> None:
    rig = HaproxyRig(lab, COOKIES)
    driver = rig.driver(journal(tmp_path, rig.name))
    assert bound_to(rig, "S=c6") == {FIRST}
    exchanges = driver.apply({FIRST: 0})
    assert [one.command for one in exchanges] == [f"set server {BACKEND}/s6 state maint"]
    assert bound_to(rig, "S=c6") <= {SECOND, THIRD}
    driver.restore()
    assert bound_to(rig, "S=c6") == {FIRST}


def test_a_drained_server_serves_its_bound_clients_and_that_is_said(lab: Lab, tmp_path: Path) -> None:
    rig = HaproxyRig(lab, COOKIES)
    driver = rig.driver(journal(tmp_path, rig.name), eject="drain")
    driver.apply({FIRST: 0})
    assert bound_to(rig, "S=c6") == {FIRST}
    assert any("'eject: maint'" in warning for warning in driver.discover().warnings)


def test_a_client_in_a_stick_table_goes_elsewhere(lab: Lab, tmp_path: Path) -> None:
    rig = HaproxyRig(lab, TABLE)
    driver = rig.driver(journal(tmp_path, rig.name))
    rig.reached(3)  # the first ones may be at the same time, before there is an entry
    (bound,) = rig.reached(30)
    driver.apply({bound: 0})
    assert rig.state()[BACKEND, f"s{bound[7]}"][1] == "1"
    reached = rig.reached(30)
    assert sum(reached.values()) == 30
    assert set(reached) <= set(ENDPOINTS) - {bound}


# Half open.


@pytest.mark.parametrize("maxconn", [0, 1, 50])
def test_half_open_lets_as_many_through_as_it_has_permits(lab: Lab, tmp_path: Path, maxconn: int) -> None:
    rig = HaproxyRig(lab, SERVERS.replace("10.0.0.6:5000", f"10.0.0.6:5000 maxconn {maxconn}", 1))
    before = rig.state()
    driver = rig.driver(journal(tmp_path, rig.name))
    driver.apply({FIRST: 0})
    driver.apply({FIRST: 2})
    assert driver.read() == ALL_ACTIVE | {FIRST: Use.TRIAL}
    rig.tell("clear counters all")
    requests = ClosedLoop(rig.client, GATEWAY, PORT, workers=20, count=2000).results()
    assert {request.status for request in requests} == {200}
    assert FIRST in {arrived(request)[0] for request in requests}
    assert 1 <= counted(rig, FIRST, "smax") <= 2
    driver.apply({FIRST: 0})
    assert driver.read()[FIRST] is Use.EJECTED
    driver.apply({FIRST: 1})
    driver.apply({})
    assert rig.state() == before
    assert not list(tmp_path.glob("*.json"))


def counted(rig: HaproxyRig, endpoint: str, what: str) -> int:
    """Return one of HAProxy's counters of the server of an endpoint."""
    found = rows(rig.proxy.ask("show stat -1 4 -1"))
    return next(int(row[what]) for row in found if row["pxname"] == BACKEND and row["addr"] == endpoint)


def answer_more(rig: HaproxyRig, endpoint: str) -> None:
    """Wait until an endpoint has answered some hundred requests more."""
    before = counted(rig, endpoint, "hrsp_2xx")
    until(lambda: counted(rig, endpoint, "hrsp_2xx") > before + 500, f"{endpoint} answers")


# Servers.


def test_all_servers_of_an_endpoint_and_no_others(lab: Lab, tmp_path: Path) -> None:
    rig = HaproxyRig(
        lab,
        "    server one 10.0.0.6:5000 weight 7\n"
        "    server two 10.0.0.6:5000 maxconn 9\n"
        "    server three [fd00::7]:5000\n"
        "    server other 10.0.0.6:5001\n"
        "    server zero 10.0.0.8:5000 weight 0\n"
        "    server off 10.0.0.8:5000 disabled\n",
        "backend other\n    server one 10.0.0.6:5000\n    server two 10.0.0.7:5000\n",
    )
    before = rig.state()
    config = Config(socket=str(rig.proxy.socket), backend=BACKEND)
    endpoints = ("10.0.0.6:5000", "[fd00::7]:5000", "10.0.0.8:5000", "10.0.0.9:5000")
    driver = HaproxyDriver(endpoints, config, journal(tmp_path, "haproxy"))
    expected = dict(zip(endpoints, (Use.ACTIVE, Use.ACTIVE, Use.HELD, Use.ABSENT), strict=True))
    assert driver.read() == expected
    assert any(warning.endswith("is at 10.0.0.9:5000") for warning in driver.discover().warnings)
    driver.apply(dict.fromkeys(endpoints, 0))
    expected |= {"10.0.0.6:5000": Use.EJECTED, "[fd00::7]:5000": Use.EJECTED}
    assert driver.read() == expected
    changed = {name for name, state in rig.state().items() if state != before[name]}
    assert changed == {(BACKEND, "one"), (BACKEND, "two"), (BACKEND, "three")}
    driver.restore()
    assert rig.state() == before


def test_what_haproxys_own_checks_took_out_is_failed(lab: Lab, tmp_path: Path) -> None:
    checked = SERVERS.replace("10.0.0.6:5000", "10.0.0.6:5000 check inter 50 fall 1 rise 1 port 5009", 1)
    rig = HaproxyRig(lab, checked)
    driver = rig.driver(journal(tmp_path, rig.name))
    until(lambda: driver.read() == ALL_ACTIVE | {FIRST: Use.FAILED}, "its check fails")
    driver.apply({FIRST: 0})
    assert driver.read()[FIRST] is Use.EJECTED
    driver.apply({})
    until(lambda: driver.read()[FIRST] is Use.FAILED, "it fails as before")


def test_a_backend_whose_name_could_be_a_number(lab: Lab, tmp_path: Path) -> None:
    others = "backend 3x\n    server s6 10.0.0.6:5000 maxconn 77\n"
    rig = HaproxyRig(lab, SERVERS, others)
    before = rig.state()
    config = Config(socket=str(rig.proxy.socket), backend="3x")
    driver = HaproxyDriver([FIRST], config, journal(tmp_path, "haproxy"))
    for out in ({FIRST: 0}, {FIRST: 2}):
        driver.apply(out)
    changed = {name for name, state in rig.state().items() if state != before[name]}
    assert changed == {("3x", "s6")}
    assert rig.state()["3x", "s6"][4] == "2"
    driver.restore()
    assert rig.state() == before
