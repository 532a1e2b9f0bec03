# SPDX-License-Identifier: Apache-2.0
"""What the disk signal measures: where each count stands in a record, and its fields with unit and help."""

from __future__ import annotations

from enum import IntEnum

from tidegate.kernel import layouts
from tidegate.model.fields import Field, Kind, Table
from tidegate.signals.counts import Histogram

OPERATIONS = tuple(o.name.lower() for o in layouts.DiskOperation if o is not layouts.DiskOperation.COUNT)


class Counter(IntEnum):
    """Where each count stands in ``DiskRecord.counters``: as in ``struct disk_counts``."""

    REQUESTS = 0
    ERRORS = 1
    BYTES = 2
    IO_NS = 3
    QUEUE_NS = 4


COUNTERS = Counter.QUEUE_NS + 1

_BOUNDS = tuple(1 << exponent for exponent in (14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 35))  # 16 us to 34 s
IO = Histogram(Counter.IO_NS, layouts.Histogram.DISK_SHIFT, layouts.Histogram.DISK_SLOTS, _BOUNDS)
QUEUE = Histogram(Counter.QUEUE_NS, layouts.Histogram.DISK_SHIFT, layouts.Histogram.DISK_SLOTS, _BOUNDS)
HISTOGRAMS = (IO, QUEUE)

_IO_HELP = "From a request's issue to the device until its end, by request; a device of bios: from its start."


def _counter(name: str, metric: str, unit: str, text: str) -> Field:
    return Field(name=name, metric=metric, kind=Kind.COUNTER, unit=unit, help=text)


def _histogram(name: str, metric: str, text: str) -> Field:
    return Field(name=name, metric=metric, kind=Kind.HISTOGRAM, unit="seconds", help=text, bounds=IO.seconds)


FIELDS = (
    _histogram("io", "disk_io_seconds", _IO_HELP),
    _histogram(
        "queue",
        "disk_queue_seconds",
        "From a request's making until its issue to the device, time in a scheduler included.",
    ),
    _counter(
        "requests",
        "disk_requests_total",
        "requests",
        "Requests that ended, as /proc/diskstats counts them.",
    ),
    _counter(
        "bytes",
        "disk_io_bytes_total",
        "bytes",
        "Bytes of requests that ended.",
    ),
    _counter(
        "errors",
        "disk_errors_total",
        "requests",
        "Requests that ended with an error.",
    ),
    Field(
        name="in_flight",
        metric="disk_in_flight",
        kind=Kind.GAUGE,
        unit="requests",
        help="Requests that the device has and that have not ended.",
    ),
)

SERVICE_FIELDS = (
    _histogram("io", "service_disk_io_seconds", _IO_HELP),
    _counter(
        "bytes",
        "service_disk_io_bytes_total",
        "bytes",
        "Bytes of requests that ended, charged to whose cgroup the request is, write-back included.",
    ),
)

TABLE = Table(name="disks", labels=("device", "operation"), fields=FIELDS)
SERVICE_TABLE = Table(
    name="service_disks", labels=("service", "container", "device", "operation"), fields=SERVICE_FIELDS
)
