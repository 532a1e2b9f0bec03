# SPDX-License-Identifier: Apache-2.0
"""DNS messages: a question read, the one answer to it written; bounded work whatever arrives."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

import dnslib

from tidegate.pools.dns_zone import Answer, Asker, Kind, Zone, find

#: The largest question that is read: a name has 255 bytes at most (RFC 1035, 2.3.4), EDNS options few.
LARGEST_QUESTION = 1232
#: What UDP carries without EDNS (RFC 1035, 4.2.1), the most that is sent with it, and what TCP carries.
_PLAIN, _EDNS, _TCP = 512, 1232, 65535
_HEADER = struct.Struct("!6H")
_IN = 1
_NOERROR, _FORMERR, _SERVFAIL, _NOTIMP, _REFUSED, _BADVERS = 0, 1, 2, 4, 5, 16
#: Bytes of an answer's record besides its data, with the owner's name compressed (RFC 1035, 4.1.3 and 4.1.4).
_RECORD = 12


class Reply(NamedTuple):
    """What is sent back: nothing where ``wire`` is empty. ``result`` is one of RESULTS.

    ``holds`` are the endpoints of ``zone`` that the asker has then; None where it says nothing of them.
    """

    wire: bytes
    result: str
    zone: Zone | None = None
    kind: Kind = Kind.A
    holds: frozenset[str] | None = None


RESULTS = ("answered", "truncated", "refused", "malformed")


class _Question(NamedTuple):
    record: dnslib.DNSRecord
    name: str
    edns: dnslib.RR | None


def reply(packet: bytes, zones: Mapping[str, Zone], asker: Asker, now: float, *, tcp: bool = False) -> Reply:
    """Answer a message, whatever it is; responses and what has no header get nothing."""
    if len(packet) < _HEADER.size:
        return Reply(b"", "malformed")
    number, flags, questions, *records = _HEADER.unpack_from(packet)
    if flags >> 15:  # or two servers could answer each other for ever
        return Reply(b"", "malformed")
    if flags >> 11 & 15:
        return Reply(_bare(number, flags, _NOTIMP), "refused")
    # No more than this is handed on: the parser follows chains of names in as many records as a message claims.
    plausible = questions == 1 and records[:2] == [0, 0] and records[2] <= 1 and len(packet) <= LARGEST_QUESTION
    question = _parse(packet) if plausible else None
    if question is None:
        return Reply(_bare(number, flags, _FORMERR), "malformed")
    return _answer(question, zones, asker, now, tcp)


def _parse(packet: bytes) -> _Question | None:
    try:
        record = dnslib.DNSRecord.parse(packet)
        labels = record.q.qname.label
        name = ".".join(label.decode("ascii") for label in labels).lower()
    except (dnslib.DNSError, ValueError, LookupError, RecursionError, struct.error):
        return None
    # A label may have any bytes, but those of our names no dot; a question's name isn't compressed.
    if any(b"." in label or len(label) > 63 for label in labels):
        return None
    if len(name) > min(len(packet) - _HEADER.size, 253):
        return None
    others = [found for found in record.ar if found.rtype != dnslib.QTYPE.OPT]
    return None if others else _Question(record, name, record.ar[0] if record.ar else None)


def _answer(question: _Question, zones: Mapping[str, Zone], asker: Asker, now: float, tcp: bool) -> Reply:
    edns = question.edns
    largest = _TCP if tcp else _PLAIN if edns is None else min(max(edns.edns_len, _PLAIN), _EDNS)
    if edns is not None and edns.edns_ver:
        return Reply(_packed(question, _BADVERS), "refused")
    asked = question.record.q
    found = find(zones, question.name) if asked.qclass == _IN else None
    answer = found and found[0].answer(found[1], asked.qtype, asker, now)
    if not found or answer is None:
        # REFUSED, also for a name below ours: at NXDOMAIN nginx drops all servers, else it keeps what it has.
        return Reply(_packed(question, _REFUSED), "refused")
    zone = found[0]
    wire = b"" if _least(answer, zone) > largest else _packed(question, _NOERROR, _records(question, answer, zone))
    if not wire or len(wire) > largest:
        return _too_large(question, tcp)
    if answer.holds is None:
        return Reply(wire, "answered")
    return Reply(wire, "answered", zone, Kind(asked.qtype), answer.holds)


def _least(answer: Answer, zone: Zone) -> int:
    """Return how many bytes an answer has at least, before it is written."""
    services = sum(8 + len(label) + len(zone.name) for _, label in answer.services)
    return _RECORD * (len(answer.addresses) + len(answer.services)) + services + 4 * len(answer.addresses)


def _records(question: _Question, answer: Answer, zone: Zone) -> list[dnslib.RR]:
    owner, ttl = question.record.q.qname, round(zone.ttl)
    records = []
    for address in answer.addresses:
        make, kind = (dnslib.A, Kind.A) if address.version == 4 else (dnslib.AAAA, Kind.AAAA)
        records.append(dnslib.RR(owner, kind, ttl=ttl, rdata=make(tuple(address.packed))))
    for port, label in answer.services:
        # nginx has a weight of 0 count as none at all.
        service = dnslib.SRV(0, 1, port, dnslib.DNSLabel(f"{label}.{zone.name}"))
        records.append(dnslib.RR(owner, Kind.SRV, ttl=ttl, rdata=service))
    return records


def _packed(question: _Question, code: int, records: list[dnslib.RR] | None = None, *, cut: bool = False) -> bytes:
    asked = question.record.header
    # nginx takes no answer in which any of Z, AD and CD is set.
    header = dnslib.DNSHeader(id=asked.id, bitmap=0, qr=1, aa=int(code != _REFUSED), tc=int(cut), rd=asked.rd)
    header.rcode = code & 15
    made = dnslib.DNSRecord(header, questions=[question.record.q], rr=records or [])
    if question.edns is not None:
        made.add_ar(dnslib.EDNS0(udp_len=_EDNS, ext_rcode=code >> 4))
    return bytes(made.pack())


def _too_large(question: _Question, tcp: bool) -> Reply:
    """Ask for TCP; at a pool that even TCP can't carry nginx keeps what it has."""
    if tcp:
        return Reply(_packed(question, _SERVFAIL), "refused")
    return Reply(_packed(question, _NOERROR, cut=True), "truncated")


def _bare(number: int, flags: int, code: int) -> bytes:
    """Return a header alone, with the question's number and its wish for recursion."""
    return _HEADER.pack(number, 0x8000 | flags & 0x7900 | code, 0, 0, 0, 0)
