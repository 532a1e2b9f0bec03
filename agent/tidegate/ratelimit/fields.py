# SPDX-License-Identifier: Apache-2.0
"""What the limiter counts at each interface: its fields with unit and help."""

from __future__ import annotations

from tidegate.model.fields import Field, Kind, Table

_BY = ("verdict", "reason")

TABLE = Table(
    name="limiter.interfaces",
    labels=("interface",),
    fields=(
        Field(
            name="packets",
            metric="ratelimit_packets_total",
            kind=Kind.COUNTER,
            unit="packets",
            help="Packets that arrived, by what the limiter did with them and why; would_drop in monitor mode.",
            label=_BY,
        ),
        Field(
            name="bytes",
            metric="ratelimit_bytes_total",
            kind=Kind.COUNTER,
            unit="bytes",
            help="Bytes of these packets, with their Ethernet header.",
            label=_BY,
        ),
        Field(
            name="sources",
            metric="ratelimit_sources",
            kind=Kind.GAUGE,
            unit="sources",
            help="Sources that have a bucket, counted now and then; of all interfaces together.",
        ),
        Field(
            name="mode",
            metric="ratelimit_mode",
            kind=Kind.GAUGE,
            unit="mode",
            help="0 off, 1 monitor, 2 enforce.",
        ),
    ),
)
