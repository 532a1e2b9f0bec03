# SPDX-License-Identifier: Apache-2.0
"""Sums by place."""

from __future__ import annotations

import msgspec
import pytest

from tests.unit.test_outputs import view
from tidegate.model.fields import Role
from tidegate.model.snapshot import EndpointRow
from tidegate.rates.locations import location_rows

pytestmark = pytest.mark.unit


def row(
    service: str, location: str, exchanges: int, rtt_min: float | None, role: Role = Role.CLIENT
) -> EndpointRow:
    (made, *_) = view(service).endpoints
    return msgspec.structs.replace(
        made,
        role=role,
        location=location,
        exchanges=exchanges,
        exchange_rate=exchanges / 10,
        rtt_min=rtt_min,
        sent_bytes=100,
    )


def test_twenty_calls_of_25_ms_are_half_a_second() -> None:
    (found,) = location_rows([row("shop", "sydney", 200, 0.025)])
    assert (found.exchange_rate, found.rtt_min) == (20.0, 0.025)
    assert found.waiting == pytest.approx(0.5)


def test_places_are_summed_by_service_and_their_round_trips_weighed() -> None:
    rows = [
        row("shop", "sydney", 300, 0.2),
        row("shop", "sydney", 100, 0.4),
        row("shop", "frankfurt", 10, None),
        row("cart", "sydney", 0, 0.3),
        row("shop", "", 5, 0.1),
        row("shop", "sydney", 7, 0.1, Role.SERVER),
    ]
    found = {(r.service, r.location): r for r in location_rows(rows)}
    assert list(found) == [("cart", "sydney"), ("shop", "frankfurt"), ("shop", "sydney")]
    sydney = found["shop", "sydney"]
    assert (sydney.endpoints, sydney.exchanges, sydney.sent_bytes) == (2, 400, 200)
    assert sydney.rtt_min == pytest.approx(0.25)
    assert sydney.waiting == pytest.approx(40 * 0.25)
    assert (found["shop", "frankfurt"].rtt_min, found["shop", "frankfurt"].waiting) == (None, None)
    assert (found["cart", "sydney"].rtt_min, found["cart", "sydney"].waiting) == (0.3, 0.0)
