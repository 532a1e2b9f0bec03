# SPDX-License-Identifier: Apache-2.0
"""What the Envoy driver learns of a real Envoy, and what it says is in the way."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.envoy import Cluster
from lab.lab import Lab
from tests.lab.remains import wait_until
from tests.lab.rigs.envoy import YAML, EnvoyRig, settle
from tests.lab.rigs.rig import ENDPOINTS, journal
from tidegate.errors import DriverError
from tidegate.model.driver import Use
from tidegate.pools.envoy import EnvoyDriver

pytestmark = pytest.mark.lab
FIRST, SECOND, THIRD = ENDPOINTS
ALL_ACTIVE = dict.fromkeys(ENDPOINTS, Use.ACTIVE)
#: As Envoy does if its config says nothing.
DEFAULTS: Mapping[str, Any] = {}


@contextlib.contextmanager
def over_tcp(rig: EnvoyRig) -> Iterator[int]:
    """Have the answers of Envoy's admin interface at a port of this host; its own is a Unix socket."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(rig.proxy.ask(self.path.removeprefix("/")).encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_what_is_said_of_an_envoy_as_it_is_by_default(lab: Lab, tmp_path: Path) -> None:
    rig = EnvoyRig(lab, common=DEFAULTS)
    driver = rig.driver(journal(tmp_path, "envoy"))
    found = driver.discover()
    assert found.version.startswith("1.")
    assert found.refusals == ()
    (panic,) = found.warnings
    assert "of 3 endpoints at most 1 may be out; with 2 out Envoy panics and sends to all 3" in panic
    # Each within a second of the last: Envoy's update_merge_window of 1 s holds none of it up.
    for _ in range(3):
        settle(driver, {FIRST: 0})
        assert set(rig.reached(60)) == {SECOND, THIRD}
        settle(driver, {})
        assert set(rig.reached(60)) == {*ENDPOINTS}
    # And so it is.
    assert settle(driver, {FIRST: 0, SECOND: 0})[SECOND] is Use.EJECTED
    assert set(rig.reached(60)) == {*ENDPOINTS}, "in panic"
    driver.restore()


def test_all_out_without_panic_fail_fast(lab: Lab, tmp_path: Path) -> None:
    rig = EnvoyRig(lab)
    driver = rig.driver(journal(tmp_path, "envoy"))
    settle(driver, dict.fromkeys(ENDPOINTS, 0))
    assert set(rig.reached(20)) == {"503"}
    driver.restore()


def test_what_else_is_worth_a_word(lab: Lab, tmp_path: Path) -> None:
    static = Cluster("static", 9002, [("10.0.0.6", 5000)])
    rig = EnvoyRig(lab, more=[static])
    own = rig.driver(journal(tmp_path, "envoy"))
    found = own.discover()
    assert (found.warnings, found.refusals) == ((), ())
    # Endpoints from elsewhere.
    other = tmp_path / "static.yaml"
    other.write_text(YAML.replace("cluster_name: inventory", "cluster_name: static"), encoding="utf-8")
    driver = rig.driver(journal(tmp_path, "static"), eds=str(other), cluster="static")
    (warning,) = driver.discover().warnings
    assert "has its endpoints from elsewhere, not from a file" in warning
    # A cluster that Envoy doesn't have, and a pool's endpoint that the file doesn't.
    other.write_text(
        YAML.replace("cluster_name: inventory", "cluster_name: none").replace("10.0.0.8", "10.0.0.9"),
        encoding="utf-8",
    )
    driver = rig.driver(journal(tmp_path, "none"), eds=str(other), cluster=None)
    lack, missing = sorted(driver.discover().warnings)[::-1]
    assert "Envoy has no cluster with the endpoints of none" in lack or "Envoy has no cluster" in missing
    assert any(f"has no {THIRD}" in warning for warning in (lack, missing))
    with pytest.raises(DriverError, match="Envoy has no cluster with the endpoints of none"):
        driver.read()
    # Two clusters in one file, which Envoy rejects.
    tree = yaml.safe_load(YAML)
    tree["resources"] = [tree["resources"][0], {**tree["resources"][0], "cluster_name": "second"}]
    other.write_text(yaml.safe_dump(tree), encoding="utf-8")
    driver = rig.driver(journal(tmp_path, "two"), eds=str(other))
    assert any("Envoy rejects an EDS file with more than one" in warning for warning in driver.discover().warnings)
    # An address where something else answers, and nobody.
    driver = rig.driver(journal(tmp_path, "away"), admin="127.0.0.1:1")
    with pytest.raises(DriverError, match=r"admin interface at 127\.0\.0\.1:1: .*Connection refused") as caught:
        driver.discover()
    assert caught.value.away


