# SPDX-License-Identifier: Apache-2.0
"""The Envoy driver before a real Envoy: what operators do to its file, layouts of links, and how fast it is."""

from __future__ import annotations

import base64
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lab.closedloop import ClosedLoop, Request
from lab.lab import Lab
from tests.lab.remains import wait_until
from tests.lab.rigs.envoy import PORT, YAML, EnvoyRig, answered, marked, settle
from tests.lab.rigs.rig import ENDPOINTS, journal
from tidegate.errors import DriverError
from tidegate.model.driver import Standing, Use
from tidegate.pools.envoy import EnvoyDriver
from tidegate.pools.keeper import Keeper, Mode

pytestmark = pytest.mark.lab
FIRST, SECOND, THIRD = ENDPOINTS
ALL_ACTIVE = dict.fromkeys(ENDPOINTS, Use.ACTIVE)


def statuses(path: Path) -> dict[str, str | None]:
    """Return what the file itself says of each endpoint, by a parser of another make."""
    (resource,) = yaml.safe_load(path.read_text(encoding="utf-8"))["resources"]
    members = [member for locality in resource["endpoints"] for member in locality["lb_endpoints"]]
    addresses = [member["endpoint"]["address"]["socket_address"] for member in members]
    return {
        f"{address['address']}:{address['port_value']}": member.get("health_status")
        for address, member in zip(addresses, members, strict=True)
    }


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)


# What operators and controllers do to the file.


def test_the_file_keeps_all_else(lab: Lab, tmp_path: Path) -> None:
    rig = EnvoyRig(lab)
    driver = rig.driver(journal(tmp_path, "envoy"))
    rig.eds.chmod(0o640)
    settle(driver, {FIRST: 0, THIRD: 0})
    expected = YAML.replace(
        "    - endpoint:\n        address:", "    - health_status: UNHEALTHY\n      endpoint:\n        address:"
    ).replace('"HEALTHY"', "UNHEALTHY")
    assert rig.eds.read_text(encoding="utf-8") == expected
    assert rig.eds.stat().st_mode & 0o777 == 0o640
    driver.restore()
    assert rig.eds.read_bytes() == YAML.encode()


def test_a_file_that_others_replace_keeps_theirs_and_our_ejection(lab: Lab, tmp_path: Path) -> None:
    rig = EnvoyRig(lab)
    driver = rig.driver(journal(tmp_path, "envoy"))
    settle(driver, {FIRST: 0, SECOND: 0})
    # A controller writes the file anew from what it knows, with another weight and without our statuses.
    rig.exchange(YAML.replace("load_balancing_weight: 1  #", "load_balancing_weight: 7  #"))
    wait_until(lambda: driver.read() == ALL_ACTIVE, "all active")
    assert settle(driver, {FIRST: 0}) == ALL_ACTIVE | {FIRST: Use.EJECTED}
    assert "load_balancing_weight: 7" in rig.eds.read_text(encoding="utf-8")
    assert set(rig.reached(60)) == {SECOND, THIRD}
    # Another one edits the file as it stands: our status stays ours, his stays his.
    text = rig.eds.read_text(encoding="utf-8").replace("weight: 7", "weight: 5")
    rig.exchange(marked(text, THIRD, "DRAINING"))
    expected = {FIRST: Use.EJECTED, SECOND: Use.ACTIVE, THIRD: Use.HELD}
    wait_until(lambda: driver.read() == expected, str(expected))
    assert settle(driver, {}) == ALL_ACTIVE | {THIRD: Use.HELD}
    assert statuses(rig.eds) == {FIRST: "UNKNOWN", SECOND: "HEALTHY", THIRD: "DRAINING"}
    assert not list(tmp_path.glob("*.json"))


def test_who_was_taken_out_on_top_of_us_is_never_ours_again(lab: Lab, tmp_path: Path) -> None:
    rig = EnvoyRig(lab)
    driver = rig.driver(journal(tmp_path, "envoy"))
    settle(driver, {FIRST: 0, SECOND: 0})
    rig.hold(FIRST)
    assert driver.read()[FIRST] is Use.HELD
    rig.mark(FIRST, "UNHEALTHY")  # the word that ours would be
    assert driver.read()[FIRST] is Use.HELD
    assert settle(driver, {}) == ALL_ACTIVE | {FIRST: Use.HELD}
    assert statuses(rig.eds)[FIRST] == "UNHEALTHY"


