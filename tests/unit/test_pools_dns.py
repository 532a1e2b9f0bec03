# SPDX-License-Identifier: Apache-2.0
"""What the DNS driver answers and concludes, and what it makes of anything that arrives."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Sequence

import dnslib
import pytest
from dnslib import QTYPE, DNSRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.model.driver import Use
from tidegate.pools.dns_message import LARGEST_QUESTION, RESULTS, Reply, reply
from tidegate.pools.dns_zone import Asker, Kind, Zone, find, target

pytestmark = pytest.mark.unit

NAME = "inventory.tidegate.internal"
FOUR = FIRST, SECOND, THIRD = ("10.0.0.6:5000", "10.0.0.7:5000", "10.0.0.8:5000")
SIX = ("[fd00::6]:5000", "[fd00::7]:5000")
NGINX, OTHER = ("127.0.0.1", 40000), ("127.0.0.1", 40001)
#: Until an answer counts as taken, and until somebody who asks no more is gone.
TAKEN, GONE = 0.25, 4.1


def question(name: str = NAME, kind: str = "A", *, edns: int = 0, number: int = 7) -> bytes:
    record = DNSRecord(dnslib.DNSHeader(id=number, rd=1), q=dnslib.DNSQuestion(name, getattr(QTYPE, kind)))
    if edns:
        record.add_ar(dnslib.EDNS0(udp_len=edns))
    return bytes(record.pack())


def ask(zones: Zone | Iterable[Zone], packet: bytes, *, tcp: bool = False) -> Reply:
    known = [zones] if isinstance(zones, Zone) else zones
    return reply(packet, {zone.name: zone for zone in known}, NGINX, 0.0, tcp=tcp)


def parsed(found: Reply) -> DNSRecord:
    record = DNSRecord.parse(found.wire)
    assert record.header.qr
    assert not struct.unpack_from("!H", found.wire, 2)[0] & 0x0070, "nginx drops an answer with Z, AD or CD"
    return record


def data(zone: Zone, name: str = NAME, kind: str = "A") -> list[str]:
    """Return what an answer without an error says."""
    record = parsed(ask(zone, question(name, kind), tcp=True))
    assert record.header.rcode == 0
    assert record.header.aa
    assert all(str(rr.rname) == f"{name}." and rr.ttl == 1 for rr in record.rr)
    return [str(rr.rdata) for rr in record.rr]


def tell(zone: Zone, now: float, asker: Asker = NGINX, kinds: Sequence[Kind] = (Kind.A,)) -> None:
    """Have somebody ask."""
    for kind in kinds:
        answer = zone.answer((), kind, asker, now)
        assert answer is not None
        assert answer.holds is not None
        zone.delivered(kind, asker, answer.holds, now)


# What is answered.


def test_the_addresses_are_those_of_who_is_in() -> None:
    zone = Zone(NAME, FOUR, 1.0)
    assert data(zone) == ["10.0.0.6", "10.0.0.7", "10.0.0.8"]
    zone.publish({FIRST})
    assert data(zone) == ["10.0.0.7", "10.0.0.8"]
    assert data(zone, kind="AAAA") == []
    assert data(zone, kind="TXT") == data(zone, kind="ANY") == []


def test_each_family_is_answered_by_its_own_type() -> None:
    zone = Zone(NAME, FOUR + SIX, 1.0)
    zone.publish({FIRST, SIX[0]})
    assert data(zone) == ["10.0.0.7", "10.0.0.8"]
    assert data(zone, kind="AAAA") == ["fd00::7"]


def test_a_name_keeps_its_letters_and_its_number() -> None:
    record = parsed(ask(Zone(NAME, FOUR, 1.0), question("Inventory.TideGate.internal", number=4711)))
    assert record.header.id == 4711
    assert record.header.rd
    assert str(record.q.qname) == "Inventory.TideGate.internal."
    assert len(record.rr) == 3


def test_a_name_is_never_left_without_addresses() -> None:
    zone = Zone(NAME, FOUR, 1.0)
    zone.publish(FOUR)
    assert zone.out == frozenset()
    assert len(data(zone)) == len(data(zone, kind="SRV")) == 3


def test_a_family_is_left_empty_only_for_who_gets_the_other() -> None:
    zone = Zone(NAME, FOUR + SIX, 1.0)
    zone.publish(SIX)
    only_six, both = ("127.0.0.1", 1), ("127.0.0.1", 2)
    tell(zone, 0.0, only_six, (Kind.AAAA,))
    tell(zone, 0.0, both, (Kind.A,))
    for asker, expected in ((only_six, 2), (both, 0)):
        answer = zone.answer((), Kind.AAAA, asker, 1.0)
        assert answer is not None
        assert len(answer.addresses) == expected
    late = zone.answer((), Kind.AAAA, both, 10.0)
    assert late is not None
    assert len(late.addresses) == 2, "it asked for the other one long ago"


def test_services_have_ports_and_names_of_their_own() -> None:
    zone = Zone(NAME, ("10.0.0.6:5000", "10.0.0.6:5001", "[fd00::7]:5002"), 1.0)
    zone.publish({"10.0.0.6:5000"})
    six = "fd00-0000-0000-0000-0000-0000-0000-0007"
    expected = [f"0 1 5001 10-0-0-6.{NAME}.", f"0 1 5002 {six}.{NAME}."]
    for name in (NAME, f"_http._tcp.{NAME}", f"_grpc._tcp.{NAME}"):
        assert data(zone, name, "SRV") == expected
    assert data(zone, f"_http._tcp.{NAME}", "A") == []
    assert data(zone, f"10-0-0-6.{NAME}") == ["10.0.0.6"]
    assert data(zone, f"10-0-0-6.{NAME}", "AAAA") == []
    assert data(zone, f"{six}.{NAME}", "AAAA") == ["fd00::7"]


def test_an_address_goes_when_all_of_its_endpoints_are_out() -> None:
    zone = Zone(NAME, ("10.0.0.6:5000", "10.0.0.6:5001", "10.0.0.7:5000"), 1.0)
    zone.publish({"10.0.0.6:5000"})
    assert data(zone) == ["10.0.0.6", "10.0.0.7"]
    tell(zone, 0.0)
    assert set(zone.uses(1.0).values()) == {Use.ACTIVE}, "the proxy has all that are at the address"
    zone.publish({"10.0.0.6:5000", "10.0.0.6:5001"})
    assert data(zone) == ["10.0.0.7"]


@pytest.mark.parametrize("name", ["elsewhere.internal", "internal", f"other.{NAME}", f"x{NAME}", f"a.b.c.{NAME}"])
def test_no_other_name_is_answered_and_none_is_said_not_to_be(name: str) -> None:
    found = ask(Zone(NAME, FOUR, 1.0), question(name))
    assert found.result == "refused"
    assert parsed(found).header.rcode == 5


def test_a_label_with_a_dot_is_no_name_of_ours() -> None:
    labels = (b"inventory.tidegate", b"internal")
    packet = DNSRecord(q=dnslib.DNSQuestion(dnslib.DNSLabel(labels), QTYPE.A)).pack()
    assert parsed(ask(Zone(NAME, FOUR, 1.0), bytes(packet))).header.rcode == 1


def test_the_longest_name_has_the_answer() -> None:
    zones = [Zone(NAME, FOUR, 1.0), Zone(f"eu.{NAME}", [FIRST], 1.0)]
    assert len(parsed(ask(zones, question(f"eu.{NAME}"))).rr) == 1
    assert len(parsed(ask(zones, question())).rr) == 3
    known = {zone.name: zone for zone in zones}
    assert find(known, f"a.eu.{NAME}") == (zones[1], ("a",))
    assert find(known, "internal") is None


def test_another_class_is_not_answered() -> None:
    packet = bytes(DNSRecord(q=dnslib.DNSQuestion(NAME, QTYPE.A, 3)).pack())
    assert parsed(ask(Zone(NAME, FOUR, 1.0), packet)).header.rcode == 5


# How large an answer is.


@pytest.mark.parametrize(("edns", "room"), [(0, 512), (100, 512), (900, 900), (4096, 1232)])
def test_what_is_too_long_for_udp_is_cut_and_complete_over_tcp(edns: int, room: int) -> None:
    for count in (20, 27, 28, 29, 30, 48, 53, 54, 55, 73, 74, 75, 89):
        zone = Zone(NAME, [f"10.0.0.{number}:5000" for number in range(count)], 1.0)
        found = ask(zone, question(edns=edns))
        record = parsed(found)
        assert len(found.wire) <= room
        assert bool(record.header.tc) == (found.result == "truncated") == (found.holds is None)
        assert bool(record.ar) == bool(edns)
        whole = ask(zone, question(edns=edns), tcp=True)
        assert len(parsed(whole).rr) == count
        assert bool(record.header.tc) == (len(whole.wire) > room)


def test_what_is_too_long_for_tcp_is_an_error_that_keeps_nginx_as_it_is() -> None:
    zone = Zone(NAME, [f"10.{number >> 8}.{number & 255}.1:80" for number in range(5000)], 1.0)
    found = ask(zone, question(), tcp=True)
    assert parsed(found).header.rcode == 2
    assert found.holds is None


def test_an_unknown_version_of_edns_is_named() -> None:
    record = DNSRecord.parse(question())
    record.add_ar(dnslib.EDNS0(version=1))
    found = parsed(ask(Zone(NAME, FOUR, 1.0), bytes(record.pack())))
    assert (found.header.rcode, found.ar[0].edns_rcode) == (0, 1)
    assert not found.rr


# What isn't a question.


def test_responses_are_never_answered() -> None:
    packet = bytearray(question())
    packet[2] |= 0x80
    assert ask(Zone(NAME, FOUR, 1.0), bytes(packet)) == Reply(b"", "malformed")


def test_other_operations_are_refused_and_what_cannot_be_read_is_said_to_be() -> None:
    packet = bytearray(question())
    packet[2] |= 5 << 3
    assert parsed(ask(Zone(NAME, FOUR, 1.0), bytes(packet))).header.rcode == 4
    bent = question()[:12] + b"\x40" + bytes(64) + question()[12:]
    for junk in (question()[:-3], struct.pack("!6H", 7, 0, 9, 0, 0, 0), question() + bytes(1300), bent):
        found = ask(Zone(NAME, FOUR, 1.0), junk)
        assert found.result == "malformed"
        assert struct.unpack("!6H", found.wire) == (7, 0x8001 | (junk[2] & 1) << 8, 0, 0, 0, 0)


def test_a_chain_of_names_ends() -> None:
    chain = b"".join(struct.pack("!H", 0xC000 | 12 + max(0, number - 1) * 2) for number in range(600))
    packet = struct.pack("!6H", 7, 0, 1, 0, 1, 0)[:12] + chain
    assert ask(Zone(NAME, FOUR, 1.0), packet).result == "malformed"
    assert ask(Zone(NAME, FOUR, 1.0), struct.pack("!6H", 7, 0, 1, 0, 0, 1) + chain).result == "malformed"


ZONES = {
    zone.name: zone
    for zone in (Zone(NAME, FOUR + SIX, 1.0), Zone("a", ["10.0.0.9:1"], 1.0), Zone("b.a", SIX, 60.0))
}


def check(packet: bytes, tcp: bool) -> None:
    """Check what holds for the answer to any packet."""
    found = reply(packet, ZONES, NGINX, 0.0, tcp=tcp)
    assert found.result in RESULTS
    if len(packet) >= 12 and not packet[2] & 0x80:
        assert found.wire[:2] == packet[:2]
        assert found.wire[2] & 0x80
        assert found.wire[3] & 15 != 3, "NXDOMAIN has nginx drop all servers"
        assert len(found.wire) <= (65535 if tcp else 1232)
    else:
        assert not found.wire


@settings(max_examples=500)
@given(st.binary(max_size=LARGEST_QUESTION + 8), st.booleans())
def test_anything_may_arrive(packet: bytes, tcp: bool) -> None:
    check(packet, tcp)


@settings(max_examples=500)
@given(st.randoms(use_true_random=False), st.sampled_from(["A", "AAAA", "SRV", "OPT", "ANY"]), st.booleans())
def test_any_question_may_be_bent(bent: random.Random, kind: str, tcp: bool) -> None:
    packet = bytearray(
        question(bent.choice([NAME, f"_http._tcp.{NAME}", "b.a"]), kind, edns=bent.choice([0, 1400]))
    )
    for _ in range(bent.randrange(6)):
        packet[bent.randrange(len(packet))] = bent.choice([0, 1, 0xC0, 0xFF, bent.randrange(256)])
    for _ in range(bent.randrange(3)):
        at = bent.randrange(len(packet))
        packet[at:at] = bent.choice(
            [b"\xc0\x0c", bytes([bent.randrange(256)]), packet[at : at + bent.randrange(99)]]
        )
    check(bytes(packet[: bent.choice([len(packet), bent.randrange(len(packet) + 1)])]), tcp)


# What is concluded.


def test_nothing_is_known_before_somebody_asks_or_after_nobody_does() -> None:
    zone = Zone(NAME, FOUR, 1.0)
    assert zone.uses(0.0) == {}
    tell(zone, 0.0)
    assert zone.uses(TAKEN) == dict.fromkeys(FOUR, Use.ACTIVE)
    assert zone.uses(GONE) == {}
    assert zone.kinds(1.0) == {Kind.A}
    assert zone.kinds(GONE) == set()


def test_who_is_out_counts_as_out_once_that_was_answered_and_taken() -> None:
    zone = Zone(NAME, FOUR, 1.0)
    tell(zone, 0.0)
    zone.publish({FIRST})
    assert zone.uses(1.9)[FIRST] is Use.ACTIVE
    tell(zone, 2.0)
    assert zone.uses(2.1)[FIRST] is Use.ACTIVE
    assert zone.uses(2.0 + TAKEN) == {FIRST: Use.EJECTED, SECOND: Use.ACTIVE, THIRD: Use.ACTIVE}
    zone.publish(())
    assert zone.uses(3.9)[FIRST] is Use.EJECTED
    tell(zone, 4.0)
    assert zone.uses(4.1)[FIRST] is Use.EJECTED
    assert zone.uses(4.0 + TAKEN)[FIRST] is Use.ACTIVE


def test_an_answer_that_is_asked_for_all_the_time_is_taken_too() -> None:
    zone = Zone(NAME, FOUR, 1.0)
    tell(zone, 0.0)
    zone.publish({FIRST})
    for now in (1.0, 1.1, 1.2, 1.3):
        tell(zone, now)
    assert zone.uses(1.3)[FIRST] is Use.EJECTED


def test_one_who_still_has_it_is_enough_until_it_is_gone() -> None:
    zone = Zone(NAME, FOUR, 1.0)
    tell(zone, 0.0, NGINX)
    tell(zone, 1.0, OTHER)
    zone.publish({FIRST})
    tell(zone, 2.0, NGINX)
    tell(zone, 4.0, NGINX)
    assert zone.uses(4.9)[FIRST] is Use.ACTIVE
    assert zone.uses(1.0 + GONE)[FIRST] is Use.EJECTED


def test_one_who_asks_seldom_is_not_gone_so_soon() -> None:
    zone = Zone(NAME, FOUR, 1.0)
    for now in (0.0, 20.0):
        tell(zone, now, OTHER)
    zone.publish({FIRST})
    for now in (22.0, 24.0, 26.0, 36.0):
        tell(zone, now, NGINX)
    assert zone.uses(36.5)[FIRST] is Use.ACTIVE
    for now in (40.0, 42.0, 51.0):
        tell(zone, now, NGINX)
    assert zone.uses(51.5)[FIRST] is Use.EJECTED


def test_what_nobody_asks_for_is_not_there() -> None:
    zone = Zone(NAME, FOUR + SIX, 1.0)
    tell(zone, 0.0)
    assert zone.uses(1.0)[SIX[0]] is Use.ABSENT
    tell(zone, 1.0, OTHER, (Kind.SRV,))
    assert zone.uses(2.0)[SIX[0]] is Use.ACTIVE


def test_no_number_of_askers_hides_one_who_still_has_it() -> None:
    zone = Zone(NAME, FOUR, 1.0)
    tell(zone, 0.0, ("127.0.0.1", 1))
    zone.publish({FIRST})
    for port in range(2, 1000):
        tell(zone, 0.5, ("127.0.0.1", port))
    assert zone.uses(1.0)[FIRST] is Use.ACTIVE
    for now in (3.0, GONE + 0.1, 2 * GONE):
        tell(zone, now, NGINX)
    assert zone.uses(2 * GONE + TAKEN)[FIRST] is Use.EJECTED


def test_answers_are_counted_by_what_they_say_of_the_pool() -> None:
    zone = Zone(NAME, FOUR, 1.0)
    tell(zone, 0.0, kinds=(Kind.A, Kind.AAAA, Kind.SRV))
    assert zone.asked == 3


@given(st.lists(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)), min_size=1, max_size=20, unique=True))
def test_each_address_has_a_label_of_its_own(addresses: list[object]) -> None:
    endpoints = [f"[{address}]:80" if ":" in str(address) else f"{address}:80" for address in addresses]
    targets = [target(endpoint) for endpoint in endpoints]
    assert len({found.label for found in targets}) == len(targets)
    assert all(len(found.label) <= 63 and found.label.strip("-") == found.label for found in targets)
    assert [str(found.address) for found in targets] == [str(address) for address in addresses]
