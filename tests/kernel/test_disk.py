# SPDX-License-Identifier: Apache-2.0
"""Requests of a device that the test owns, against what the kernel counts of it."""

from __future__ import annotations

import os
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.disk import Device, memory_device, slow_device
from tests.kernel.disk_programs import BLOCK, Counted, Direct, Rows, difference, diskstats, measured, operations
from tests.lab.remains import wait_until
from tidegate.kernel import layouts
from tidegate.model import histogram
from tidegate.signals.disk_fields import IO, Counter

pytestmark = pytest.mark.kernel
DELAY = 0.02


@pytest.fixture
def device() -> Iterator[Device]:
    with memory_device() as made:
        yield made


@pytest.fixture
def mounted(device: Device, tmp_path: Path) -> Iterator[Path]:
    """A file system on the device, which discards what is removed; without it background writes go on."""
    subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", device.path], check=True)
    subprocess.run(["mount", "-t", "ext4", device.path, tmp_path], check=True)
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def exercise(device: Path) -> None:
    """Read, write, flush and discard a device in requests of several sizes."""
    with Direct(device) as disk:
        for n in range(200):
            size = BLOCK << n % 5
            disk.write(n * size, size)
            disk.read(n * size, max(size // 2, BLOCK))
        for n in range(20):
            disk.write(n * BLOCK, flags=os.RWF_DSYNC)
            disk.flush()
        for offset in range(0, 8 << 20, 1 << 20):
            disk.discard(offset, 512 << 10)


def use_files(mounted: Path) -> None:
    """Write, flush, trim and read files: write-back, merges, and flushes around writes."""
    for n in range(8):
        with (mounted / f"file{n}").open("wb") as file:
            for _ in range(40):
                file.write(os.urandom(16 << 10))
            file.flush()
            os.fsync(file.fileno())
    for n in range(0, 8, 2):
        (mounted / f"file{n}").unlink()
    os.sync()
    subprocess.run(["fstrim", mounted], check=True)
    for n in range(1, 8, 2):
        fd = os.open(mounted / f"file{n}", os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        while os.read(fd, 256 << 10):
            pass
        os.close(fd)


def assert_timed(rows: Rows, found: dict[str, Counted]) -> None:
    """Each request is in the histogram of its operation, with a time that can be true."""
    for operation, counted in found.items():
        assert sum(rows.io[operation].values()) == counted.requests
        assert 0 < rows.counter(operation, Counter.IO_NS) < 60e9


def test_direct_requests_are_those_of_diskstats(device: Device) -> None:
    with measured() as signal:
        rows = Rows(signal, device.path)
        before, _ = diskstats(device.path)
        exercise(device.path)
        found = rows.counted()
        assert found == difference(diskstats(device.path)[0], before)
        assert operations(found) == ["read", "write", "discard", "flush"]
        assert found["read"] == Counted(200, sum(max(BLOCK << n % 5 >> 1, BLOCK) for n in range(200)))
        assert found["write"].data_bytes == sum(BLOCK << n % 5 for n in range(200)) + 20 * BLOCK
        assert found["discard"] == Counted(8, 8 * 512 << 10)
        assert_timed(rows, found)
        assert sum(rows.queue["read"].values()) == found["read"].requests
        assert signal.losses()["disk_rows_full"] == signal.losses()["disk_untracked"] == 0


def test_write_back_flushes_and_trims_of_a_file_system_are_those_of_diskstats(
    device: Device, mounted: Path
) -> None:
    with measured() as signal:
        rows = Rows(signal, device.path)
        before, _ = diskstats(device.path)
        use_files(mounted)
        found = rows.counted()
        assert found == difference(diskstats(device.path)[0], before)
        assert operations(found) == ["read", "write", "discard", "flush"]
        assert found["write"].data_bytes >= 8 * 40 * 16 << 10
        assert_timed(rows, found)


def test_counts_do_not_depend_on_io_accounting(device: Device) -> None:
    """The same work twice, once for the kernel to count and once where it does not."""
    setting = device.sys / "queue/iostats"
    with measured() as signal:
        before, _ = diskstats(device.path)
        exercise(device.path)
        expected = Rows(signal, device.path)
        assert expected.counted() == difference(diskstats(device.path)[0], before)
        setting.write_text("0", encoding="ascii")
        signal.follow(bios=False, making=True)
        try:
            rows = Rows(signal, device.path)
            before, _ = diskstats(device.path)
            exercise(device.path)
            found = rows.counted()
            assert difference(diskstats(device.path)[0], before).keys() <= {"flush"}
        finally:
            setting.write_text("1", encoding="ascii")
        assert found["write"].data_bytes == expected.counted()["write"].data_bytes
        assert {name: n.data_bytes for name, n in found.items()} == {
            name: n.data_bytes for name, n in expected.counted().items()
        }
        assert found["read"] == expected.counted()["read"]
        assert found["discard"] == expected.counted()["discard"]
        assert_timed(rows, found)
        # Times of requests that the kernel notes nothing of; a stale one would be from before this test.
        assert sum(rows.queue["read"].values()) == found["read"].requests
        assert rows.counter("read", Counter.QUEUE_NS) < 10e9


def test_a_partition_counts_for_itself_and_for_its_disk() -> None:
    with memory_device(partitions=True) as device:
        use_partition(device)


def use_partition(device: Device) -> None:
    subprocess.run(["addpart", device.path, "1", "2048", "32768"], check=True)
    partition = Path(f"{device.path}p1")
    try:
        with measured() as signal:
            whole, part = Rows(signal, device.path), Rows(signal, partition)
            before = diskstats(device.path)[0], diskstats(partition)[0]
            with Direct(partition) as disk:
                for n in range(30):
                    disk.read(n * BLOCK)
                disk.write(0)
            found = read_both(whole, part)
            assert found["part"] == difference(diskstats(partition)[0], before[1])
            assert found["part"] == {"read": Counted(30, 30 * BLOCK), "write": Counted(1, BLOCK)}
            assert found["whole"] == difference(diskstats(device.path)[0], before[0])
    finally:
        subprocess.run(["delpart", device.path, "1"], check=True)


def read_both(whole: Rows, part: Rows) -> dict[str, dict[str, Counted]]:
    """Read the signal once for two views of it."""
    wait_until(lambda: not whole.in_flight(), "quiet")
    records = whole.signal.read()
    for rows in (whole, part):
        rows.add(records)
    return {"whole": whole.sums(), "part": part.sums()}


def test_a_device_that_takes_20_ms_is_seen_to_take_them() -> None:
    with slow_device(DELAY) as device, measured() as signal:
        rows = Rows(signal, device.path)
        took: dict[str, list[float]] = {"read": [], "write": []}
        with Direct(device.path) as disk:
            for n in range(40):
                for operation, call in (("read", disk.read), ("write", disk.write)):
                    began = time.perf_counter()
                    call(n * BLOCK)
                    took[operation].append(time.perf_counter() - began)
        rows.counted()
        for operation, seconds in took.items():
            slots = rows.io[operation]
            assert sum(slots.values()) == 40
            (p50,) = histogram.percentiles(slots, IO.shift, (0.5,))
            assert p50 is not None
            assert p50 / 1e9 == pytest.approx(DELAY, rel=0.1)
            mean = rows.counter(operation, Counter.IO_NS) / 40 / 1e9
            assert DELAY <= mean <= statistics.mean(seconds)


def test_what_is_under_way_is_counted() -> None:
    with slow_device(0.5) as device, measured() as signal:
        rows = Rows(signal, device.path)

        def read(n: int) -> None:
            with Direct(device.path) as disk:
                disk.read(n * BLOCK)

        readers = [threading.Thread(target=read, args=(8 * n,)) for n in range(6)]
        for reader in readers:
            reader.start()
        wait_until(lambda: rows.in_flight() == 6, "six requests under way")
        for reader in readers:
            reader.join()
        assert rows.counted()["read"] == Counted(6, 6 * BLOCK)
        assert rows.in_flight() == 0


def test_requests_that_were_under_way_at_the_start_are_counted() -> None:
    with slow_device(0.5) as device:

        def read() -> None:
            with Direct(device.path) as disk:
                disk.read(0)

        reader = threading.Thread(target=read)
        reader.start()
        wait_until(lambda: diskstats(device.path)[1] == 1, "a request under way")
        with measured() as signal:
            rows = Rows(signal, device.path)
            reader.join()
            assert rows.counted() == {"read": Counted(1, BLOCK)}
            assert signal.losses()["disk_untracked"] == 0


def test_an_end_that_no_program_saw_is_counted_later(device: Device) -> None:
    with measured() as signal, Direct(device.path) as disk:
        rows = Rows(signal, device.path)
        for n in range(10):
            disk.read(n * BLOCK)
        ended = next(link for link in signal.bpf.links if link.name == "disk_ended")
        ended.close()
        disk.read(0)
        # The request is in use no more, but that shows only a second after its issue.
        assert rows.counted() == {"read": Counted(11, 11 * BLOCK)}
        assert signal.losses()["disk_end_unseen"] >= 1  # other devices of this machine have theirs
        assert sum(rows.io["read"].values()) == 11
        signal.bpf.links.append(signal.bpf.programs["disk_ended"].attach())
        for n in range(10):
            disk.read(n * BLOCK)
        assert rows.counted() == {"read": Counted(21, 21 * BLOCK)}


def test_an_end_that_no_program_saw_is_counted_by_the_next_issue_of_the_request(device: Device) -> None:
    with measured() as signal, Direct(device.path) as disk:
        rows = Rows(signal, device.path)
        ended = next(link for link in signal.bpf.links if link.name == "disk_ended")
        ended.close()
        for n in range(1000):  # more than the device has requests
            disk.read(n * BLOCK)
        rows.read()
        assert 0 < rows.sums()["read"].requests < 1000  # those whose place was taken again
        assert rows.counted() == {"read": Counted(1000, 1000 * BLOCK)}


def test_what_finds_no_place_in_the_table_keeps_its_device(device: Device) -> None:
    with measured(rows=1) as signal:
        rows = Rows(signal, device.path)
        before, _ = diskstats(device.path)
        exercise(device.path)
        assert rows.counted() == difference(diskstats(device.path)[0], before)
        exercise(device.path)
        assert rows.counted() == difference(diskstats(device.path)[0], before)
        assert signal.losses()["disk_rows_full"] > 0
        assert signal.losses()["disk_unplaced"] == 0


def test_losses_are_those_that_the_header_declares() -> None:
    with measured() as signal:
        names = {f"disk_{reason.name.lower()}" for reason in layouts.DiskLoss if reason.name != "COUNT"}
        assert set(signal.losses()) == names


def test_bios_of_a_device_that_makes_no_requests_are_those_of_diskstats() -> None:
    with zram() as device, measured() as signal:
        signal.follow(bios=True, making=False)
        rows = Rows(signal, device)
        before, _ = diskstats(device)
        with Direct(device) as disk:
            for n in range(100):
                disk.write(n * BLOCK, BLOCK << n % 4)
                disk.read(n * BLOCK, BLOCK)
        found = rows.counted()
        assert found == difference(diskstats(device)[0], before)
        assert found["read"] == Counted(100, 100 * BLOCK)
        assert_timed(rows, found)
        signal.follow(bios=False, making=False)
        with Direct(device) as disk:
            disk.read(0)
        assert rows.counted() == found


@contextmanager
def zram() -> Iterator[Path]:
    """A device of compressed memory, whose driver takes bios as they are."""
    control = Path("/sys/class/zram-control")
    if not control.exists():
        subprocess.run(["modprobe", "zram"], check=False)
    if not control.exists():
        pytest.skip("this kernel has no zram")
    number = (control / "hot_add").read_text(encoding="ascii").strip()
    settings = Path(f"/sys/block/zram{number}")
    try:
        (settings / "disksize").write_text("16M", encoding="ascii")
        (settings / "queue/iostats").write_text("1", encoding="ascii")
        yield Path(f"/dev/zram{number}")
    finally:
        (settings / "reset").write_text("1", encoding="ascii")
        (control / "hot_remove").write_text(number, encoding="ascii")