def test_what_is_written_in_place_reaches_envoy_with_our_next_turn(lab: Lab, tmp_path: Path) -> None:
    """Envoy doesn't notice such a change; with the ejection on top it gets both."""
    rig = EnvoyRig(lab)
    driver = rig.driver(journal(tmp_path, "envoy"))
    settle(driver, {FIRST: 0})
    rig.eds.write_text(YAML.replace('"HEALTHY"', "DRAINING"), encoding="utf-8")
    assert driver.read()[FIRST] is Use.ACTIVE, "the file doesn't have it any more"
    assert driver.apply({FIRST: 0})
    expected = {FIRST: Use.EJECTED, SECOND: Use.ACTIVE, THIRD: Use.HELD}
    wait_until(lambda: driver.read() == expected, str(expected))
    rig.eds.write_text(YAML, encoding="utf-8")
    assert driver.apply({}), "Envoy has to be told of what was written in place"
    wait_until(lambda: driver.read() == ALL_ACTIVE, "all active")
    assert rig.eds.read_bytes() == YAML.encode()


def test_a_file_that_is_none_any_more_is_left_alone(lab: Lab, tmp_path: Path) -> None:
    rig = EnvoyRig(lab)
    driver = rig.driver(journal(tmp_path, "envoy"))
    settle(driver, {FIRST: 0})
    broken = "resources: [ {"
    rig.exchange(broken)
    for call in (driver.read, driver.restore, lambda: driver.apply({SECOND: 0})):
        with pytest.raises(DriverError, match=r"inventory\.yaml: expected an EDS file") as caught:
            call()
        assert not caught.value.away
    (refusal,) = driver.discover().refusals
    assert "expected an EDS file" in refusal
    assert rig.eds.read_text(encoding="utf-8") == broken
    assert set(rig.reached(60)) == {SECOND, THIRD}, "Envoy goes on with what it had"
    rig.exchange(YAML)
    wait_until(lambda: driver.read() == ALL_ACTIVE, "all active")
    assert settle(driver, {FIRST: 0})[FIRST] is Use.EJECTED
    driver.restore()
    assert rig.eds.read_bytes() == YAML.encode()
    rig.eds.unlink()
    with pytest.raises(DriverError, match="expected an EDS file, found none"):
        driver.read()


def test_an_agent_that_died_before_it_wrote_has_ejected_nobody(lab: Lab, tmp_path: Path) -> None:
    rig = EnvoyRig(lab)
    dead = journal(tmp_path, "envoy")
    dead.put(
        {"base": base64.b64encode(YAML.encode()).decode(), "written": ["x"], "found": {FIRST: [None]}, "made": []}
    )
    driver = rig.driver(journal(tmp_path, "envoy"))
    assert driver.read() == ALL_ACTIVE
    driver.restore()
    assert rig.eds.read_bytes() == YAML.encode()
    assert not list(tmp_path.glob("*.json"))


def test_json(lab: Lab, tmp_path: Path) -> None:
    text = json.dumps(yaml.safe_load(YAML))
    rig = EnvoyRig(lab, text, "inventory.json")
    driver = rig.driver(journal(tmp_path, "envoy"), eject="draining")
    assert settle(driver, {FIRST: 0}) == ALL_ACTIVE | {FIRST: Use.EJECTED}
    assert statuses(rig.eds) == {FIRST: "DRAINING", SECOND: "HEALTHY", THIRD: "HEALTHY"}
    assert set(rig.reached(60)) == {SECOND, THIRD}
    rig.mark(SECOND, "UNHEALTHY")
    assert driver.read()[SECOND] is Use.HELD
    rig.mark(SECOND, "HEALTHY")
    assert settle(driver, {}) == ALL_ACTIVE
    assert json.loads(rig.eds.read_text(encoding="utf-8")) == json.loads(text)


