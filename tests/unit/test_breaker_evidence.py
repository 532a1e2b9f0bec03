# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from tidegate.breaker.evidence import TABLE, Evidence, Saw, event_of
from tidegate.breaker.pool import Pool
from tidegate.model.breaker import Event, Kind
from tidegate.model.outliers import OutlierDetection, Policy

pytestmark = pytest.mark.unit
AT = "10.0.0.6:5000"
POLICY = Policy(response_timeout=2.0)
LONG_POLLS = Policy()
PAGE = Path(__file__).parents[2] / "docs/circuit-breaker.md"


def seen(saw: Saw, **more: Any) -> Evidence:
    return Evidence("p", AT, saw, **more)


ENDED, CLOSED, WAITING = Saw.CONNECT_ENDED, Saw.CLOSED, Saw.WAITING
#: What was seen, the row that decides, and what follows.
CASES: list[tuple[Evidence, str, Kind | None]] = [
    (seen(Saw.CONNECTED, age=0.001), "connected", Kind.CONNECT_OK),
    (seen(ENDED, error=errno.ECONNREFUSED), "connect_refused", Kind.CONNECT_REFUSED),
    (seen(ENDED, error=errno.ECONNREFUSED, by_us=True), "refused_by_fail_fast", None),
    (seen(ENDED, error=errno.EPERM, by_us=True), "refused_by_fail_fast", None),
    (seen(ENDED, error=errno.ETIMEDOUT, age=127.0, syn_retransmits=6), "connect_timed_out", Kind.CONNECT_TIMEOUT),
    (seen(ENDED, error=errno.EHOSTUNREACH), "connect_unreachable", Kind.CONNECT_UNREACHABLE),
    (seen(ENDED, error=errno.ENETUNREACH), "connect_unreachable", Kind.CONNECT_UNREACHABLE),
    (seen(ENDED, error=errno.ECONNRESET), "connect_reset", Kind.RESET),
    # The caller gave up: after the first SYN was sent again, or after connect_timeout.
    (seen(ENDED, age=0.3, syn_retransmits=1), "connect_given_up_late", Kind.CONNECT_TIMEOUT),
    (seen(ENDED, age=1.0), "connect_given_up_late", Kind.CONNECT_TIMEOUT),
    (seen(ENDED, age=0.999), "connect_given_up_early", None),
    (seen(ENDED), "connect_given_up_early", None),
    # Our own.
    (seen(ENDED, error=errno.EADDRNOTAVAIL), "own_error", Kind.LOCAL_FAULT),
    (seen(ENDED, error=errno.EMFILE), "own_error", Kind.LOCAL_FAULT),
    (seen(ENDED, error=errno.EPERM), "own_error", Kind.LOCAL_FAULT),
    (seen(ENDED, error=errno.EADDRNOTAVAIL, age=9.0, syn_retransmits=2), "own_error", Kind.LOCAL_FAULT),
    # Answers.
    (seen(Saw.ANSWERED, status=200), "answer_with_status", Kind.HTTP),
    (seen(Saw.ANSWERED, status=503), "answer_with_status", Kind.HTTP),
    (seen(Saw.ANSWERED, status=503, by_proxy=True), "answer_of_the_proxy", None),
    (seen(Saw.ANSWERED), "answer_without_status", Kind.ANSWERED),
    # Requests without one.
    (seen(WAITING, age=2.0), "request_unanswered", Kind.HTTP_TIMEOUT),
    (seen(WAITING, age=1.9), "request_under_way", None),
    (seen(CLOSED, age=2.5, unanswered=True), "request_unanswered", Kind.HTTP_TIMEOUT),
    (seen(CLOSED, age=1.0, unanswered=True), "closed", None),
    (seen(CLOSED, error=errno.ECONNRESET, unanswered=True, age=0.1), "reset_before_the_answer", Kind.RESET),
    (seen(CLOSED, error=errno.ECONNRESET, unanswered=True, age=9.0), "reset_before_the_answer", Kind.RESET),
    (seen(CLOSED, error=errno.ECONNRESET, unused=True), "reset_before_the_answer", Kind.RESET),
    (seen(CLOSED, error=errno.ETIMEDOUT, unanswered=True, age=9.0), "lost_before_the_answer", Kind.HTTP_TIMEOUT),
    # Idle connections of the proxy's pool.
    (seen(CLOSED), "closed", None),
    (seen(CLOSED, unused=True), "closed", None),
    (seen(CLOSED, age=600.0), "closed", None),
    (seen(CLOSED, error=errno.ECONNRESET, age=600.0), "closed", None),
    (seen(CLOSED, error=errno.ETIMEDOUT, age=600.0), "closed", None),
]


