# SPDX-License-Identifier: Apache-2.0
"""What the breaker shows of pools and their endpoints: fields with unit and help."""

from __future__ import annotations

from tidegate.model.driver import UPDATE_BOUNDS
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
        Field(
            name="heard",
            metric="breaker_heard_answers_total",
            kind=Kind.COUNTER,
            unit="answers",
            help="Answers whose status a proxy told (log, statistics), as the kernel can't read them (TLS).",
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

DRIVERS = Table(
    name="drivers",
    labels=("pool", "driver"),
    fields=(
        Field(
            name="standings",
            metric="pool_driver_state",
            kind=Kind.GAUGE,
            unit="state",
            help="1 for how the driver stands to its proxy: ok, behind (it says something else than it was told), "
            "away (it doesn't answer), starting, off.",
            label="state",
        ),
        Field(
            name="used",
            metric="pool_endpoints",
            kind=Kind.GAUGE,
            unit="endpoints",
            help="Endpoints by how the proxy itself says that it uses them; held: out by its operator, failed: "
            "by its own checks.",
            label="use",
        ),
        Field(
            name="replays",
            metric="pool_replays_total",
            kind=Kind.COUNTER,
            unit="replays",
            help="Times a proxy had forgotten what it was told, and was told again.",
        ),
        Field(
            name="old_workers",
            metric="pool_proxy_old_workers",
            kind=Kind.GAUGE,
            unit="processes",
            help="Workers of before a reload that still have connections (nginx).",
        ),
        Field(
            name="old_worker_bytes",
            metric="pool_proxy_old_worker_bytes",
            kind=Kind.GAUGE,
            unit="bytes",
            help="Their resident memory.",
        ),
    ),
)

UPDATES = Table(
    name="pool_updates",
    labels=("pool", "driver", "result"),
    fields=(
        Field(
            name="count",
            metric="pool_updates_total",
            kind=Kind.COUNTER,
            unit="updates",
            help="Updates of proxies: ok (the proxy says what was asked), unverified (it says something else), "
            "failed, refused (too few endpoints would be left).",
        ),
        Field(
            name="seconds",
            metric="pool_update_seconds",
            kind=Kind.HISTOGRAM,
            unit="seconds",
            help="Time from the breaker's decision until its result was known.",
            bounds=UPDATE_BOUNDS,
        ),
    ),
)

TABLES = (CIRCUITS, POOLS, DRIVERS, UPDATES)
