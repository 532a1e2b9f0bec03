# SPDX-License-Identifier: Apache-2.0
"""What is kept of disks, and the rows that are made of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.disks.totals import OTHER_DEVICE, DeviceKey, DiskSample, DiskTotals
from tidegate.identity.devices import Device
from tidegate.identity.services import KERNEL, OTHER, Service
from tidegate.kernel.layouts import DiskCgroup
from tidegate.model.disk import DiskRow, ServiceDiskRow
from tidegate.model.record import DiskRecord
from tidegate.rates import DiskRates
from tidegate.signals.disk_fields import COUNTERS, Counter

pytestmark = pytest.mark.unit
DISK, PART, OTHER_DISK = 1, 2, 3
NAMES = {DISK: Device("sda"), PART: Device("sda1", parent="sda", is_partition=True), OTHER_DISK: Device("sdb")}


def device_of(number: int) -> Device:
    return NAMES.get(number, Device(f"disk{number}"))


def service_of(cgroup: int, hierarchy: int) -> Service:
    return Service(f"s{cgroup}-{hierarchy}")


def record(
    cgroup: int | None = 7,
    requests: int = 1,
    *,
    disk: int = DISK,
    device: int | None = None,
    operation: str = "write",
    slots: dict[int, int] | None = None,
) -> DiskRecord:
    counters = [0] * COUNTERS
    counters[Counter.REQUESTS] = requests
    counters[Counter.BYTES] = requests * 4096
    counters[Counter.IO_NS] = requests * 1_000_000
    io = {40: requests} if slots is None else slots
    return DiskRecord(cgroup, 0, disk, device or disk, operation, tuple(counters), (io, {}))


def totals(*records: DiskRecord, max_rows: int = 100, max_devices: int = 100, now: float = 0.0) -> DiskTotals:
    found = DiskTotals(max_rows, 60.0, max_devices)
    found.add(records, service_of, device_of, now)
    return found


def requests(sample: DiskSample) -> dict[DeviceKey, int]:
    return {key: row.counters[Counter.REQUESTS] for key, row in sample.devices.items()}


def assert_adds_up(sample: DiskSample) -> None:
    sums: dict[DeviceKey, int] = {}
    for key, row in sample.services.items():
        place = DeviceKey(key.device, key.operation)
        sums[place] = sums.get(place, 0) + row.counters[Counter.REQUESTS]
    assert sums == requests(sample)


def test_a_request_of_a_partition_counts_for_the_partition_and_its_disk() -> None:
    sample = totals(record(requests=3, device=PART), record(requests=2)).sample()
    assert requests(sample) == {("sda", "write"): 5, ("sda1", "write"): 3}
    assert_adds_up(sample)


def test_services_are_told_apart_and_what_has_no_cgroup_is_the_kernels() -> None:
    sample = totals(
        record(7), record(8, 2), record(DiskCgroup.KERNEL, 4, operation="flush"), record(None)
    ).sample()
    assert {(key.service, key.operation): row.counters[0] for key, row in sample.services.items()} == {
        (Service("s7-0"), "write"): 1,
        (Service("s8-0"), "write"): 2,
        (KERNEL, "flush"): 4,
        (OTHER, "write"): 1,
    }
    assert_adds_up(sample)


def test_services_past_the_bound_are_other() -> None:
    found = totals(*(record(n) for n in range(1, 11)), max_rows=3)
    assert len([key for key in found.sample().services if key.service != OTHER]) == 3
    assert_adds_up(found.sample())


def test_devices_past_the_bound_are_one() -> None:
    found = totals(*(record(disk=n) for n in range(10, 20)), max_devices=4)
    assert requests(found.sample())[DeviceKey(OTHER_DEVICE, "write")] == 6
    assert_adds_up(found.sample())


def test_idle_rows_make_room_and_sums_stay() -> None:
    found = totals(*(record(n) for n in range(1, 10)), max_rows=10)
    found.add([record(9)], service_of, device_of, 59.0)
    assert not found.make_room(59.0)
    assert found.make_room(61.0)
    assert found.folded == 8
    assert {key.service for key in found.sample().services} == {OTHER, Service("s9-0")}
    assert requests(found.sample()) == {("sda", "write"): 10}
    assert_adds_up(found.sample())


def test_idle_devices_make_room_and_sums_stay() -> None:
    found = totals(*(record(disk=n) for n in range(10, 19)), max_devices=10)
    found.add([record(disk=18)], service_of, device_of, 50.0)
    assert found.make_room(61.0)
    assert set(requests(found.sample())) == {DeviceKey(OTHER_DEVICE, "write"), DeviceKey("disk18", "write")}
    assert sum(requests(found.sample()).values()) == 10
    assert_adds_up(found.sample())


@given(
    st.lists(
        st.tuples(
            st.integers(0, 12), st.integers(1, 8), st.sampled_from(["read", "write", "flush"]), st.booleans()
        ),
        max_size=40,
    )
)
def test_services_always_add_up_to_their_devices(events: list[tuple[int, int, str, bool]]) -> None:
    found = DiskTotals(max_rows=6, idle=3.0, max_devices=4)
    for now, (cgroup, disk, operation, is_partition) in enumerate(events):
        found.make_room(now)
        device = disk + 100 if is_partition else disk
        counted = record(cgroup, disk=disk, device=device, operation=operation)
        found.add([counted], service_of, lambda n: Device(f"d{n}"), now)
        assert_adds_up(found.sample())


def rows(
    *samples: DiskSample, in_flight: dict[DeviceKey, int] | None = None, interval: float = 2.0
) -> tuple[dict[tuple[str, str], DiskRow], dict[tuple[str, str, str], ServiceDiskRow]]:
    rates = DiskRates()
    known = {device.name: device for device in NAMES.values()}
    disks: tuple[DiskRow, ...] = ()
    services: tuple[ServiceDiskRow, ...] = ()
    for sample in samples:
        disks, services = rates.rows(sample, in_flight or {}, known, interval)
    return (
        {(row.device, row.operation): row for row in disks},
        {(row.service, row.device, row.operation): row for row in services},
    )


def test_rates_are_of_the_interval_and_counts_are_totals() -> None:
    found = totals(record(requests=10))
    before = found.sample()
    found.add([record(requests=4, device=PART, slots={60: 4})], service_of, device_of, 1.0)
    disks, services = rows(before, found.sample(), in_flight={DeviceKey("sda", "write"): 3})
    disk = disks["sda", "write"]
    assert (disk.requests, disk.request_rate, disk.bytes, disk.byte_rate) == (14, 2.0, 14 * 4096, 2 * 4096)
    assert (disk.in_flight, disk.parent, disk.rotational, disk.errors) == (3, "", None, 0)
    assert (disk.io.count, disk.io.sum) == (14, 0.014)
    assert disk.queue is None
    assert disk.io.p50 == pytest.approx(12 * 2**16 / 1e9 * 0.7, rel=0.5)
    assert (disks["sda1", "write"].parent, disks["sda1", "write"].requests) == ("sda", 4)
    assert services["s7-0", "sda", "write"].requests == 14
    assert services["s7-0", "sda1", "write"].byte_rate == 2 * 4096


def test_a_device_that_has_only_requests_under_way_has_a_row() -> None:
    disks, _ = rows(DiskSample({}, {}), in_flight={DeviceKey("sdb", "read"): 2})
    row = disks["sdb", "read"]
    assert (row.in_flight, row.requests, row.io.count, row.io.p50) == (2, 0, 0, None)


def test_what_did_not_change_is_not_built_again() -> None:
    sample = totals(record()).sample()
    rates = DiskRates()
    rates.rows(sample, {}, {}, 1.0)
    _, (first,) = rates.rows(sample, {}, {}, 1.0)
    _, (second,) = rates.rows(sample, {}, {}, 1.0)
    assert first is second
    assert (first.request_rate, first.requests, first.io.p50) == (0.0, 1, None)
