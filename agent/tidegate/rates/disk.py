# SPDX-License-Identifier: Apache-2.0
"""Requests of two samples become the rows of disks and of what services do to them."""

from __future__ import annotations

from collections.abc import Mapping

from tidegate.disks.totals import DeviceKey, DiskSample, ServiceDiskKey
from tidegate.identity.devices import Device
from tidegate.model.disk import DiskRow, ServiceDiskRow
from tidegate.rates.change import RowChange
from tidegate.signals.disk_fields import COUNTERS, HISTOGRAMS, IO, QUEUE, Counter
from tidegate.totals import Row

_EMPTY = Row((0,) * COUNTERS, ({},) * len(HISTOGRAMS))
_NOWHERE = Device("")


class DiskChange(RowChange):
    """Requests at the begin and at the end of an interval."""

    declared = HISTOGRAMS


class DiskRates:
    """Builds the rows of one sample after the other; what has not changed for two of them is not built again."""

    def __init__(self) -> None:
        self._before = DiskSample({}, {})
        self._idle: dict[ServiceDiskKey, ServiceDiskRow] = {}

    def begin_at(self, before: DiskSample) -> None:
        """Take this for the sample before: the same totals, but in other rows, which is no request."""
        self._before, self._idle = before, {}

    def rows(
        self,
        now: DiskSample,
        in_flight: Mapping[DeviceKey, int],
        known: Mapping[str, Device],
        interval: float,
    ) -> tuple[tuple[DiskRow, ...], tuple[ServiceDiskRow, ...]]:
        """Build the rows of the ``interval`` seconds since the sample before, at first since everything was 0.

        A device that has requests has a row, also where none has ended yet. ``known`` are devices by their names.
        """
        before, self._before = self._before, now
        disks = tuple(
            _disk_row(
                key,
                DiskChange(before.devices.get(key, _EMPTY), now.devices.get(key, _EMPTY), interval),
                in_flight.get(key, 0),
                known.get(key.device, _NOWHERE),
            )
            for key in sorted(now.devices.keys() | in_flight.keys())
        )
        services, idle = [], {}
        for key in sorted(now.services):
            is_idle = before.services.get(key) is now.services[key]
            row = self._idle.get(key) if is_idle else None
            if row is None:
                change = DiskChange(before.services.get(key, _EMPTY), now.services[key], interval)
                row = _service_row(key, change)
            if is_idle:
                idle[key] = row
            services.append(row)
        self._idle = idle
        return disks, tuple(services)


def _disk_row(key: DeviceKey, change: DiskChange, in_flight: int, device: Device) -> DiskRow:
    queue = change.distribution(QUEUE)
    return DiskRow(
        device=key.device,
        operation=key.operation,
        io=change.distribution(IO),
        queue=queue if queue.count else None,
        requests=change.count(Counter.REQUESTS),
        request_rate=change.rate(Counter.REQUESTS),
        bytes=change.count(Counter.BYTES),
        byte_rate=change.rate(Counter.BYTES),
        in_flight=in_flight,
        errors=change.count(Counter.ERRORS),
        rotational=device.rotational,
        parent=device.parent,
    )


def _service_row(key: ServiceDiskKey, change: DiskChange) -> ServiceDiskRow:
    return ServiceDiskRow(
        service=key.service.name,
        container=key.service.container,
        device=key.device,
        operation=key.operation,
        io=change.distribution(IO),
        requests=change.count(Counter.REQUESTS),
        request_rate=change.rate(Counter.REQUESTS),
        bytes=change.count(Counter.BYTES),
        byte_rate=change.rate(Counter.BYTES),
    )