def test_a_cluster_of_another_name_than_its_endpoints(lab: Lab, tmp_path: Path) -> None:
    eds = tmp_path / "named.yaml"
    eds.write_text(YAML.replace("cluster_name: inventory", "cluster_name: stock"), encoding="utf-8")
    source = {"path_config_source": {"path": str(eds)}, "resource_api_version": "V3"}
    more = {"type": "EDS", "eds_cluster_config": {"service_name": "stock", "eds_config": source}}
    rig = EnvoyRig(lab, more=[Cluster("by-another-name", 9002, eds={"path": str(eds)}, more=more)])
    driver = rig.driver(journal(tmp_path, "envoy"), eds=str(eds), cluster="stock")
    assert driver.read() == ALL_ACTIVE
    assert driver.discover().warnings == ()
    assert settle(driver, {FIRST: 0}) == ALL_ACTIVE | {FIRST: Use.EJECTED}
    driver.restore()
    assert eds.read_text(encoding="utf-8") == YAML.replace("cluster_name: inventory", "cluster_name: stock")


def test_without_the_admin_interface_the_file_is_believed(lab: Lab, tmp_path: Path) -> None:
    rig = EnvoyRig(lab)
    driver = rig.driver(journal(tmp_path, "envoy"), admin=None)
    (warning,) = driver.discover().warnings
    assert "without 'admin' it isn't known what Envoy makes of the file" in warning
    assert settle(driver, {FIRST: 0}) == ALL_ACTIVE | {FIRST: Use.EJECTED}
    wait_until(lambda: set(rig.reached(60)) == {SECOND, THIRD}, "out")
    rig.hold(FIRST)
    assert driver.read()[FIRST] is Use.HELD
    rig.release(FIRST)
    driver.restore()
    assert driver.read() == ALL_ACTIVE


def test_ipv6(lab: Lab, tmp_path: Path) -> None:
    text = YAML
    for number in (6, 7, 8):
        text = text.replace(f"address: 10.0.0.{number}", f'address: "FD00:0::{number}"')
    rig = EnvoyRig(lab, text)
    endpoints = ("[fd00::6]:5000", "[fd00::7]:5000", "[fd00::8]:5000")
    driver = EnvoyDriver(endpoints, rig.section(), journal(tmp_path, "envoy"))
    assert driver.read() == dict.fromkeys(endpoints, Use.ACTIVE)
    assert settle(driver, {endpoints[0]: 0})[endpoints[0]] is Use.EJECTED
    assert set(rig.reached(20)) == {"fd00::7:5000", "fd00::8:5000"}
    driver.restore()
    assert rig.eds.read_text(encoding="utf-8") == text


def test_the_admin_interface_over_tcp(lab: Lab, tmp_path: Path) -> None:
    rig = EnvoyRig(lab)
    with over_tcp(rig) as port:
        driver = rig.driver(journal(tmp_path, "envoy"), admin=f"127.0.0.1:{port}")
        assert driver.discover().version.startswith("1.")
        assert settle(driver, {FIRST: 0}) == ALL_ACTIVE | {FIRST: Use.EJECTED}
        driver.restore()


def test_what_fails_envoys_own_checks_is_told_apart(lab: Lab, tmp_path: Path) -> None:
    check: dict[str, Any] = {"timeout": "0.2s", "interval": "0.1s", "no_traffic_interval": "0.1s"}
    check["unhealthy_threshold"] = check["healthy_threshold"] = 1
    rig = EnvoyRig(lab, keys={"health_checks": [{**check, "http_health_check": {"path": "/"}}]})
    driver = rig.driver(journal(tmp_path, "envoy"))
    wait_until(lambda: driver.read() == ALL_ACTIVE, "all active")
    rig.upstreams[THIRD].end()
    wait_until(lambda: driver.read() == ALL_ACTIVE | {THIRD: Use.FAILED}, "failed")
    assert settle(driver, {FIRST: 0, THIRD: 0}) == {FIRST: Use.EJECTED, SECOND: Use.ACTIVE, THIRD: Use.EJECTED}
    assert settle(driver, {}) == ALL_ACTIVE | {THIRD: Use.FAILED}