def test_a_full_disk_changes_nothing(lab: Lab, tmp_path: Path) -> None:
    mounted = tmp_path / "small"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mounted)], check=True)
    lab.stack.callback(subprocess.run, ["umount", str(mounted)], check=True)
    rig = EnvoyRig(lab, directory=mounted / "eds", eds="inventory.yaml")
    driver = rig.driver(journal(tmp_path, "envoy"))
    driver.read()
    full = mounted / "full"
    fill(full)
    before = rig.state()
    with pytest.raises(DriverError, match=r"can't be written: No space left on device; it is as it was"):
        driver.apply({FIRST: 0})
    assert rig.state() == before
    assert driver.read() == ALL_ACTIVE
    full.unlink()
    assert settle(driver, {FIRST: 0})[FIRST] is Use.EJECTED
    driver.restore()
    assert rig.state() == before


def test_a_keeper_holds_an_ejection_through_restarts_and_rewrites(lab: Lab, tmp_path: Path) -> None:
    rig = EnvoyRig(lab)
    kept = journal(tmp_path, "envoy")
    keeper = Keeper("inventory", "envoy", rig.driver(kept), kept, Mode(True, True, 1), lambda _: None)
    keeper.start()
    try:
        keeper.want({FIRST: 0}, time.monotonic())
        wait_until(lambda: keeper.row().uses.get(FIRST) is Use.EJECTED, "ejected")
        rig.stop()
        wait_until(lambda: keeper.row().standing is Standing.AWAY, "away")
        rig.start()
        assert set(rig.reached(60)) == {SECOND, THIRD}, "the file has it"
        wait_until(lambda: keeper.row().standing is Standing.OK, "back")
        rig.exchange(YAML.replace('version_info: "7"', 'version_info: "8"'))
        wait_until(lambda: keeper.row().replays == 1, "told again")
        wait_until(lambda: keeper.row().uses.get(FIRST) is Use.EJECTED, "ejected again")
        assert set(rig.reached(60)) == {SECOND, THIRD}
    finally:
        keeper.end(restore=True)
        assert keeper.join(10.0)
    assert rig.eds.read_text(encoding="utf-8") == YAML.replace('version_info: "7"', 'version_info: "8"')


# How fast, and what it costs.


@pytest.fixture
def loaded(lab: Lab, tmp_path: Path) -> Iterator[tuple[EnvoyRig, EnvoyDriver]]:
    rig = EnvoyRig(lab)
    driver = rig.driver(journal(tmp_path, "envoy"))
    driver.read()
    yield rig, driver
    driver.restore()


def test_no_request_fails_and_the_effect_is_there_within_milliseconds(
    loaded: tuple[EnvoyRig, EnvoyDriver],
) -> None:
    rig, driver = loaded
    load = ClosedLoop(rig.host, "127.0.0.1", PORT, workers=20)
    told: list[tuple[float, float, float]] = []
    for _ in range(20):
        wait_until(lambda: not any(host.is_out for host in rig.hosts().values()), "all back")
        time.sleep(0.05)  # requests to all of them again
        began = time.monotonic()
        driver.apply({FIRST: 0})
        written = time.monotonic()
        while driver.read()[FIRST] is not Use.EJECTED:
            assert time.monotonic() < began + 5.0
        told.append((began, written, time.monotonic()))
        time.sleep(0.05)
        driver.apply({})
    requests = load.stop()
    assert answered(requests).keys() == {*ENDPOINTS}, answered(requests)
    assert min(answered(requests).values()) > 100
    written = statistics.median(written - began for began, written, _ in told)
    said = statistics.median(end - began for began, _, end in told)
    last = statistics.median(last_at(FIRST, requests, began, end + 0.05) - began for began, _, end in told)
    figures = f"written {written * 1000:.1f} ms, said {said * 1000:.1f} ms, last {last * 1000:.1f} ms"
    sys.stdout.write(f"20 ejections, 20 clients: {figures}, {len(requests)} requests\n")
    assert max(said, last) <= 0.05, figures  # 5 ms on a machine that does nothing else


def last_at(endpoint: str, requests: list[Request], began: float, end: float) -> float:
    """Return when the last request of those that went to an endpoint was sent."""
    return max(
        (each.start for each in requests if each.body == endpoint and began <= each.start <= end), default=began
    )
