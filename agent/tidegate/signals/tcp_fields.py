# SPDX-License-Identifier: Apache-2.0
"""What the TCP signal measures: where each count stands in a record, and its fields with unit and help."""

from __future__ import annotations

from enum import IntEnum

from tidegate.kernel import layouts
from tidegate.model.fields import Field, Kind, Table
from tidegate.signals import http_fields
from tidegate.signals.counts import Histogram

FAILURES = tuple(f.name.lower() for f in layouts.TcpFailure if f is not layouts.TcpFailure.COUNT)
CLOSERS = tuple(c.name.lower() for c in layouts.TcpCloser if c is not layouts.TcpCloser.COUNT)
RETRANSMITS = tuple(r.name.lower() for r in layouts.TcpRetransmit if r is not layouts.TcpRetransmit.COUNT)
RESETS = tuple(r.name.lower() for r in layouts.TcpReset if r is not layouts.TcpReset.COUNT)


class Counter(IntEnum):
    """Where each count stands in ``Record.counters``: as in ``struct tcp_counts``, arrays element by element."""

    CONNECTS = 0
    ESTABLISHED = 1
    ADOPTED = 2
    CLOSED = 3
    FAILURES = 4
    CLOSES = FAILURES + layouts.TcpFailure.COUNT
    RETRANSMITS = CLOSES + layouts.TcpCloser.COUNT
    RESETS = RETRANSMITS + layouts.TcpRetransmit.COUNT
    SENT_BYTES = RESETS + layouts.TcpReset.COUNT
    RECEIVED_BYTES = SENT_BYTES + 1
    SEGMENTS_SENT = SENT_BYTES + 2
    SEGMENTS_RECEIVED = SENT_BYTES + 3
    EXCHANGES = SENT_BYTES + 4
    HANDSHAKE_NS = SENT_BYTES + 5
    DURATION_NS = SENT_BYTES + 6
    RTT_NS = SENT_BYTES + 7


COUNTERS = Counter.RTT_NS + 1

HANDSHAKE = Histogram(
    Counter.HANDSHAKE_NS,
    layouts.Histogram.HANDSHAKE_SHIFT,
    layouts.Histogram.HANDSHAKE_SLOTS,
    tuple(1 << exponent for exponent in range(16, 38, 2)),  # 66 us to 69 s
)
DURATION = Histogram(
    Counter.DURATION_NS,
    layouts.Histogram.DURATION_SHIFT,
    layouts.Histogram.DURATION_SLOTS,
    tuple(1 << exponent for exponent in (*range(20, 45, 3), 46)),  # 1 ms to 19.5 hours
)
RTT = Histogram(
    Counter.RTT_NS,
    layouts.Histogram.RTT_SHIFT,
    layouts.Histogram.RTT_SLOTS,
    tuple(1 << exponent for exponent in (14, 16, 18, 20, 22, 23, 24, 25, 26, 28, 30)),  # 16 us to 1 s
)
HISTOGRAMS = (HANDSHAKE, DURATION, RTT)


def _counter(name: str, metric: str, unit: str, text: str, label: str | None = None) -> Field:
    return Field(name=name, metric=metric, kind=Kind.COUNTER, unit=unit, help=text, label=label)


def _histogram(name: str, metric: str, histogram: Histogram, text: str) -> Field:
    return Field(
        name=name, metric=metric, kind=Kind.HISTOGRAM, unit="seconds", help=text, bounds=histogram.seconds
    )


FIELDS = (
    _counter(
        "connects",
        "tcp_connects_total",
        "connections",
        "Connections that the service began to open (SYN to be sent).",
    ),
    _counter(
        "accepts",
        "tcp_accepts_total",
        "connections",
        "Connections that clients opened to a port of the service.",
    ),
    _counter(
        "established",
        "tcp_connections_established_total",
        "connections",
        "Connections whose handshake was completed.",
    ),
    _counter(
        "failures",
        "tcp_connect_failures_total",
        "connections",
        "Connections that came to nothing, by reason; reset: established, then reset by the peer before it had "
        "sent a byte.",
        label="reason",
    ),
    Field(
        name="open",
        metric="tcp_open_connections",
        kind=Kind.GAUGE,
        unit="connections",
        help="Established connections that neither the service has closed nor its peer has ended, those from "
        "before the agent's start included.",
    ),
    _counter(
        "closes",
        "tcp_closes_total",
        "connections",
        "Connections that one side began to close, by who was first: local (the service, whose port then waits "
        "in TIME_WAIT unless it was a reset), remote, or timeout (the kernel gave up on a silent peer).",
        label="by",
    ),
    _histogram(
        "handshake",
        "tcp_handshake_seconds",
        HANDSHAKE,
        "From the first SYN to the established connection, retransmits included.",
    ),
    _histogram(
        "duration",
        "tcp_connection_duration_seconds",
        DURATION,
        "From the established connection until the service has closed it or it has ended.",
    ),
    _histogram(
        "rtt",
        "tcp_rtt_seconds",
        RTT,
        "Smoothed round-trip time, one sample at each read for each connection that received something, and one "
        "at its end.",
    ),
    Field(
        name="rtt_min",
        metric="tcp_rtt_min_seconds",
        kind=Kind.GAUGE,
        unit="seconds",
        help="Shortest round-trip time of the last five minutes, of the connections that last received something.",
    ),
    _counter(
        "exchanges",
        "tcp_exchanges_total",
        "exchanges",
        "Requests with their responses, at most: of each connection the smaller of the data segments sent and "
        "received.",
    ),
    _counter(
        "sent_bytes",
        "tcp_sent_bytes_total",
        "bytes",
        "Payload that was sent, without what was sent again.",
    ),
    _counter(
        "received_bytes",
        "tcp_received_bytes_total",
        "bytes",
        "Payload that was received in order.",
    ),
    _counter(
        "segments_sent",
        "tcp_segments_sent_total",
        "segments",
        "Segments that established or opening connections sent, retransmits and pure acknowledgements included.",
    ),
    _counter(
        "segments_received",
        "tcp_segments_received_total",
        "segments",
        "Segments that such connections received.",
    ),
    _counter(
        "retransmits",
        "tcp_retransmits_total",
        "segments",
        "Segments that were sent again, as RetransSegs of the kernel counts them, by what made the kernel do it.",
        label="kind",
    ),
    _counter(
        "resets",
        "tcp_resets_total",
        "resets",
        "Connections that were reset and segments that were answered by a reset, by direction.",
        label="direction",
    ),
)

TABLE = Table(
    name="endpoints",
    labels=("service", "container", "role", "endpoint", "name"),
    fields=FIELDS + http_fields.FIELDS,
)

#: Of sums over rows that may be folded no counter is exported: it could go back.
LOCATIONS = Table(
    name="locations",
    labels=("service", "container", "location"),
    fields=(
        Field(
            name="rtt_min",
            metric="location_rtt_min_seconds",
            kind=Kind.GAUGE,
            unit="seconds",
            help="Shortest round-trip time to the endpoints of a configured place, weighed by exchanges.",
        ),
        Field(
            name="waiting",
            metric="location_waiting",
            kind=Kind.GAUGE,
            unit="callers",
            help="Callers that wait for round trips to a configured place at a time: exchanges a second times the "
            "shortest round trip.",
        ),
    ),
)
