# SPDX-License-Identifier: Apache-2.0
"""Packets of a capture file (pcap, pcapng) as Ethernet frames, with their time and their length on the wire."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tidegate.errors import TidegateError

_MAGIC = {0xA1B2C3D4: 10**6, 0xA1B23C4D: 10**9}  # units of the fraction of a second
_SECTION, _INTERFACE, _SIMPLE, _ENHANCED = 0x0A0D0D0A, 1, 3, 6
_BYTE_ORDER = 0x1A2B3C4D
_LARGEST = 1 << 20
_IPV4, _IPV6 = b"\x08\x00", b"\x86\xdd"
_ADDRESSES = bytes(12)
#: https://www.tcpdump.org/linktypes.html
_ETHERNET, _RAW, _SLL, _SLL2 = 1, (12, 101, 228, 229), 113, 276


class Captured(NamedTuple):
    """One packet; ``ns`` since the epoch, ``wire`` its length before it was cut to what was captured."""

    number: int
    ns: int
    frame: bytes
    wire: int


class _Interface(NamedTuple):
    link: int
    unit: Fraction  # ns


def packets(path: Path) -> Iterator[Captured]:
    """Yield the packets of a file; raises TidegateError, with the packet's number, where it is not whole."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            if len(magic) == 4 and int.from_bytes(magic, "little") == _SECTION:
                file.seek(0)
                yield from _pcapng(file, path)
                return
            for order in "<>":
                if len(magic) == 4 and (unit := _MAGIC.get(struct.unpack(f"{order}I", magic)[0])):
                    yield from _pcap(file, path, order, unit)
                    return
    except OSError as error:
        raise TidegateError(f"capture {path}: can't be read: {error.strerror}") from error
    raise TidegateError(f"capture {path}: expected pcap or pcapng, found a file that begins with {magic.hex()}")


def _pcap(file: BinaryIO, path: Path, order: str, unit: int) -> Iterator[Captured]:
    head = _whole(file, 20, f"capture {path}: header")
    link = struct.unpack(f"{order}HHiIII", head)[5] & 0xFFFF
    number = 0
    while head := file.read(16):
        number += 1
        what = f"capture {path}: packet {number}"
        if len(head) < 16:
            raise TidegateError(f"{what}: expected a header of 16 bytes, found {len(head)}: the file is cut off")
        seconds, fraction, size, wire = struct.unpack(f"{order}IIII", head)
        if size > _LARGEST or fraction >= unit:
            raise TidegateError(f"{what}: expected a packet, found length {size}, time {fraction}/{unit}")
        data = _whole(file, size, what)
        ns = seconds * 10**9 + fraction * (10**9 // unit)
        yield _captured(number, ns, data, max(wire, size), link, what)


def _pcapng(file: BinaryIO, path: Path) -> Iterator[Captured]:
    order, number, interfaces = "<", 0, list[_Interface]()
    while head := file.read(8):
        what = f"capture {path}: packet {number + 1}"
        if len(head) < 8:
            raise TidegateError(f"{what}: expected a block, found {len(head)} bytes: the file is cut off")
        if int.from_bytes(head[:4], "little") == _SECTION:
            mark = _whole(file, 4, what)
            order = "<" if int.from_bytes(mark, "little") == _BYTE_ORDER else ">"
            interfaces = []
            body = mark + _whole(file, _size(head, order, what) - 4, what)
            continue
        kind, size = struct.unpack(f"{order}I", head[:4])[0], _size(head, order, what)
        body = _whole(file, size, what)[:-4]
        if kind == _INTERFACE:
            interfaces.append(_interface(body, order, what))
        elif kind in (_ENHANCED, _SIMPLE):
            number += 1
            yield _block(kind, body, order, interfaces, number, what)


def _size(head: bytes, order: str, what: str) -> int:
    """Return how much follows a block's head; that much ends with the size once more."""
    size = int(struct.unpack(f"{order}I", head[4:])[0])
    if size % 4 or not 12 <= size <= _LARGEST:
        raise TidegateError(f"{what}: expected a block, found one of {size} bytes")
    return size - 8


def _interface(body: bytes, order: str, what: str) -> _Interface:
    if len(body) < 8:
        raise TidegateError(f"{what}: expected the block of an interface, found {len(body)} bytes")
    link, unit, at = struct.unpack(f"{order}H", body[:2])[0], Fraction(1000), 8
    while at + 4 <= len(body):
        code, size = struct.unpack(f"{order}HH", body[at : at + 4])
        if code == 9 and size == 1 and at + 4 < len(body):  # if_tsresol
            exponent = body[at + 4]
            base = Fraction(2) if exponent & 0x80 else Fraction(10)
            unit = 10**9 / base ** (exponent & 0x7F)
        if code == 0:
            break
        at += 4 + (size + 3) // 4 * 4
    return _Interface(link, unit)


def _block(kind: int, body: bytes, order: str, interfaces: list[_Interface], number: int, what: str) -> Captured:
    try:
        if kind == _SIMPLE:
            (wire,) = struct.unpack_from(f"{order}I", body)
            return _captured(number, 0, body[4 : 4 + wire], wire, interfaces[0].link, what)
        which, high, low, size, wire = struct.unpack_from(f"{order}5I", body)
        at = interfaces[which]
    except (struct.error, IndexError):
        raise TidegateError(f"{what}: expected a packet of a known interface, found another block") from None
    if size > len(body) - 20:
        raise TidegateError(f"{what}: expected {size} bytes, found {len(body) - 20}")
    ns = int((high << 32 | low) * at.unit)
    return _captured(number, ns, body[20 : 20 + size], max(wire, size), at.link, what)


def _captured(number: int, ns: int, data: bytes, wire: int, link: int, what: str) -> Captured:
    frame = data
    if link in _RAW:
        frame = _ADDRESSES + (_IPV6 if data[:1] and data[0] >> 4 == 6 else _IPV4) + data
    elif link == _SLL:
        frame = _ADDRESSES + data[14:16] + data[16:]
    elif link == _SLL2:
        frame = _ADDRESSES + data[:2] + data[20:]
    elif link != _ETHERNET:
        raise TidegateError(f"{what}: expected Ethernet, raw IP or Linux cooked capture, found link type {link}")
    return Captured(number, ns, frame, max(wire + len(frame) - len(data), len(frame)))


def _whole(file: BinaryIO, size: int, what: str) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise TidegateError(f"{what}: expected {size} bytes, found {len(data)}: the file is cut off")
    return data
