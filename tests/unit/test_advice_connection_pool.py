# SPDX-License-Identifier: Apache-2.0
"""What a pool's rule allows, beside what services do."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.picture import endpoint, program, view, window
from tidegate.advice import advise
from tidegate.model.finding import Finding
from tidegate.model.limits import Advice, Residency
from tidegate.model.outliers import ConnectionPool, Member, Policy
from tidegate.model.snapshot import EndpointRow

pytestmark = pytest.mark.unit
A, B = "10.0.0.6:5000", "10.0.0.7:5000"
STORY = ConnectionPool(max_connections=100, max_requests_per_connection=10)


def judged(*rows: EndpointRow, limits: ConnectionPool | None = STORY, **parts: Any) -> tuple[Finding, ...]:
    pools = {"inventory": Member(Policy(), (A, B), limits)}
    return advise(window(view(rows, **parts)), Advice(), Residency(), pools)


def test_more_connections_than_the_rule_allows() -> None:
    rows = [endpoint(at, established=60, connects=0, ended=0, exchanges=0) for at in (A, B)]
    (finding,) = judged(*rows, resources=[program("nginx", "1.22.1")])
    assert finding.subject == "shop.service -> inventory: max_connections"
    assert (finding.evidence["open"], finding.evidence["max_connections"]) == (120, 100)
    assert (finding.remedies[0].lines, finding.endpoints) == (("max_conns=100",), (A, B))
    assert judged(*[endpoint(at, established=50, connects=0, ended=0, exchanges=0) for at in (A, B)]) == ()


def test_more_requests_on_a_connection_than_the_rule_allows() -> None:
    (finding,) = judged(endpoint(A, connects=10, established=10, ended=5, exchanges=101))
    assert finding.subject == "shop.service -> inventory: max_requests_per_connection"
    assert "101 in 10 s, where all connections together may carry 100" in finding.summary
    assert finding.remedies[0].lines == ("keepalive_requests 10;",)
    assert judged(endpoint(A, connects=10, established=10, ended=5, exchanges=100)) == ()


def test_a_limit_that_is_kept_is_churn() -> None:
    (finding,) = judged(endpoint(A, connects=1000, exchanges=9900))
    assert finding.subject == "shop.service -> inventory: churn"
    assert finding.evidence["connects_per_second"] == 100.0
    # As rare, or closed for another reason.
    assert judged(endpoint(A, connects=90, exchanges=900)) == ()
    assert judged(endpoint(A, connects=1000, exchanges=5000)) == ()


def test_one_request_a_connection_by_the_rule_is_not_for_want_of_keepalive() -> None:
    (finding,) = judged(endpoint(A, connects=200), limits=ConnectionPool(max_requests_per_connection=1))
    assert (finding.id, finding.evidence["explains"]) == ("connection_pool", "missing_keepalive")


def test_other_endpoints_and_pools_without_limits_are_left_alone() -> None:
    many: dict[str, Any] = {"established": 500, "connects": 0, "ended": 0, "exchanges": 90_000}
    assert judged(endpoint("10.0.0.9:1", **many)) == ()
    assert judged(endpoint(A, **many), limits=None) == ()
    assert judged(endpoint(A, **many), limits=ConnectionPool()) == ()
