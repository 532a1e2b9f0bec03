# SPDX-License-Identifier: Apache-2.0
"""nginx's log lines on its upstreams, as tries and as events; pure.

The format is ``'$upstream_addr $upstream_status $upstream_connect_time $upstream_header_time'``, a line for each
request. Several tries of one request are joined by ", ", or by " : " where nginx redirected it internally
(ngx_http_upstream_addr_variable), so all four values have as many parts, joined alike. Nothing that a client sends
is among them. What asks an upstream besides the request itself (auth_request, mirror) is written with
``log_subrequest on`` only.
"""

from __future__ import annotations

import functools
import re
from enum import StrEnum
from typing import NamedTuple

from tidegate.config import units
from tidegate.feeds.nginx import HEADER
from tidegate.model.breaker import Event, Kind

#: Longer lines are refused: a request that tries so many endpoints says nothing of one of them.
LONGEST = 16 * 1024


class Passed(StrEnum):
    """Why a datagram is no try."""

    NO_UPSTREAM = "no_upstream"  # nginx answered by itself, or from its cache
    MALFORMED = "malformed"


class Failed(StrEnum):
    """Why a try has no answer of its endpoint."""

    NOT_ASKED = "not_asked"  # nginx had no server left
    NOT_CONNECTED = "not_connected"  # no connection, or no TLS on it
    BROKEN = "broken"  # it ended without an answer, or the answer made no sense
    TIMED_OUT = "timed_out"  # nginx waited too long for the answer
    GIVEN_UP = "given_up"  # the client went first


class Try(NamedTuple):
    """One request to one endpoint.

    ``endpoint`` is ADDRESS:PORT as the config writes it; else what nginx has written: ``unix:`` and a path, or the
    upstream's name where it had no server to ask. ``status`` is the answer's, or what nginx made of there being
    none, and then ``failed`` says why. ``connected`` and ``answered`` are the seconds from its begin to the
    connection (TLS included) and to the answer's header, None without. ``began`` is the latest monotonic time at
    which it can have begun.
    """

    endpoint: str
    status: int | None
    connected: float | None
    answered: float | None
    failed: Failed | None
    began: float


_JOINED = rb"%b(?:(?:, | : )%b)*(?: : )?"  # the last is of a redirect that came to no try
_PEERS, _STATUSES, _TIMES = (
    _JOINED % (one, one) for one in (rb"[^\s,]*+", rb"(?:\d{3}|-)", rb"(?:\d{1,9}\.\d{3}|-)")
)
_LINE = re.compile(rb"(%b) (%b) (%b) (%b)" % (_PEERS, _STATUSES, _TIMES, _TIMES), re.ASCII)
_JOIN = re.compile(rb"(, | : )")
_ABSENT = b"- - - -"


def parse(datagram: bytes, now: float) -> tuple[Try, ...] | Passed:
    """Return the tries that a datagram tells of, in their order, at ``now``; never raises."""
    header = HEADER.match(datagram)
    if header is None or len(datagram) > LONGEST:
        return Passed.MALFORMED
    line = datagram[header.end() :].rstrip(b"\n\0")
    if line == _ABSENT:
        return Passed.NO_UPSTREAM
    found = _LINE.fullmatch(line)
    if found is None:
        return Passed.MALFORMED
    peers, statuses, connects, answers = (_JOIN.split(value) for value in found.groups())
    if not peers[1::2] == statuses[1::2] == connects[1::2] == answers[1::2]:
        return Passed.MALFORMED
    tries: list[Try] = []
    # The line is written after the last one has ended.
    for values in zip(peers[::-2], statuses[::-2], connects[::-2], answers[::-2], strict=True):
        one = _try(*values, now)
        if one is not None:
            tries.append(one)
            now = one.began
    return tuple(reversed(tries)) or Passed.NO_UPSTREAM


def _try(peer: bytes, status: bytes, connect: bytes, answer: bytes, ended: float) -> Try | None:
    """Return a try that had ended then; None where there was none, as after a redirect."""
    if not peer and status in (b"", b"-"):
        return None
    endpoint, is_asked = _endpoint(peer)
    code = int(status) if status.isdigit() else None
    connected, answered = _seconds(connect), _seconds(answer)
    failed = None if code is not None and answered is not None else _failed(code, connected, is_asked)
    return Try(endpoint, code, connected, answered, failed, ended - (answered or connected or 0.0))


@functools.lru_cache(maxsize=4096)
def _endpoint(peer: bytes) -> tuple[str, bool]:
    """Return the endpoint and whether there is one; remembered, as it costs more than all else of a line."""
    text = peer.decode("ascii", "backslashreplace")
    try:
        return units.endpoint(text), True
    except ValueError:
        return text, text.startswith("unix:")


def _failed(status: int | None, connected: float | None, is_asked: bool) -> Failed:
    if not is_asked:
        return Failed.NOT_ASKED
    if status not in (502, 504):
        return Failed.GIVEN_UP
    if connected is None:
        return Failed.NOT_CONNECTED
    return Failed.BROKEN if status == 502 else Failed.TIMED_OUT


def _seconds(text: bytes) -> float | None:
    return None if text in (b"", b"-") else float(text)


def events_of(tried: Try, pool: str, *, timeouts: bool = False) -> tuple[Event, ...]:
    """Return what a try means for its endpoint in ``pool``: an answer with its status, or nothing.

    What failed without an answer the kernel sees exactly, and tells once; here it is passed over, or it would be
    charged twice. The kernel calls a wait too long only where the pool has a response_timeout: for one without,
    ``timeouts`` makes events of the requests that nginx gave up.
    """
    if tried.failed is None:
        return (
            Event(pool, tried.endpoint, Kind.HTTP, code=tried.status, started=tried.began, seconds=tried.answered),
        )
    if timeouts and tried.failed is Failed.TIMED_OUT:
        return (Event(pool, tried.endpoint, Kind.HTTP_TIMEOUT, code=tried.status, started=tried.began),)
    return ()
