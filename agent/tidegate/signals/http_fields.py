# SPDX-License-Identifier: Apache-2.0
"""What the HTTP signal measures: where each count stands in a record, and its fields with unit and help."""

from __future__ import annotations

from enum import IntEnum

from tidegate.kernel import layouts
from tidegate.model.fields import Field, Kind
from tidegate.signals.counts import Histogram

#: In the order of ``enum pool_class``.
CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx")


class Counter(IntEnum):
    """Where each count stands in ``Record.counters``: as in ``struct http_counts``."""

    RESPONSES = 0
    RESPONSE_NS = layouts.PoolClass.COUNT


COUNTERS = Counter.RESPONSE_NS + 1

RESPONSE = Histogram(
    Counter.RESPONSE_NS,
    layouts.Histogram.RESPONSE_SHIFT,
    layouts.Histogram.RESPONSE_SLOTS,
    tuple(1 << exponent for exponent in (18, 20, 22, 23, 24, 25, 26, 28, 30, 32, 34)),  # 262 us to 17 s
)
HISTOGRAMS = (RESPONSE,)

FIELDS = (
    Field(
        name="responses",
        metric="http_responses_total",
        kind=Kind.COUNTER,
        unit="responses",
        help="HTTP/1 responses of endpoints of pools, by the class of their status.",
        label="code_class",
    ),
    Field(
        name="response",
        metric="http_response_seconds",
        kind=Kind.HISTOGRAM,
        unit="seconds",
        help="From the first byte of a request to the first byte of its response, of endpoints of pools.",
        bounds=RESPONSE.seconds,
    ),
)
