# SPDX-License-Identifier: Apache-2.0
"""What the breaker shows of pools and their endpoints: fields with unit and help."""

from __future__ import annotations

from tidegate.model.fields import Field, Kind, Table

_BY = ("reason", "enforced")

CIRCUITS = Table(
    name="circuits",
    labels=("pool", "endpoint"),
    fields=(
        Field(
            name="state",
            metric="breaker_state",
            kind=Kind.GAUGE,
            unit="state",
            help="0 closed, 1 open (out), 2 half open.",
        ),
        Field(
            name="ejections",
            metric="breaker_ejections_total",
            kind=Kind.COUNTER,
            unit="ejections",
            help="Ejections by what was detected; enforced false: in monitor mode, or by a detection that isn't "
            "enforced.",
            label=_BY,
        ),
        Field(
            name="overflow",
            metric="breaker_overflow_total",
            kind=Kind.COUNTER,
            unit="ejections",
            help="Ejections that the limits of the pool forbade: max_ejection_percent, min_healthy.",
            label=_BY,
        ),
        Field(
            name="refused",
            metric="breaker_refused_connects_total",
            kind=Kind.COUNTER,
            unit="connections",
            help="Connects of this node that were refused at once, as the endpoint was out (failfast).",
        ),
    ),
)

POOLS = Table(
    name="pools",
    labels=("pool",),
    fields=(
        Field(
            name="active",
            metric="breaker_ejected",
            kind=Kind.GAUGE,
            unit="endpoints",
            help="Endpoints that are out, or would be in monitor mode.",
        ),
        Field(
            name="frozen_by",
            metric="breaker_frozen",
            kind=Kind.GAUGE,
            unit="reason",
            help="1 for each reason why nobody is ejected now: this node's own state.",
            label="reason",
        ),
    ),
)

TABLES = (CIRCUITS, POOLS)
