# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from tidegate.advice import RULES
from tidegate.config import parse
from tidegate.errors import ConfigError
from tidegate.identity.locations import Locations

pytestmark = pytest.mark.unit
FINDINGS = [rule.id for rule in RULES]
PLACES = {"10.0.0.0/8": "frankfurt", "10.9.0.0/16": "vienna", "2001:db8::/32": "paris", "192.0.2.7/32": "home"}


@pytest.mark.parametrize(
    ("endpoint", "place"),
    [
        ("10.0.0.6:5000", "frankfurt"),
        ("10.9.255.255:1", "vienna"),
        ("192.0.2.7:80", "home"),
        ("192.0.2.8:80", ""),
        ("[2001:db8::6]:443", "paris"),
        ("[2001:db9::6]:443", ""),
        (":80", ""),
        ("other", ""),
    ],
)
def test_the_smallest_network_that_holds_an_address_names_its_place(endpoint: str, place: str) -> None:
    locations = Locations(PLACES)
    assert [locations.of(endpoint) for _ in range(2)] == [place, place]


def test_without_places_nothing_is_looked_up() -> None:
    assert Locations({}).of("10.0.0.6:5000") == ""


def test_places_and_residency_in_a_file() -> None:
    config = parse(b"locations: {10.0.0.0/8: here, 2001:DB8::/32: there}\nresidency: {allowed: [here]}", "f")
    assert config.locations == {"10.0.0.0/8": "here", "2001:db8::/32": "there"}
    assert config.residency.allowed == ("here",)


NETWORK = "expected a network like 10.0.0.0/8 or fd00::/8, found"
COMPLAINTS = {
    "locations:\n  10.0.0.1/8: a": f"f:2:3: locations: {NETWORK} '10.0.0.1/8': 10.0.0.1/8 has host bits set",
    "locations: {frankfurt: 10.0.0.0/8}": (
        f"f:1:13: locations: {NETWORK} 'frankfurt': 'frankfurt' does not appear to be an IPv4 or IPv6 network"
    ),
    "locations: {'fd00::/8': a, 'fd00:0::/8': b}": (
        "f:1:28: locations.fd00:0::/8: given twice, first as another form of fd00::/8"
    ),
    "locations: {10.0.0.0/8: ''}": "f:1:25: locations.10.0.0.0/8: expected 1 to 64 characters, found 0",
    "locations: {10.0.0.0/8: here}\nresidency: {allowed: [her]}": (
        "f:1:1: residency.allowed: expected names of locations, found 'her'; known here: here"
    ),
    "advice: {ignore: [nothing]}": (
        f"f:1:9: advice: expected ignore to name findings, found 'nothing'; known here: {', '.join(FINDINGS)}"
    ),
    "advice: {window: 4s, interval: 3s}": "f:1:9: advice: expected an interval of at most half the window",
    "advice: {missing_keepalive: {connect_rate: 10}}": (
        "f:1:44: advice.missing_keepalive.connect_rate: expected a rate like 10/s or 100/m, found '10'"
    ),
    "advice: {cpu_steal: {share: 2}}": (
        "f:1:29: advice.cpu_steal.share: expected more than 0 and at most 1, found '2'"
    ),
}


@pytest.mark.parametrize(("text", "complaint"), COMPLAINTS.items())
def test_complaints(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text.encode(), "f")
    assert caught.value.complaints == [complaint]
