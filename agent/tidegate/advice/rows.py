# SPDX-License-Identifier: Apache-2.0
"""How findings choose and name rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from tidegate.model.fields import Role
from tidegate.model.snapshot import EndpointRow, View
from tidegate.model.window import ENDPOINTS, EndpointCounts, Window

#: Sums of what has no row of its own, and of what belongs to nobody: no one could act on them.
_NOBODY = ("other", "unknown", "kernel")


class Named(Protocol):
    """A row that belongs to a service."""

    @property
    def service(self) -> str:
        """The service's name."""

    @property
    def container(self) -> str:
        """The container's name, empty outside of pods."""


def name_of(row: Named) -> str:
    """Return how a finding calls whose row it is."""
    return f"{row.service}/{row.container}" if row.container else row.service


def clients(view: View) -> Iterator[EndpointRow]:
    """Yield the rows of services that call an endpoint, without the sums of the rest."""
    for row in view.endpoints:
        if row.role is Role.CLIENT and row.endpoint != "other" and row.service not in _NOBODY:
            yield row


class Called(NamedTuple):
    """An endpoint with the rows of all services that call it, and what was added to each."""

    endpoint: str
    rows: list[tuple[EndpointRow, EndpointCounts]]

    @property
    def services(self) -> tuple[str, ...]:
        """Who calls it."""
        return tuple(sorted({name_of(row) for row, _ in self.rows}))

    def total(self, count: str) -> float:
        """Return the sum of one count."""
        return float(sum(getattr(added, count) for _, added in self.rows))

    def sum(self, count: str) -> int:
        """Return the same as a whole number."""
        return int(self.total(count))


def called(window: Window) -> list[Called]:
    """Return the endpoints that were called, by whoever it was; the same list to all who ask of a window."""
    return window.once("called", _called)


def _called(window: Window) -> list[Called]:
    found: dict[str, Called] = {}
    for row in clients(window.now):
        added = window.added(ENDPOINTS, row)
        if added.connects or added.ended or added.sent_bytes:
            found.setdefault(row.endpoint, Called(row.endpoint, [])).rows.append((row, added))
    return list(found.values())
