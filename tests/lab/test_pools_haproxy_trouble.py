# SPDX-License-Identifier: Apache-2.0
"""HAProxy's driver where others write too, nobody answers, HAProxy begins anew, or names are hostile."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from lab.lab import Lab
from tests.lab.rigs.haproxy import BACKEND, DEADLINE, SERVERS, HaproxyRig, until
from tests.lab.rigs.rig import ENDPOINTS, journal
from tidegate.config.pools import HaproxyDriver as Config
from tidegate.errors import DriverError
from tidegate.model.driver import Standing, Use
from tidegate.pools.haproxy import HaproxyDriver
from tidegate.pools.haproxy_runtime import State, exchange, set_maxconn, set_state
from tidegate.pools.keeper import Keeper, Mode

pytestmark = pytest.mark.lab

FIRST = ENDPOINTS[0]
ALL_ACTIVE = dict.fromkeys(ENDPOINTS, Use.ACTIVE)


# Operators.


@pytest.mark.parametrize("permits", [0, 1])
def test_an_operators_maintenance_is_the_operators(lab: Lab, tmp_path: Path, permits: int) -> None:
    rig = HaproxyRig(lab)
    driver = rig.driver(journal(tmp_path, rig.name))
    driver.apply({FIRST: 0})
    driver.apply({FIRST: permits})
    rig.hold(FIRST)
    assert driver.read()[FIRST] is Use.HELD
    driver.apply({FIRST: 0})
    assert not list(tmp_path.glob("*.json"))
    assert rig.state()[BACKEND, "s6"][1:] == ("1", "1", "1", "")
    driver.restore()
    assert driver.read()[FIRST] is Use.HELD
    rig.release(FIRST)
    assert driver.read() == ALL_ACTIVE


def test_what_an_operator_takes_back_is_told_again(lab: Lab, tmp_path: Path) -> None:
    rig = HaproxyRig(lab)
    driver = rig.driver(journal(tmp_path, rig.name))
    driver.apply({FIRST: 0})
    rig.release(FIRST)
    assert driver.read() == ALL_ACTIVE
    driver.apply({FIRST: 0})
    assert driver.read()[FIRST] is Use.EJECTED


# What can't be.


def test_a_backend_that_isnt_there(lab: Lab, tmp_path: Path) -> None:
    rig = HaproxyRig(lab)
    config = Config(socket=str(rig.proxy.socket), backend="stock")
    driver = HaproxyDriver(ENDPOINTS, config, journal(tmp_path, "haproxy"))
    for call in (driver.read, driver.discover, driver.restore):
        with pytest.raises(DriverError, match="backend stock: expected HAProxy to have it") as caught:
            call()
        assert not caught.value.away


def test_a_socket_without_the_right_to_write(lab: Lab, tmp_path: Path) -> None:
    rig = HaproxyRig(lab, level="user")
    before = rig.state()
    driver = rig.driver(journal(tmp_path, rig.name))
    assert driver.read() == ALL_ACTIVE
    assert "is of level user" in driver.discover().refusals[0]
    with pytest.raises(DriverError, match="HAProxy said: Permission denied") as caught:
        driver.apply({FIRST: 0})
    assert not caught.value.away
    assert caught.value.exchanges == ((f"set server {BACKEND}/s6 state drain", "Permission denied\n\n"),)
    assert rig.state() == before
    driver.restore()
    assert not list(tmp_path.glob("*.json"))


def test_a_proxy_that_hangs_is_away(lab: Lab, tmp_path: Path) -> None:
    rig = HaproxyRig(lab)
    config = Config(socket=str(rig.proxy.socket), backend=BACKEND)
    driver = HaproxyDriver(ENDPOINTS, config, journal(tmp_path, "haproxy"), timeout=0.5)
    assert driver.read() == ALL_ACTIVE
    with rig.proxy.hanging():
        with pytest.raises(DriverError, match=r"nothing came within 0\.5 s") as caught:
            driver.read()
        assert caught.value.away
    assert driver.read() == ALL_ACTIVE


# HAProxy is reloaded, restarted, killed.


@contextmanager
def kept(rig: HaproxyRig, directory: Path) -> Iterator[Keeper]:
    found = journal(directory, rig.name)
    keeper = Keeper(
        "inventory",
        rig.name,
        rig.driver(found),
        found,
        Mode(reads=True, acts=True, least=1),
        lambda _told: None,
    )
    keeper.start()
    try:
        yield keeper
    finally:
        keeper.end(restore=True)
        assert keeper.join(DEADLINE)


def reload(rig: HaproxyRig) -> None:
    rig.proxy.reload()


def restart(rig: HaproxyRig) -> None:
    rig.restart()


def kill(rig: HaproxyRig) -> None:
    rig.proxy.kill()
    rig.proxy.start()


@pytest.mark.parametrize("happens", [reload, restart, kill])
def test_haproxy_is_told_again_within_seconds(
    lab: Lab,
    tmp_path: Path,
    happens: Callable[[HaproxyRig], None],
    record_property: Callable[[str, object], None],
) -> None:
    rig = HaproxyRig(lab)
    before = rig.state()

    def is_out() -> bool:
        with suppress(OSError):
            return bool(rig.state()[BACKEND, "s6"][1] == "8")
        return False

    with kept(rig, tmp_path) as keeper:
        keeper.want({FIRST: 0}, time.monotonic())
        until(is_out, "it is out")
        happens(rig)
        seconds = until(is_out, "it is out again", 5.0)
        record_property("seconds", round(seconds, 3))
        until(lambda: keeper.row().standing is Standing.OK, "it is in step")
        assert FIRST not in rig.reached(60)
        assert keeper.row().uses == ALL_ACTIVE | {FIRST: Use.EJECTED}
    assert rig.state() == before


def test_a_proxy_that_stays_away_is_said_to_be(lab: Lab, tmp_path: Path) -> None:
    rig = HaproxyRig(lab)
    with kept(rig, tmp_path) as keeper:
        keeper.want({FIRST: 0}, time.monotonic())
        until(lambda: keeper.row().uses.get(FIRST) is Use.EJECTED, "it is out")
        rig.proxy.kill()
        until(lambda: keeper.row().standing is Standing.AWAY, "it is away")
        assert "start HAProxy" in keeper.row().error
        rig.proxy.start()
        until(lambda: keeper.row().standing is Standing.OK, "it is back", 5.0)
        until(lambda: keeper.row().uses.get(FIRST) is Use.EJECTED, "it is out again", 5.0)


# What is hostile.

CASES = 1000
PIECES = (
    *(
        "s6",
        "s7",
        "other",
        "inventory",
        "a",
        "/",
        ";",
        "; ",
        "\n",
        "\r",
        "\\",
        "\\;",
        " ",
        "\t",
        "\0",
        "<<",
        "#1",
        "#",
    ),
    *(
        "state maint",
        "disable server other/o6",
        "set server other/o7 state drain",
        "shutdown sessions server ",
        "é",
    ),
    *("\\\n", "'", '"', ",", "-", "%3b", "\x1b", "clear counters all", "set maxconn server inventory/s7 1"),
)


def test_no_name_reaches_another_server(lab: Lab) -> None:
    others = "backend other\n    server o6 10.0.0.6:5000\n    server o7 10.0.0.7:5000\n"
    rig = HaproxyRig(lab, SERVERS, others)
    before = rig.state()
    chance = random.Random(1)
    sent = refused = 0
    for _ in range(CASES):
        backend, server = (hostile(chance, likely) for likely in ("inventory", "s6"))
        try:
            commands = [set_state(backend, server, State.MAINT), set_maxconn(backend, server, 3)]
        except DriverError:
            refused += 1
            continue
        sent += 1
        exchange(str(rig.proxy.socket), "; ".join(commands))
        after = rig.state()
        assert {name for name, state in after.items() if state != before[name]} <= {(backend, server)}
        if (backend, server) in before:
            rig.tell(f"set server {backend}/{server} state ready; set maxconn server {backend}/{server} 0")
    assert rig.state() == before
    assert refused > CASES / 2
    assert sent > CASES / 20


def hostile(chance: random.Random, likely: str) -> str:
    if chance.random() < 0.35:
        return likely
    return "".join(chance.choices(PIECES, k=chance.randint(1, 4)))


def test_no_config_reaches_another_server(lab: Lab, tmp_path: Path) -> None:
    rig = HaproxyRig(lab)
    before = rig.state()
    chance = random.Random(2)
    for _ in range(CASES):
        config = Config(socket=str(rig.proxy.socket), backend=hostile(chance, "inventory"))
        endpoints = [hostile(chance, FIRST)]
        driver = HaproxyDriver(endpoints, config, journal(tmp_path, "haproxy"))
        with suppress(DriverError):
            driver.apply({endpoints[0]: 0})
        changed = {name for name, state in rig.state().items() if state != before[name]}
        assert changed <= ({(BACKEND, "s6")} if endpoints == [FIRST] else set())
        with suppress(DriverError):
            driver.restore()
    HaproxyDriver(
        ENDPOINTS, Config(socket=str(rig.proxy.socket), backend=BACKEND), journal(tmp_path, "haproxy")
    ).restore()
    assert rig.state() == before
