# SPDX-License-Identifier: Apache-2.0
"""nginx's log lines, as its ``syslog:`` writes them, as events (docs/rate-limit-feed.md); pure.

What a client sends stands in these lines, so each pattern is anchored at the line's beginning and ends before the
first character that a client can choose.
"""

from __future__ import annotations

import re
from enum import StrEnum
from ipaddress import IPv6Address, ip_address

from tidegate.model.feed import Address, Event, Kind


class Passed(StrEnum):
    """Why a datagram is no event."""

    OTHER = "other"  # a line on something else
    DRY_RUN = "dry_run"  # nginx refused nothing
    NO_ADDRESS = "no_address"  # the client is connected by a Unix socket
    BEHIND_PROXY = "behind_proxy"  # the connection is another's than the client's: a ban would miss, or hit all
    MALFORMED = "malformed"


_STATUS = {b"401": Kind.UNAUTHORIZED, b"403": Kind.UNAUTHORIZED, b"429": Kind.TOO_MANY}

#: RFC 3164 as nginx writes it (ngx_syslog_add_header): the host is left out with ``nohostname``.
HEADER = re.compile(
    rb"<\d{1,3}>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d (?:[^\s:]\S* )?[0-9A-Za-z_]{1,32}: ", re.ASCII
)
#: ngx_log_error_core, up to the message.
_ERROR = re.compile(rb"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d \[[a-z]+\] \d+#\d+: (?:\*\d+ )?", re.ASCII)
#: The limiting modules' messages. nginx adds the client itself, and only then what the client has sent.
_LIMITING = re.compile(
    rb"(?:limiting|delaying) (?:requests|connections)(?P<dry>, dry run)?,?(?: excess: \d+\.\d{3},?)?"
    rb' by zone "[^"]*", client: (?P<client>[^,\s]+)(?:,|$)',
    re.ASCII,
)
_LIMITS = (b"limiting requests", b"limiting connections", b"delaying requests")
_QUOTED = rb'"(?:[^"\\]|\\.)*"'
#: ``combined``. A quote within a value is escaped, so the first one begins the request.
_COMBINED = re.compile(
    rb'(?P<client>\S+) - [^"]* \[[^]"]*\] ' + _QUOTED + rb" (?P<status>\d{3}) ", re.ASCII | re.DOTALL
)
#: ``log_format tidegate '$realip_remote_addr $remote_addr $status'``.
_SHORT = re.compile(rb"(?P<connected>\S+) (?P<client>\S+) (?P<status>\d{3})", re.ASCII)


def parse(datagram: bytes, now: float) -> Event | Passed:
    """Return what a datagram says, at ``now``; never raises."""
    header = HEADER.match(datagram)
    if header is None:
        return Passed.MALFORMED
    line = datagram[header.end() :].rstrip(b"\n\0")
    error = _ERROR.match(line)
    if error is not None:
        return _of_error(line[error.end() :], now)
    short = _SHORT.fullmatch(line)
    if short is not None:
        return _of_status(short, now)
    access = _COMBINED.match(line)
    return Passed.MALFORMED if access is None else _of_status(access, now)


def _of_error(message: bytes, now: float) -> Event | Passed:
    if not message.startswith(_LIMITS):
        return Passed.OTHER
    found = _LIMITING.match(message)
    if found is None:
        return Passed.MALFORMED
    if found["dry"] is not None:
        return Passed.DRY_RUN
    address = _address(found["client"])
    return address if isinstance(address, Passed) else Event(now, address, Kind.LIMITED)


def _of_status(line: re.Match[bytes], now: float) -> Event | Passed:
    kind = _STATUS.get(line["status"])
    address = _address(line["client"])
    if isinstance(address, Passed):
        return address
    if "connected" in line.re.groupindex:
        connected = _address(line["connected"])
        if connected != address:
            return connected if isinstance(connected, Passed) else Passed.BEHIND_PROXY
    return Passed.OTHER if kind is None else Event(now, address, kind)


def _address(text: bytes) -> Address | Passed:
    if text.startswith(b"unix:"):
        return Passed.NO_ADDRESS
    try:
        found = ip_address(text.decode("ascii"))
    except ValueError:  # UnicodeDecodeError is one
        return Passed.MALFORMED
    if isinstance(found, IPv6Address):
        if found.scope_id is not None:
            return Passed.MALFORMED  # nginx writes none
        return found.ipv4_mapped or found
    return found
