# SPDX-License-Identifier: Apache-2.0
"""What every driver of pools does, each before the real thing that it drives."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.lab import Lab
from tests.lab.rigs.dns import DnsRig
from tests.lab.rigs.envoy import EnvoyRig
from tests.lab.rigs.failfast import FailfastRig
from tests.lab.rigs.haproxy import HaproxyRig
from tests.lab.rigs.nginx import NginxRig
from tests.lab.rigs.null import NullRig
from tests.lab.rigs.rig import ENDPOINTS, Rig, journal
from tidegate.errors import DriverError
from tidegate.model.driver import Use
from tidegate.pools.driver import Driver, Wanted
from tidegate.pools.plan import is_done

pytestmark = pytest.mark.lab

FIRST, SECOND, THIRD = ENDPOINTS
ALL_ACTIVE = dict.fromkeys(ENDPOINTS, Use.ACTIVE)
REQUESTS = 60
#: The slowest driver's own time to effect is some seconds (DNS answers are kept for their time to live).
DEADLINE = 10.0
RIGS: dict[str, Callable[[Lab], Rig]] = {
    "null": lambda _lab: NullRig(),
    "nginx": NginxRig,
    "failfast": FailfastRig,
    "envoy": EnvoyRig,
    "haproxy": HaproxyRig,
    "dns": DnsRig,
}


@pytest.fixture(params=RIGS)
def rig(request: pytest.FixtureRequest, lab: Lab) -> Rig:
    return RIGS[request.param](lab)


@pytest.fixture
def driver(rig: Rig, tmp_path: Path) -> Iterator[Driver]:
    made = rig.driver(journal(tmp_path, rig.name))
    yield made
    made.close()


def settle(driver: Driver, out: Wanted) -> dict[str, Use]:
    """Have a driver do it, and wait until the proxy says so."""
    driver.apply(out)
    return settled(driver, out)


def settled(driver: Driver, out: Wanted) -> dict[str, Use]:
    end = time.monotonic() + DEADLINE
    while not is_done(out, uses := driver.read()):
        assert time.monotonic() < end, f"{driver.target} says {uses}, wanted out: {out}"
        time.sleep(0.01)
    return uses


def test_all_are_used_at_first(rig: Rig, driver: Driver) -> None:
    found = driver.discover()
    assert not found.refusals
    assert driver.read() == ALL_ACTIVE
    assert driver.apply({}) == []
    assert set(rig.reached(REQUESTS)) == set(ENDPOINTS)


def test_who_is_out_gets_no_request_until_it_is_back(rig: Rig, driver: Driver) -> None:
    assert driver.read() == ALL_ACTIVE
    assert settle(driver, {FIRST: 0}) == ALL_ACTIVE | {FIRST: Use.EJECTED}
    assert set(rig.reached(REQUESTS)) == {SECOND, THIRD}
    assert settle(driver, {SECOND: 0}) == ALL_ACTIVE | {SECOND: Use.EJECTED}
    assert set(rig.reached(REQUESTS)) == {FIRST, THIRD}
    assert settle(driver, {}) == ALL_ACTIVE
    assert set(rig.reached(REQUESTS)) == set(ENDPOINTS)


def test_what_is_so_already_is_not_sent_again(rig: Rig, driver: Driver) -> None:  # noqa: ARG001
    driver.read()
    assert driver.apply({FIRST: 0})
    settled(driver, {FIRST: 0})
    assert driver.apply({FIRST: 0}) == []
    assert driver.apply({})
    settled(driver, {})
    assert driver.apply({}) == []


def test_all_is_put_back_exactly(rig: Rig, driver: Driver, tmp_path: Path) -> None:
    before = rig.state()
    driver.read()
    settle(driver, {FIRST: 0, SECOND: 0})
    driver.restore()
    settled(driver, {})
    assert rig.state() == before
    assert not list(tmp_path.glob("*.json")), "there is nothing to put back any more"


def test_letting_all_back_is_putting_them_back(rig: Rig, driver: Driver, tmp_path: Path) -> None:
    before = rig.state()
    driver.read()
    settle(driver, {FIRST: 0})
    settle(driver, {FIRST: 1})
    settle(driver, {})
    assert rig.state() == before
    assert not list(tmp_path.glob("*.json"))


def test_the_next_agent_puts_back_what_a_dead_one_did(rig: Rig, driver: Driver, tmp_path: Path) -> None:
    before = rig.state()
    driver.read()
    settle(driver, {FIRST: 0, THIRD: 0})
    driver.close()
    following = rig.driver(journal(tmp_path, rig.name))
    try:
        if driver.sticks:
            assert following.read() == {FIRST: Use.EJECTED, SECOND: Use.ACTIVE, THIRD: Use.EJECTED}
        following.restore()
        settled(following, {})
        assert rig.state() == before
    finally:
        following.close()


def test_half_open_is_used_again(rig: Rig, driver: Driver) -> None:
    driver.read()
    settle(driver, {FIRST: 0})
    uses = settle(driver, {FIRST: 1})
    assert uses[FIRST] in (Use.TRIAL, Use.ACTIVE)
    assert FIRST in rig.reached(REQUESTS)
    assert settle(driver, {FIRST: 0})[FIRST] is Use.EJECTED
    assert FIRST not in rig.reached(REQUESTS)


def test_what_an_operator_takes_out_stays_out(rig: Rig, driver: Driver, tmp_path: Path) -> None:
    if not rig.has_operator:
        assert rig.name in ("null", "failfast", "dns")
        return
    rig.hold(FIRST)
    before = rig.state()
    assert driver.read() == ALL_ACTIVE | {FIRST: Use.HELD}
    uses = settle(driver, {FIRST: 0, SECOND: 0})
    assert uses == {FIRST: Use.HELD, SECOND: Use.EJECTED, THIRD: Use.ACTIVE}
    assert settle(driver, {}) == ALL_ACTIVE | {FIRST: Use.HELD}
    assert rig.state() == before
    assert set(rig.reached(REQUESTS)) == {SECOND, THIRD}
    assert not list(tmp_path.glob("*.json"))
    rig.release(FIRST)
    assert settled(driver, {}) == ALL_ACTIVE


def test_what_an_operator_takes_out_on_top_of_an_ejection_stays_out(rig: Rig, driver: Driver) -> None:
    if not rig.has_operator:
        assert rig.name in ("null", "failfast", "dns")
        return
    driver.read()
    settle(driver, {FIRST: 0})
    rig.hold(FIRST)
    assert driver.read()[FIRST] is Use.HELD
    assert settle(driver, {})[FIRST] is Use.HELD
    assert set(rig.reached(REQUESTS)) == {SECOND, THIRD}


def test_a_proxy_that_was_restarted_is_told_again(rig: Rig, driver: Driver) -> None:
    before = rig.state()
    driver.read()
    settle(driver, {FIRST: 0})
    rig.restart()
    driver.read()
    settle(driver, {FIRST: 0})
    assert set(rig.reached(REQUESTS)) == {SECOND, THIRD}
    settle(driver, {})
    assert rig.state() == before
    assert set(rig.reached(REQUESTS)) == set(ENDPOINTS)


def test_a_proxy_that_is_away_is_an_error_and_nothing_is_lost(rig: Rig, driver: Driver) -> None:
    if not rig.can_be_away:
        assert rig.name in ("null", "failfast", "dns")
        return
    before = rig.state()
    driver.read()
    settle(driver, {FIRST: 0})
    rig.stop()
    with pytest.raises(DriverError) as caught:
        driver.read()
    assert caught.value.away
    rig.start()
    settle(driver, {FIRST: 0})
    assert set(rig.reached(REQUESTS)) == {SECOND, THIRD}
    driver.restore()
    settled(driver, {})
    assert rig.state() == before


def test_without_a_journal_nothing_is_written(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "full").write_text("a file where a directory should be", encoding="ascii")
    before = rig.state()
    driver = rig.driver(journal(tmp_path / "full", rig.name))
    try:
        driver.read()
        if driver.sticks:
            with pytest.raises(DriverError, match=r"journal .* can't be written"):
                driver.apply({FIRST: 0})
        assert rig.state() == before
    finally:
        driver.restore()
        driver.close()
