# SPDX-License-Identifier: Apache-2.0
"""Modes that roll back by themselves, leases that end, and when enforcement is refused."""

from __future__ import annotations

from ipaddress import IPv4Network, ip_network
from pathlib import Path
from socket import AddressFamily
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.cli.ratelimit import session
from tidegate.errors import TidegateError, UsageError
from tidegate.ratelimit.admission import Address, addresses_in, check_front, check_session
from tidegate.ratelimit.listening import forwards, own_addresses, reachable
from tidegate.ratelimit.modes import LEASE, InForce, Mode, Modes

pytestmark = pytest.mark.unit


def test_what_is_not_confirmed_rolls_back() -> None:
    modes = Modes(Mode.MONITOR, persist=False)
    modes.ask(Mode.ENFORCE, 100.0, 60.0)
    assert modes.in_force(130.0) == InForce(Mode.ENFORCE, 130.0 + LEASE)
    assert modes.in_force(155.0) == InForce(Mode.ENFORCE, 160.0)  # the kernel itself ends it in time
    assert modes.expired(159.9) is None
    assert modes.expired(160.0) is Mode.ENFORCE
    assert modes.in_force(160.0).mode is Mode.MONITOR
    with pytest.raises(UsageError, match="found none"):
        modes.confirm(160.0)


def test_what_is_confirmed_stays() -> None:
    modes = Modes(Mode.MONITOR, persist=False)
    modes.ask(Mode.ENFORCE, 100.0, 60.0)
    assert modes.confirm(159.0) is Mode.ENFORCE
    assert modes.expired(1000.0) is None
    assert modes.in_force(1000.0) == InForce(Mode.ENFORCE, 1010.0)
    with pytest.raises(UsageError):
        modes.confirm(1001.0)


def test_to_enforce_needs_a_deadline_or_a_config_that_does() -> None:
    modes = Modes(Mode.MONITOR, persist=False)
    with pytest.raises(UsageError, match="--for"):
        modes.ask(Mode.ENFORCE, 0.0, None)
    modes.configure(Mode.ENFORCE, persist=False)
    modes.ask(Mode.MONITOR, 0.0, None)
    modes.ask(Mode.ENFORCE, 1.0, None)
    assert modes.mode is Mode.ENFORCE


def test_a_config_with_another_mode_ends_what_was_asked_for() -> None:
    modes = Modes(Mode.MONITOR, persist=False)
    modes.ask(Mode.OFF, 0.0, None)
    modes.configure(Mode.MONITOR, persist=True)
    assert modes.mode is Mode.OFF
    modes.configure(Mode.ENFORCE, persist=True)
    assert modes.in_force(5.0) == InForce(Mode.ENFORCE, None)


def test_what_persists_does_so_only_once_it_is_confirmed() -> None:
    modes = Modes(Mode.MONITOR, persist=True)
    modes.ask(Mode.ENFORCE, 0.0, 60.0)
    assert modes.in_force(10.0).lease == 20.0
    modes.confirm(20.0)
    assert modes.in_force(20.0).lease is None


@given(
    st.sampled_from(list(Mode)),
    st.lists(st.tuples(st.floats(0, 30), st.sampled_from(list(Mode)), st.floats(1, 100))),
)
def test_no_lease_is_longer_than_the_deadline(configured: Mode, steps: list[tuple[float, Mode, float]]) -> None:
    modes, now = Modes(configured, persist=True), 0.0
    for delay, mode, seconds in steps:
        now += delay
        modes.expired(now)
        modes.ask(mode, now, seconds)
        lease = modes.in_force(now).lease
        assert lease is not None
        assert lease <= min(now + LEASE, now + seconds)


def allowed(address: Address) -> bool:
    return any(address in ip_network(text) for text in ("192.0.2.0/24", "2001:db8::/32"))


@pytest.mark.parametrize("session", [None, "192.0.2.7", "::ffff:192.0.2.7", "2001:db8::1", "127.0.0.1", "::1"])
def test_a_session_that_is_allowed_may_enforce(session: str | None) -> None:
    check_session(session, allowed)


@pytest.mark.parametrize("session", ["198.51.100.1", "fe80::1%eth0", "gateway.example"])
def test_a_session_that_could_be_locked_out_may_not(session: str) -> None:
    with pytest.raises(TidegateError, match="--yes"):
        check_session(session, allowed)


def test_one_source_that_stands_for_a_crowd() -> None:
    one, other = IPv4Network("198.51.100.7"), IPv4Network("203.0.113.9")
    check_front({one: 19})
    check_front({one: 50, other: 50})
    with pytest.raises(TidegateError, match=r"somebody makes 51 of 101"):
        check_front({one: 51, other: 50}, lambda _: "somebody")


def test_the_session_of_a_command() -> None:
    assert session({"SSH_CONNECTION": "192.0.2.7 50000 192.0.2.1 22"}) == "192.0.2.7"
    assert session({"SSH_CLIENT": "2001:db8::1 50000 22"}) == "2001:db8::1"


def test_name_servers() -> None:
    text = "# nameserver 1.1.1.1\nnameserver 192.0.2.53\nsearch example\nnameserver fe80::1%eth0\nnameserver"
    assert addresses_in(text.splitlines()) == ["192.0.2.53", "fe80::1"]


def test_what_listens_on_loopback_alone_is_not_reachable() -> None:
    sockets = [("0.0.0.0", 80), ("127.0.0.1", 81), ("::", 443), ("::1", 444), ("10.0.0.1", 82)]
    rows = [{"idiag_src": address, "idiag_sport": port} for address, port in sockets]
    assert reachable(rows) == {80, 443, 82}


def test_a_node_forwards_if_any_of_its_interfaces_does(tmp_path: Path) -> None:
    for name in ("ipv4/conf/all", "ipv4/conf/eth0", "ipv6/conf/all", "ipv6/conf/eth1"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "forwarding").write_text("0\n", encoding="ascii")
    assert not forwards(tmp_path)
    (tmp_path / "ipv6/conf/eth1/forwarding").write_text("1\n", encoding="ascii")
    assert forwards(tmp_path)
    assert not forwards(tmp_path / "none")


def test_the_own_addresses_are_those_of_all_interfaces_and_their_broadcasts() -> None:
    rows = {
        "eth0": [
            SimpleNamespace(family=AddressFamily.AF_INET, address="192.0.2.7", broadcast="192.0.2.255"),
            SimpleNamespace(family=AddressFamily.AF_INET6, address="fe80::1%eth0", broadcast=None),
            SimpleNamespace(family=AddressFamily.AF_PACKET, address="02::1", broadcast="ff:ff:ff:ff:ff:ff"),
        ],
        "lo": [SimpleNamespace(family=AddressFamily.AF_INET, address="127.0.0.1", broadcast=None)],
    }
    found = {str(address) for address in own_addresses(rows)}
    assert found == {"192.0.2.7", "192.0.2.255", "fe80::1", "127.0.0.1"}
