# SPDX-License-Identifier: Apache-2.0
"""The disk signal of this node, from its programs to the rows of a view."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Self

from tidegate.disks.totals import DiskTotals
from tidegate.identity.devices import Devices, any_takes_bios, any_unaccounted
from tidegate.identity.services import Service
from tidegate.kernel.objects import Program
from tidegate.model.disk import DiskRow, ServiceDiskRow
from tidegate.model.snapshot import MapHealth
from tidegate.rates.disk import DiskRates
from tidegate.signals.disk import DiskSignal

#: Which kinds of devices there are is looked up after so many seconds.
_LOOK_EVERY = 10.0


class Disks:
    """Requests of all block devices since the start.

    ``max_rows`` and ``idle`` bound what is kept of services, as in :class:`tidegate.disks.totals.DiskTotals`.
    """

    def __init__(self, signal: DiskSignal, max_rows: int, idle: float) -> None:
        self._signal = signal
        self._devices = Devices()
        self.totals = DiskTotals(max_rows, idle)
        self._rates = DiskRates()
        self._look_at_devices(time.monotonic())

    @classmethod
    def start(cls, kernel_rows: int, requests: int, max_rows: int, idle: float) -> Self:
        """Load and attach; raises :class:`tidegate.errors.KernelError` where the kernel refuses."""
        return cls(DiskSignal.start(kernel_rows, requests), max_rows, idle)

    def measure(
        self, service_of: Callable[[int, int], Service], now: float, interval: float
    ) -> tuple[tuple[DiskRow, ...], tuple[ServiceDiskRow, ...]]:
        """Read what the kernel counted since the last time, and show it with the totals; ``now`` is monotonic."""
        if now - self._looked_at >= _LOOK_EVERY:
            self._look_at_devices(now)
        in_flight = self._signal.in_flight()
        records = self._signal.read()
        if self.totals.make_room(now):
            self._rates.begin_at(self.totals.sample())
        self.totals.add(records, service_of, self._devices.of, now)
        under_way = self.totals.in_flight(in_flight, self._devices.of)
        return self._rates.rows(self.totals.sample(), under_way, self.totals.known, interval)

    def _look_at_devices(self, now: float) -> None:
        self._looked_at = now
        self._signal.follow(bios=any_takes_bios(), making=any_unaccounted())

    @property
    def programs(self) -> list[Program]:
        """The programs that are loaded."""
        return [program for program in self._signal.bpf.programs.values() if program.is_loaded]

    def losses(self) -> dict[str, int]:
        """Return what had to be left out since the start."""
        return self._signal.losses() | {"disk_rows_folded": self.totals.folded}

    def maps(self) -> dict[str, MapHealth]:
        """Return how full the maps are."""
        return self._signal.maps()

    def close(self) -> None:
        """Detach and unload."""
        self._signal.close()
