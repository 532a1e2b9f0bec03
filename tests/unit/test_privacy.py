# SPDX-License-Identifier: Apache-2.0
"""What is shown of client addresses, and their handles."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.privacy import Addresses, Mode, Source

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("source", "truncated", "plain"),
    [
        (ip_address("198.51.100.7"), "198.51.100.0/24", "198.51.100.7"),
        (ip_network("198.51.100.7/32"), "198.51.100.0/24", "198.51.100.7"),
        (ip_network("198.51.100.0/24"), "198.51.100.0/24", "198.51.100.0/24"),
        (ip_network("10.0.0.0/8"), "10.0.0.0/8", "10.0.0.0/8"),
        (ip_address("2001:db8:1:2::3"), "2001:db8:1::/48", "2001:db8:1:2::3"),
        (ip_network("2001:db8:1:2::/64"), "2001:db8:1::/48", "2001:db8:1:2::/64"),
        (ip_network("2001:db8:1::/48"), "2001:db8:1::/48", "2001:db8:1::/48"),
    ],
)
def test_what_is_shown(source: Source, truncated: str, plain: str) -> None:
    assert Addresses("truncate").shown(source) == truncated
    assert Addresses("plain").shown(source) == plain


def test_a_hash_is_of_the_source_under_the_key() -> None:
    addresses, other = Addresses("hash", b"k" * 32), Addresses("hash", b"l" * 32)
    shown = addresses.shown(ip_address("2001:db8::1"))
    assert shown == addresses.shown(ip_network("2001:db8::/64")) == addresses.shown(ip_address("2001:db8::2"))
    assert shown == Addresses("hash", b"k" * 32).shown(ip_address("2001:db8::1"))
    assert shown != other.shown(ip_address("2001:db8::1"))
    assert len({addresses.shown(IPv4Address(n)) for n in range(1000)}) == 1000
    assert Addresses("hash").shown(IPv4Address(1)) != Addresses("hash").shown(IPv4Address(1))


@pytest.mark.parametrize("mode", ["truncate", "hash", "plain"])
def test_a_handle_leads_back_to_its_source_in_this_process_alone(mode: Mode) -> None:
    addresses, other = Addresses(mode), Addresses(mode)
    sources: list[Source] = [ip_network("198.51.100.7/32"), ip_network("2001:db8::/64"), ip_network("10.1.0.0/24")]
    handles = [addresses.handle(source) for source in sources]
    assert [addresses.source_of(handle) for handle in handles] == sources
    assert [addresses.handle(source) for source in sources] == handles
    assert all(len(handle) == 10 and handle.isalnum() for handle in handles)
    assert addresses.source_of(f" {handles[0].upper()}\n") == sources[0]
    assert [other.source_of(handle) for handle in handles] == [None] * 3
    assert addresses.handle(ip_address("198.51.100.7")) == handles[0]
    assert addresses.handle(ip_address("::ffff:198.51.100.7")) == handles[0]
    with pytest.raises(ValueError, match="does not appear"):
        ip_address(handles[0])


@given(st.lists(st.integers(0, 30), max_size=200))
def test_the_table_keeps_those_shown_last(shown: list[int]) -> None:
    addresses = Addresses("truncate", most=8)
    handles: dict[int, str] = {}
    for number in shown:
        handle = addresses.handle(IPv4Address(number))
        assert handles.setdefault(number, handle) == handle  # the same again when it had been forgotten
    latest = list(dict.fromkeys(reversed(shown)))
    for number in latest[:8]:
        assert addresses.source_of(handles[number]) == ip_network(number)
    assert [addresses.source_of(handles[number]) for number in latest[8:]] == [None] * len(latest[8:])
