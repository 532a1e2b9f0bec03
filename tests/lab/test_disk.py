# SPDX-License-Identifier: Apache-2.0
"""Whose requests of a device are, what it is called, and devices that fail or go while they are used."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

from lab.disk import MIB, Device, memory_device, slow_device
from tests.kernel.disk_programs import BLOCK, Direct, difference, diskstats
from tests.lab.agent import RunningAgent
from tests.lab.disk_services import disk_services, finish
from tests.lab.remains import wait_until
from tidegate.measurement import Bounds, Measurement
from tidegate.model.disk import DiskRow, ServiceDiskRow
from tidegate.model.snapshot import View

pytestmark = pytest.mark.lab
_LOOP_CTL_ADD, _LOOP_CTL_REMOVE = 0x4C80, 0x4C81


@pytest.fixture
def device() -> Iterator[Device]:
    with memory_device() as made:
        yield made


def disks_of(view: View, device: Device) -> dict[str, DiskRow]:
    """Return the rows of one device by operation."""
    assert view.disks is not None
    return {row.operation: row for row in view.disks if row.device == device.name}


def services_of(view: View, device: Device) -> dict[tuple[str, str], ServiceDiskRow]:
    """Return what services did to one device, by (service, operation)."""
    assert view.service_disks is not None
    return {(row.service, row.operation): row for row in view.service_disks if row.device == device.name}


def settled(measurement: Measurement, device: Device) -> View:
    """Measure until nothing is under way on a device."""
    view = measurement.measure()

    def quiet() -> bool:
        nonlocal view
        view = measurement.measure()
        return not diskstats(device.path)[1] and not under_way(view, device)

    wait_until(quiet, "quiet")
    return view


def assert_services_add_up(view: View) -> None:
    """Over all services, each device's counts are its own."""
    assert view.disks is not None
    assert view.service_disks is not None
    rows = sorted(view.service_disks, key=lambda row: (row.device, row.operation))
    sums = {
        key: (sum(r.requests for r in of_key), sum(r.bytes for r in of_key), sum(r.io.count for r in of_key))
        for key, of_key in (
            (key, list(group)) for key, group in groupby(rows, key=lambda row: (row.device, row.operation))
        )
    }
    expected = {
        (row.device, row.operation): (row.requests, row.bytes, row.io.count) for row in view.disks if row.requests
    }
    assert sums == expected


def test_two_services_that_write_at_once_are_told_apart(device: Device) -> None:
    with disk_services("shop", "batch") as (shop, batch), Measurement(Bounds()) as measurement:
        before, _ = diskstats(device.path)
        writers = [
            service.begin(
                "dd", "if=/dev/zero", f"of={device.path}", "bs=4k", f"count={count}", "oflag=direct", seek
            )
            for service, count, seek in ((shop, 700, "seek=0"), (batch, 300, "seek=4096"))
        ]
        for writer in writers:
            finish(writer)
        shop.run("dd", f"if={device.path}", "of=/dev/null", "bs=16k", "count=50", "iflag=direct")
        view = settled(measurement, device)
        found = services_of(view, device)
        assert (found[shop.name, "write"].requests, found[shop.name, "write"].bytes) == (700, 700 * BLOCK)
        assert (found[batch.name, "write"].requests, found[batch.name, "write"].bytes) == (300, 300 * BLOCK)
        assert found[shop.name, "write"].io.count == 700
        assert (found[shop.name, "read"].requests, found[shop.name, "read"].bytes) == (50, 50 * 16 << 10)
        assert (batch.name, "read") not in found
        counted = difference(diskstats(device.path)[0], before)
        rows = disks_of(view, device)
        assert {name: (row.requests, row.bytes) for name, row in rows.items()} == {
            name: tuple(counts) for name, counts in counted.items()
        }
        assert_services_add_up(view)


def test_a_service_that_is_gone_keeps_its_requests(device: Device) -> None:
    with Measurement(Bounds()) as measurement:
        with disk_services("fleeting") as (fleeting,):
            fleeting.run("dd", "if=/dev/zero", f"of={device.path}", "bs=4k", "count=20", "oflag=direct")
        found = services_of(settled(measurement, device), device)
        assert found[fleeting.name, "write"].requests == 20


def test_services_without_a_row_of_their_own_are_other_and_the_sum_is_whole(device: Device) -> None:
    names = [f"s{n}" for n in range(8)]
    with disk_services(*names) as services, Measurement(Bounds(rows=4)) as measurement:
        for service in services:
            service.run("dd", "if=/dev/zero", f"of={device.path}", "bs=4k", "count=5", "oflag=direct")
        view = settled(measurement, device)
        assert view.service_disks is not None
        assert len([row for row in view.service_disks if row.service != "other"]) <= 4
        assert disks_of(view, device)["write"].requests == 40
        assert_services_add_up(view)


