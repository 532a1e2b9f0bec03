# SPDX-License-Identifier: Apache-2.0
"""How a signal declares what it measures: each field once, with its unit and its help."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Kind(StrEnum):
    """How a field is read: a total that only grows, a level, or a distribution."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Role(StrEnum):
    """Which side of its connections a row describes."""

    CLIENT = "client"
    SERVER = "server"


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """One measured field of an endpoint row.

    ``name`` is the attribute of :class:`tidegate.model.snapshot.EndpointRow`; ``metric`` the Prometheus name
    without the prefix; ``label`` the extra label whose values are the keys of a mapping field; ``roles`` the
    sides that have the field; ``bounds`` the upper bounds of a histogram's buckets in ``unit``, without +Inf.
    """

    name: str
    metric: str
    kind: Kind
    unit: str
    help: str
    label: str | None = None
    roles: frozenset[Role] = frozenset(Role)
    bounds: tuple[float, ...] = ()
