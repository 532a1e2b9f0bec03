# SPDX-License-Identifier: Apache-2.0
"""Requests of block devices."""

from __future__ import annotations

import msgspec

from tidegate.model.histogram import Distribution


class DiskRow(msgspec.Struct, frozen=True, kw_only=True):
    """One operation (read, write, flush, discard) of one device.

    ``io`` is the time from the request's issue to the device until its end, ``queue`` from its making until its
    issue, None where the kernel doesn't keep that. ``device`` is the name that lsblk shows; ``rotational`` and
    ``parent`` (the device that this one is a part of or stands on, else empty) help to judge.
    """

    device: str
    operation: str
    io: Distribution
    queue: Distribution | None
    requests: int
    request_rate: float
    bytes: int
    byte_rate: float
    in_flight: int
    errors: int
    rotational: bool | None
    parent: str


class ServiceDiskRow(msgspec.Struct, frozen=True, kw_only=True):
    """What one service has one device do: :class:`DiskRow` divided by whose the requests are, write-back included.

    Over all services they add up to the device's; flushes and what else carries nobody's data are ``kernel``'s.
    """

    service: str
    container: str
    device: str
    operation: str
    io: Distribution
    requests: int
    request_rate: float
    bytes: int
    byte_rate: float
