# SPDX-License-Identifier: Apache-2.0
"""Sums disk records into totals per device and per service: bounded, exact in their sum, never going back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, TypeVar

from tidegate.identity.devices import Device
from tidegate.identity.services import KERNEL, OTHER, Service
from tidegate.kernel.layouts import DiskCgroup
from tidegate.model.record import DiskRecord
from tidegate.totals import Row

_Key = TypeVar("_Key")

OTHER_DEVICE = "other"
#: Devices that are kept; volumes of containers come and go.
DEVICES = 512


class DeviceKey(NamedTuple):
    """What a row of a device is about."""

    device: str
    operation: str


class ServiceDiskKey(NamedTuple):
    """What a row of a service is about."""

    service: Service
    device: str
    operation: str


class DiskSample(NamedTuple):
    """The totals of one moment; over its services, each device's add up to its own."""

    devices: Mapping[DeviceKey, Row]
    services: Mapping[ServiceDiskKey, Row]


class DiskTotals:
    """All rows since the start.

    A request of a partition counts for the partition and for its disk. At most ``max_rows`` rows of services; what
    finds no place is summed in the service ``other``. Where room is short, what has been without requests for
    ``idle`` seconds is folded into that, or into the device ``other``.
    """

    def __init__(self, max_rows: int, idle: float, max_devices: int = DEVICES) -> None:
        self.limit(max_rows, idle)
        self._max_devices = max_devices
        self._devices: dict[DeviceKey, Row] = {}
        self._services: dict[ServiceDiskKey, Row] = {}
        self._touched: dict[ServiceDiskKey, float] = {}
        #: What is known of each device that has rows, by its name.
        self.known: dict[str, Device] = {}
        self.folded = 0

    def limit(self, max_rows: int, idle: float) -> None:
        """Set other bounds; rows that are there already stay."""
        self._max_rows, self._idle = max_rows, idle

    def make_room(self, now: float) -> bool:
        """Fold idle rows if room is short; tell whether any was. ``now`` is monotonic seconds."""
        before = self.folded
        if self._kept() >= self._max_rows * 9 // 10:
            for key in self._idle_rows(now):
                if key.service != OTHER:
                    self._move(key, key._replace(service=OTHER))
        if len(self.known) >= self._max_devices * 9 // 10:
            busy = {key.device for key, touched in self._touched.items() if now - touched < self._idle}
            for name in self.known.keys() - busy - {OTHER_DEVICE}:
                self._forget(name)
        return self.folded != before

    def add(
        self,
        records: Iterable[DiskRecord],
        service_of: Callable[[int, int], Service],
        device_of: Callable[[int], Device],
        now: float,
    ) -> None:
        """Add what was counted since the last time; ``now`` is monotonic seconds."""
        for record in records:
            service = self._service(record, service_of)
            for name in self._names(record.disk, record.device, device_of):
                counts = Row(record.counters, record.histograms)
                _sum(self._devices, DeviceKey(name, record.operation), counts)
                key = ServiceDiskKey(service, name, record.operation)
                if key not in self._services and self._kept() >= self._max_rows:
                    key = key._replace(service=OTHER)
                _sum(self._services, key, counts)
                self._touched[key] = now

    def in_flight(
        self, requests: Mapping[tuple[int, int, str], int], device_of: Callable[[int], Device]
    ) -> dict[DeviceKey, int]:
        """Return how many requests each device has, given by (disk, device, operation)."""
        found: dict[DeviceKey, int] = {}
        for (disk, device, operation), count in requests.items():
            for name in self._names(disk, device, device_of):
                key = DeviceKey(name, operation)
                found[key] = found.get(key, 0) + count
        return found

    def sample(self) -> DiskSample:
        """Return the totals of this moment; later additions don't change it."""
        return DiskSample(dict(self._devices), dict(self._services))

    def __len__(self) -> int:
        return len(self._services)

    def _kept(self) -> int:
        """Rows of services that count against the limit: all but those of ``other``, four for each device."""
        return len(self._services) - sum(ServiceDiskKey(OTHER, *key) in self._services for key in self._devices)

    @staticmethod
    def _service(record: DiskRecord, service_of: Callable[[int, int], Service]) -> Service:
        if record.cgroup is None:
            return OTHER
        if record.cgroup == DiskCgroup.KERNEL:
            return KERNEL
        return service_of(record.cgroup, record.hierarchy)

    def _names(self, disk: int, device: int, device_of: Callable[[int], Device]) -> Iterable[str]:
        """Return the names under which a request counts, each once."""
        return dict.fromkeys(self._name(device_of(number)) for number in (disk, device))

    def _name(self, device: Device) -> str:
        if device.name not in self.known and len(self.known) >= self._max_devices:
            device = Device(OTHER_DEVICE)
        self.known[device.name] = device
        return device.name

    def _idle_rows(self, now: float) -> list[ServiceDiskKey]:
        return [key for key, touched in self._touched.items() if now - touched >= self._idle]

    def _forget(self, name: str) -> None:
        """Move all rows of a device to the device ``other``."""
        self.known.setdefault(OTHER_DEVICE, Device(OTHER_DEVICE))
        del self.known[name]
        for key in [key for key in self._services if key.device == name]:
            self._move(key, key._replace(device=OTHER_DEVICE))
        for device in [device for device in self._devices if device.device == name]:
            _sum(self._devices, device._replace(device=OTHER_DEVICE), self._devices.pop(device))

    def _move(self, key: ServiceDiskKey, target: ServiceDiskKey) -> None:
        touched = self._touched.pop(key)
        _sum(self._services, target, self._services.pop(key))
        self._touched.setdefault(target, touched)
        self.folded += 1


def _sum(rows: dict[_Key, Row], key: _Key, counts: Row) -> None:
    before = rows.get(key)
    rows[key] = counts if before is None else before.plus(counts)
