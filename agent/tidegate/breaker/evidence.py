# SPDX-License-Identifier: Apache-2.0
"""Whose failure it is: the table from what the kernel or the proxy saw to the event that follows.

:data:`TABLE` is read from the top; the first row that fits decides. What no row knows is nobody's failure.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

from tidegate.model.breaker import Event, Kind
from tidegate.model.outliers import Policy


class Saw(StrEnum):
    """Where in the life of a connection."""

    CONNECTED = "connected"  # the handshake is done
    CONNECT_ENDED = "connect_ended"  # there will be no connection: an error, or the caller gave up
    ANSWERED = "answered"  # bytes have come back for a request
    WAITING = "waiting"  # a request is out and nothing has come back yet
    CLOSED = "closed"  # an established connection has ended


class Evidence(NamedTuple):
    """One thing that was seen.

    ``error`` is the errno of a connect or a socket, 0 where the caller gave up; ``age`` is in seconds since the
    connect began (or the request, once there is a connection); ``syn_retransmits`` is how often its SYN was sent
    again. ``unanswered`` says that request bytes were sent and none came back, ``unused`` that no byte was ever
    carried. ``status`` is the HTTP status of an answer, None where it can't be read; ``by_proxy`` that the proxy
    itself made it (it is overloaded, or has no upstream). ``by_us`` marks a connect that our own fail-fast
    refused. ``seconds`` is how long the answer took, ``attempt`` the socket's cookie.
    """

    pool: str
    endpoint: str
    saw: Saw
    error: int = 0
    age: float | None = None
    syn_retransmits: int = 0
    unanswered: bool = False
    unused: bool = False
    status: int | None = None
    by_proxy: bool = False
    by_us: bool = False
    seconds: float | None = None
    attempt: int | None = None


class Row(NamedTuple):
    """One row of the table: its name, when it fits, and what follows; None: nobody is charged."""

    name: str
    fits: Callable[[Evidence, Policy], bool]
    kind: Kind | None


#: Errors that this node makes by itself.
_OWN = frozenset(
    (
        errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM,
        errno.EPERM, errno.EACCES, errno.EINVAL, errno.EAFNOSUPPORT, errno.ENETDOWN,
    )
)  # fmt: skip
_UNREACHABLE = frozenset((errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENONET))
_LOST = _UNREACHABLE | {errno.ETIMEDOUT}


def _ended(*errors: int) -> Callable[[Evidence, Policy], bool]:
    return lambda seen, _: seen.saw is Saw.CONNECT_ENDED and seen.error in errors


def _is(saw: Saw) -> Callable[[Evidence, Policy], bool]:
    return lambda seen, _: seen.saw is saw


def _gave_up_late(seen: Evidence, policy: Policy) -> bool:
    """Whether the caller gave up a connect that hung: its SYN was sent again, or it was long enough under way."""
    if seen.saw is not Saw.CONNECT_ENDED or seen.error:
        return False
    return seen.syn_retransmits > 0 or (seen.age is not None and seen.age >= policy.connect_timeout)


def _waited_too_long(seen: Evidence, policy: Policy) -> bool:
    """Whether a request is out for response_timeout, still or until the caller closed."""
    if policy.response_timeout is None or seen.age is None or seen.age < policy.response_timeout:
        return False
    return seen.saw is Saw.WAITING or (seen.saw is Saw.CLOSED and seen.unanswered and not seen.error)


def _reset(seen: Evidence, _: Policy) -> bool:
    owed = seen.unanswered or seen.unused
    return seen.saw is Saw.CLOSED and owed and seen.error in (errno.ECONNRESET, errno.EPIPE)


def _lost(seen: Evidence, _: Policy) -> bool:
    return seen.saw is Saw.CLOSED and seen.unanswered and seen.error in _LOST


TABLE = (
    Row("refused_by_fail_fast", lambda seen, _: seen.by_us, None),
    Row("own_error", lambda seen, _: seen.error in _OWN, Kind.LOCAL_FAULT),
    Row("connect_refused", _ended(errno.ECONNREFUSED), Kind.CONNECT_REFUSED),
    Row("connect_timed_out", _ended(errno.ETIMEDOUT), Kind.CONNECT_TIMEOUT),
    Row("connect_unreachable", _ended(*_UNREACHABLE), Kind.CONNECT_UNREACHABLE),
    Row("connect_reset", _ended(errno.ECONNRESET), Kind.RESET),
    Row("connect_given_up_late", _gave_up_late, Kind.CONNECT_TIMEOUT),
    Row("connect_given_up_early", _ended(0), None),
    Row("connected", _is(Saw.CONNECTED), Kind.CONNECT_OK),
    Row("answer_of_the_proxy", lambda seen, _: seen.saw is Saw.ANSWERED and seen.by_proxy, None),
    Row("answer_with_status", lambda seen, _: seen.saw is Saw.ANSWERED and seen.status is not None, Kind.HTTP),
    Row("answer_without_status", _is(Saw.ANSWERED), Kind.ANSWERED),
    Row("request_unanswered", _waited_too_long, Kind.HTTP_TIMEOUT),
    Row("reset_before_the_answer", _reset, Kind.RESET),
    Row("lost_before_the_answer", _lost, Kind.HTTP_TIMEOUT),
    Row("request_under_way", _is(Saw.WAITING), None),
    Row("closed", _is(Saw.CLOSED), None),
)


class Charge(NamedTuple):
    """What follows, and the row that said so."""

    event: Event | None
    row: str


def event_of(seen: Evidence, policy: Policy, now: float, *, speaks_http: bool = True) -> Charge:
    """Return the event that follows from what was seen, or None where nobody is charged.

    ``speaks_http=False`` is for connections whose answers can't be seen at all: there, a connect that succeeds is
    all that will ever be known of them, and counts as a success also where errors aren't split.
    """
    row = next((row for row in TABLE if row.fits(seen, policy)), None)
    if row is None or row.kind is None:
        return Charge(None, "unknown" if row is None else row.name)
    code = seen.status if row.kind is Kind.HTTP else None
    if row.kind is Kind.CONNECT_OK and not speaks_http:
        code = 200
    event = Event(
        seen.pool,
        seen.endpoint,
        row.kind,
        code=code,
        started=None if seen.age is None else now - seen.age,
        attempt=seen.attempt,
        seconds=seen.seconds if row.kind in (Kind.HTTP, Kind.ANSWERED) else None,
    )
    return Charge(event, row.name)