@pytest.mark.parametrize(("evidence", "row", "kind"), CASES, ids=lambda case: getattr(case, "saw", str(case)))
def test_the_table(evidence: Evidence, row: str, kind: Kind | None) -> None:
    event, said = event_of(evidence, POLICY, 1000.0)
    assert said == row
    assert (event and event.kind) == kind
    if event is not None:
        assert (event.pool, event.endpoint, event.code) == ("p", AT, evidence.status)


def test_every_row_has_a_case_and_a_line_in_the_docs() -> None:
    names = [row.name for row in TABLE]
    assert {row for _, row, _ in CASES} == set(names)
    assert len(set(names)) == len(names)
    page = PAGE.read_text(encoding="utf-8")
    assert [name for name in names if f"| `{name}` |" not in page] == []


def test_without_a_response_timeout_nobody_waits_too_long() -> None:
    for saw in (WAITING, CLOSED):
        assert event_of(seen(saw, age=3600.0, unanswered=True), LONG_POLLS, 1e4).event is None


def test_an_error_that_nobody_knows_is_nobodys_failure() -> None:
    assert event_of(seen(ENDED, error=errno.ELOOP), POLICY, 1.0) == (None, "unknown")


def test_what_an_event_carries() -> None:
    charge = event_of(seen(Saw.ANSWERED, status=200, age=0.25, seconds=0.2, attempt=7), POLICY, 100.0)
    assert charge.event == Event("p", AT, Kind.HTTP, code=200, started=99.75, attempt=7, seconds=0.2)
    charge = event_of(seen(ENDED, error=errno.ECONNREFUSED, age=0.5, seconds=9.0, attempt=8), POLICY, 100.0)
    assert charge.event == Event("p", AT, Kind.CONNECT_REFUSED, started=99.5, attempt=8)


def test_a_connect_is_all_that_is_known_of_what_can_not_be_read() -> None:
    """Without split, five refused connects in a year must not eject who has connected in between."""
    plain = OutlierDetection(split_external_local_origin_errors=False, max_ejection_percent=100)
    of = Pool("p", Policy(min_healthy=0, outlier_detection=plain), [AT], 0.0)
    for speaks_http, ejected in ((False, False), (True, True)):
        for _ in range(5):
            for evidence in (seen(Saw.CONNECTED), seen(ENDED, error=errno.ECONNREFUSED)):
                event = event_of(evidence, POLICY, 1.0, speaks_http=speaks_http).event
                assert event is not None
                of.observe(event, 1.0)
        assert (of.row().active == 1) is ejected


def test_a_reset_and_a_failed_connect_of_one_attempt_are_one_failure() -> None:
    of = Pool("p", Policy(min_healthy=0), [AT], 0.0)
    for error in (errno.ECONNRESET, errno.ECONNREFUSED, errno.ETIMEDOUT):
        event = event_of(seen(ENDED, error=error, attempt=1), POLICY, 1.0).event
        assert event is not None
        of.observe(event, 1.0)
    assert (of.row().endpoints[0].consecutive_local_origin_failure, of.duplicates) == (1, 2)
