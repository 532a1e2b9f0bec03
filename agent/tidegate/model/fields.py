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
    """One measured field of a table's rows.

    ``name`` is the attribute of the row; ``metric`` the Prometheus name without the prefix; ``label`` the extra
    label whose values are the keys of a mapping field, or several where the keys are tuples; ``bounds`` the upper
    bounds of a histogram's buckets in ``unit``, without +Inf. A row that doesn't have the field has None there.
    """

    name: str
    metric: str
    kind: Kind
    unit: str
    help: str
    label: str | tuple[str, ...] | None = None
    bounds: tuple[float, ...] = ()

    @property
    def key_labels(self) -> tuple[str, ...]:
        """The labels of a mapping field's keys."""
        return (self.label,) if isinstance(self.label, str) else self.label or ()


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of one part of the view: ``name`` is the attribute that holds them, with dots where it is deeper.

    It may also hold the only row. ``labels`` are the attributes that tell its rows apart, and the labels of its
    metrics.
    """

    name: str
    labels: tuple[str, ...]
    fields: tuple[Field, ...]