def test_names_are_those_of_lsblk_and_a_partition_has_its_disk_as_parent() -> None:
    with memory_device(partitions=True) as device, Measurement(Bounds()) as measurement:
        subprocess.run(["addpart", device.path, "1", "2048", "32768"], check=True)
        try:
            with Direct(Path(f"{device.path}p1")) as disk:
                disk.write(0)
            view = settled(measurement, device)
            listing = subprocess.run(
                ["lsblk", "--json", "--output", "NAME,ROTA", device.path], capture_output=True, check=True
            )
        finally:
            subprocess.run(["delpart", device.path, "1"], check=True)
        (listed,) = json.loads(listing.stdout)["blockdevices"]
        (partition,) = listed["children"]
        assert view.disks is not None
        rows = {row.device: row for row in view.disks if row.device.startswith(device.name)}
        assert set(rows) == {listed["name"], partition["name"]}
        assert (rows[device.name].parent, rows[partition["name"]].parent) == ("", device.name)
        assert rows[device.name].rotational == rows[partition["name"]].rotational == listed["rota"]
        assert rows[device.name].requests == rows[partition["name"]].requests == 1


def test_requests_that_fail_are_counted_as_errors() -> None:
    with slow_device(0, sound=MIB) as device, Measurement(Bounds()) as measurement:
        with Direct(device.path) as disk:
            for n in range(5):
                disk.read(n * BLOCK)
            for n in range(3):
                with pytest.raises(OSError, match="Input/output error"):
                    disk.read(MIB + n * BLOCK)
        found = disks_of(settled(measurement, device), device)["read"]
        assert (found.requests, found.errors, found.io.count) == (8, 3, 8)


def test_a_device_that_fails_under_load_leaves_nothing_under_way() -> None:
    failed = []

    def read(device: Device, n: int) -> None:
        with Direct(device.path) as disk:
            try:
                disk.read(n * BLOCK)
            except OSError:
                failed.append(n)

    with slow_device(60) as device, Measurement(Bounds()) as measurement:
        readers = [threading.Thread(target=read, args=(device, n)) for n in range(6)]
        for reader in readers:
            reader.start()
        wait_until(lambda: under_way(measurement.measure(), device) == 6, "six requests under way")
        assert device.server is not None
        os.kill(device.server, signal.SIGKILL)
        for reader in readers:
            reader.join()
        assert sorted(failed) == list(range(6))
        view = settled(measurement, device)
        assert disks_of(view, device)["read"].errors == 6
        assert_services_add_up(view)


def under_way(view: View, device: Device) -> int:
    """Return how many requests a device has."""
    return sum(row.in_flight for row in disks_of(view, device).values())


def test_a_device_that_is_removed_keeps_its_name_and_counts(tmp_path: Path) -> None:
    """Its number is free then, and means nothing to anybody who looks it up."""
    backing = tmp_path / "disk"
    backing.write_bytes(bytes(1 << 20))
    with Measurement(Bounds()) as measurement, Path("/dev/loop-control").open("rb") as control:
        number = fcntl.ioctl(control, _LOOP_CTL_ADD, 200)
        path = Path(f"/dev/loop{number}")
        try:
            subprocess.run(["losetup", path, backing], check=True)
            for count in (3, 4):
                with Direct(path) as disk:
                    for n in range(count):
                        disk.write(n * BLOCK)
                if count == 3:
                    settled(measurement, Device(path, 1 << 20))
            subprocess.run(["losetup", "--detach", path], check=True)
            wait_until(lambda: not Path(f"/sys/block/loop{number}/loop").exists(), "detached")
        finally:
            fcntl.ioctl(control, _LOOP_CTL_REMOVE, number)
        view = measurement.measure()
        assert disks_of(view, Device(path, 1 << 20))["write"].requests == 7
        assert_services_add_up(view)


def test_an_agent_shows_disks_in_its_metrics_and_snapshot(device: Device, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    with disk_services("shop") as (shop,), RunningAgent(tmp_path, port) as agent:
        shop.run("dd", "if=/dev/zero", f"of={device.path}", "bs=4k", "count=33", "oflag=direct")
        label = f'device="{device.name}",operation="write"'
        service = f'service="{shop.name}",container="",{label}'
        agent.wait_for("writes", lambda: f"tidegate_disk_io_seconds_count{{{label}}} 33\n" in agent.metrics())
        metrics = agent.metrics()
        assert f"tidegate_disk_io_bytes_total{{{label}}} {33 * BLOCK}\n" in metrics
        assert f"tidegate_disk_queue_seconds_count{{{label}}} 33\n" in metrics
        assert f"tidegate_service_disk_io_seconds_count{{{service}}} 33\n" in metrics
        assert f"tidegate_service_disk_io_bytes_total{{{service}}} {33 * BLOCK}\n" in metrics
        snapshot = agent.snapshot()
        assert {"device", "io", "queue", "in_flight"} <= snapshot["disks"][0].keys()
        assert "disk_rows" in snapshot["health"]["maps"]
        assert "disk_issued" in snapshot["health"]["programs"]


def test_disks_that_are_switched_off_are_not_measured(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    with RunningAgent(tmp_path, port, signals="disk: {enabled: false}") as agent:
        snapshot = agent.snapshot()
        assert snapshot["disks"] is snapshot["service_disks"] is None
        assert not [name for name in snapshot["health"]["maps"] if name.startswith("disk")]
