# SPDX-License-Identifier: Apache-2.0
"""The findings of disks: a device that is slow by itself, one that a service has to itself, and near misses."""

from __future__ import annotations

import pytest

from lab.disk import Device, memory_device, slow_device
from lab.lab import Lab
from tests.kernel.disk_programs import diskstats
from tests.lab.advised import AdvisedLab
from tests.lab.disk_services import disk_services, finish
from tests.lab.remains import wait_until

pytestmark = pytest.mark.lab


def reading(device: Device, count: int, size: int = 4096) -> list[str]:
    """Read so many blocks from a device, past the page cache, one after the other."""
    return ["dd", f"if={device.path}", "of=/dev/null", f"bs={size}", f"count={count}", "iflag=direct"]


def reads(device: Device) -> int:
    return diskstats(device.path)[0]["read"].requests


def flooding(device: Device, seconds: int) -> list[str]:
    """Have sixteen large reads under way at any time."""
    return [
        "fio", "--name=flood", f"--filename={device.path}", "--rw=randread", "--bs=64k", "--direct=1",
        "--ioengine=libaio", "--iodepth=16", f"--runtime={seconds}", "--time_based", "--output=/dev/null",
    ]  # fmt: skip


def test_a_slow_device_is_found_with_who_waits_for_it(lab: Lab) -> None:
    with (
        slow_device(delay=0.1) as device,
        disk_services("reader") as (reader,),
        AdvisedLab(lab, services=[reader.name], devices=[device.name]) as advised,
    ):
        reader.run(*reading(device, 30))
        finding = advised.one(advised.until(lambda v: bool(v.findings), "found"), "slow_device")
    assert finding.subject == device.name
    assert float(finding.evidence["read_seconds"]) == pytest.approx(0.1, rel=0.1)
    assert finding.services == (reader.name,)


@pytest.mark.parametrize("count", [10, 30])
def test_a_few_slow_requests_and_many_fast_ones_are_none(lab: Lab, count: int) -> None:
    """Ten requests are too few, and thirty of a device that is quick are no fault."""
    made = slow_device(delay=0.1) if count == 10 else memory_device()
    with (
        made as device,
        disk_services("reader") as (reader,),
        AdvisedLab(lab, services=[reader.name], devices=[device.name]) as advised,
    ):
        reader.run(*reading(device, count))
        assert advised.findings(advised.after(2)) == []


def test_a_service_that_floods_a_healthy_device_is_found_by_who_waits(lab: Lab) -> None:
    with (
        slow_device(delay=0.0005, single=True) as device,
        disk_services("reader", "flood") as (reader, flood),
        AdvisedLab(lab, services=[reader.name, flood.name], devices=[device.name]) as advised,
    ):
        reader.run(*reading(device, 10))
        advised.measure()
        alone = reads(device)
        noise = flood.begin(*flooding(device, 6))
        wait_until(lambda: reads(device) > alone + 100, "flooded")
        for _ in range(5):
            reader.run(*reading(device, 20))
            advised.measure()
        finding = advised.one(advised.until(lambda v: bool(v.findings), "found"), "noisy_neighbour")
        finish(noise)
    assert finding.subject == f"{flood.name} on {device.name}"
    assert finding.services == (flood.name, reader.name)
    # Behind sixteen others, of which each takes half a millisecond or more.
    assert float(finding.evidence["waiting_seconds"]) > 0.005


def test_a_service_that_has_a_device_to_itself_disturbs_nobody(lab: Lab) -> None:
    with (
        slow_device(delay=0.0005, single=True) as device,
        disk_services("reader", "flood") as (reader, flood),
        AdvisedLab(lab, services=[reader.name, flood.name], devices=[device.name]) as advised,
    ):
        reader.run(*reading(device, 60))
        advised.measure()
        flood.run(*flooding(device, 4))
        assert advised.findings(advised.after(2)) == []
