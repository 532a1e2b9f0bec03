# SPDX-License-Identifier: Apache-2.0
"""Endpoint rows become sums by place."""

from __future__ import annotations

from collections.abc import Iterable

from tidegate.model.fields import Role
from tidegate.model.snapshot import EndpointRow, LocationRow


def location_rows(endpoints: Iterable[EndpointRow]) -> tuple[LocationRow, ...]:
    """Sum what clients do by service and place, in a fixed order; endpoints without a place are left out."""
    places: dict[tuple[str, str, str], list[EndpointRow]] = {}
    for row in endpoints:
        if row.location and row.role is Role.CLIENT:
            places.setdefault((row.service, row.container, row.location), []).append(row)
    return tuple(_row(*key, places[key]) for key in sorted(places))


def _row(service: str, container: str, location: str, rows: list[EndpointRow]) -> LocationRow:
    measured = [(row, row.rtt_min) for row in rows if row.rtt_min is not None]
    exchanges = sum(row.exchanges for row, _ in measured)
    rate = sum(row.exchange_rate for row in rows)
    rtt = None
    if exchanges:
        rtt = sum(row.exchanges * rtt_min for row, rtt_min in measured) / exchanges
    elif measured:
        rtt = min(rtt_min for _, rtt_min in measured)
    return LocationRow(
        service=service,
        container=container,
        location=location,
        endpoints=len(rows),
        exchanges=sum(row.exchanges for row in rows),
        exchange_rate=rate,
        rtt_min=rtt,
        waiting=None if rtt is None else rate * rtt,
        sent_bytes=sum(row.sent_bytes for row in rows),
        sent_rate=sum(row.sent_rate for row in rows),
        received_bytes=sum(row.received_bytes for row in rows),
        received_rate=sum(row.received_rate for row in rows),
    )
