# SPDX-License-Identifier: Apache-2.0
"""What the limiter counts at each interface and in all, and what came by its feed: fields with unit and help."""

from __future__ import annotations

from tidegate.model.fields import Field, Kind, Table

_BY = ("verdict", "reason")

INTERFACES = Table(
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

LIMITER = Table(
    name="limiter",
    labels=(),
    fields=(
        Field(
            name="bans",
            metric="ratelimit_bans",
            kind=Kind.GAUGE,
            unit="sources",
            help="Sources that are banned.",
        ),
        Field(
            name="guarded",
            metric="ratelimit_guarded_packets_total",
            kind=Kind.COUNTER,
            unit="packets",
            help="Packets of sources for which the tables had no place, judged by the sketch instead.",
        ),
    ),
)

FEED = Table(
    name="limiter.feed",
    labels=("feed",),
    fields=(
        Field(
            name="lines",
            metric="ratelimit_feed_lines_total",
            kind=Kind.COUNTER,
            unit="lines",
            help="Lines of the proxy's log, by what they were.",
            label="line",
        ),
        Field(
            name="bans",
            metric="ratelimit_feed_bans_total",
            kind=Kind.COUNTER,
            unit="bans",
            help="Bans that the proxy's log led to, and what did not lead to one, by why.",
            label="result",
        ),
    ),
)

TABLES = (INTERFACES, LIMITER, FEED)
