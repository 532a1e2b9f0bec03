# SPDX-License-Identifier: Apache-2.0
"""The agent on other kernels: every object loads and is attached, or the doctor says why not; counts are exact."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.vm import initramfs
from tests.vm.disk import SIZE, WRITTEN, DiskReport
from tests.vm.kernels import SUITES, KernelUnavailableError, kernel
from tests.vm.machine import DEADLINE, QEMU, GuestError, boot
from tests.vm.report import ENTRIES, ObjectReport, Report
from tests.vm.shortage import CPUS, KILLS, MEMORY
from tests.vm.traffic import ABORTED, ESTABLISHED, EXHAUSTED, PORTS, REFUSED
from tidegate.kernel.objects import OBJECTS
from tidegate.model.feature import Feature, State
from tidegate.ratelimit.feature import NAME

# Fetching a kernel and booting it count to the first test that needs them.
pytestmark = [pytest.mark.vm, pytest.mark.timeout(DEADLINE + 600)]


def image_of(suite: str) -> Path:
    """Return a kernel to boot, or skip."""
    if platform.machine() != "x86_64":
        pytest.skip(f"boots kernels of amd64 with this machine's Python, which is {platform.machine()}")
    if not shutil.which(QEMU):
        pytest.skip(f"{QEMU} is not installed: apt-get install qemu-system-x86")
    try:
        return kernel(suite)
    except KernelUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=list(SUITES))
def suite(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def image(suite: str) -> Path:
    return image_of(suite)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vm")


@pytest.fixture(scope="module")
def root_files(folder: Path) -> Path:
    archive = folder / "initramfs.cpio"
    initramfs.build(archive)
    return archive


@pytest.fixture(scope="module")
def disk(folder: Path) -> Path:
    """A disk with a file system, for one guest."""
    if not (mkfs := shutil.which("mkfs.ext4")):
        pytest.skip("mkfs.ext4 is not installed: apt-get install e2fsprogs")
    image = folder / "disk"
    with image.open("wb") as file:
        file.truncate(SIZE)
    subprocess.run([mkfs, "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", image], check=True)
    return image


@pytest.fixture(scope="module")
def report(suite: str, image: Path, root_files: Path, disk: Path, folder: Path) -> Report:
    own = folder / suite
    shutil.copy(disk, own)
    found = boot(image, root_files, own)
    assert found.kernel.startswith(SUITES[suite])
    return found


def test_every_object_is_attached_or_the_doctor_says_why_not(report: Report) -> None:
    assert [each.name for each in report.objects] == sorted(
        path.name.removesuffix(".bpf.o") for path in OBJECTS.glob("*.bpf.o")
    )
    unexplained = [str(each) for each in report.objects if not each.works and not explanation(each, report.doctor)]
    assert not unexplained, "\n".join([report.kernel, *unexplained])


def explanation(refused: ObjectReport, doctor: list[Feature]) -> str:
    """Return what the doctor says of an object of which not all works."""
    name = NAME if refused.name.startswith("ratelimit") else f"programs:{refused.name}"
    return "; ".join(f.reason for f in doctor if f.name == name and f.state is not State.OK)


def test_doctor_gives_reason_and_remedy_for_what_is_not_ok(report: Report) -> None:
    assert {f.name for f in report.doctor} >= {"privilege", "btf", "cgroup2"}
    for feature in report.doctor:
        assert feature.state is State.OK or (feature.reason and feature.remedy), feature
    unavailable = any(feature.state is State.UNAVAILABLE for feature in report.doctor)
    assert report.doctor_exit == (3 if unavailable else 0)


def test_counts_are_those_of_the_programs_that_connect(report: Report) -> None:
    assert report.measured is not None, report.refusal
    assert report.measured == report.counted
    assert not any(report.losses.values()), report.losses


def test_ports_are_those_of_the_sockets_that_the_kernel_shows(report: Report) -> None:
    assert report.sockets
    assert {endpoint: used for endpoint, (used, _) in report.ports.items()} == report.sockets
    assert {limit for _, limit in report.ports.values()} == {len(PORTS)}


def test_what_services_lack_on_cgroup2_alone_is_what_its_files_say(report: Report) -> None:
    assert report.short is not None, report.refusal
    counted, measured = report.short
    assert measured == counted
    assert (measured.kills, measured.gone, measured.node_kills) == (KILLS, 1, KILLS + 1)
    assert (measured.memory_limit, measured.cpu_limit) == (MEMORY, CPUS)
    assert measured.throttled_seconds is not None
    assert measured.throttled_seconds > 0


@pytest.fixture
def on_disk(report: Report) -> DiskReport:
    assert report.disk is not None
    return report.disk


def test_requests_of_the_disk_are_those_of_diskstats(on_disk: DiskReport) -> None:
    assert on_disk.measured == on_disk.counted
    assert on_disk.timed == {operation: requests for operation, (requests, _) in on_disk.measured.items()}
    assert set(on_disk.losses.values()) == {0}, on_disk.losses


def test_write_back_is_charged_to_who_wrote_the_file(on_disk: DiskReport) -> None:
    written = {name: on_disk.services[name]["write"][1] for name in WRITTEN}
    assert written == on_disk.charged
    for name, size in WRITTEN.items():
        # The file, and what of the file system's own blocks the service was the first to change.
        assert size <= written[name] < size + size // 4


def test_requests_of_services_add_up_to_the_disks(on_disk: DiskReport) -> None:
    for operation, (requests, size) in on_disk.measured.items():
        of_services = [found[operation] for found in on_disk.services.values() if operation in found]
        assert (requests, size) == (sum(n for n, _ in of_services), sum(n for _, n in of_services))


def test_entries_of_a_map_are_counted_also_where_the_kernel_does_not_charge_for_each(report: Report) -> None:
    assert report.entries == ENTRIES


def test_misses_are_unmeasured_before_the_kernel_counts_them(report: Report) -> None:
    version = tuple(int(part) for part in report.kernel.split(".")[:2])
    assert report.counts_misses == (version >= (5, 12))


def test_traffic_is_what_it_is_meant_to_be(report: Report) -> None:
    clients = [count for name, count in report.counted.items() if " client " in name]
    failures = {reason: n for count in clients for reason, n in count.failures.items()}
    assert failures == {"refused": REFUSED, "timeout": 1, "aborted": ABORTED, "ports_exhausted": EXHAUSTED}
    assert sum(count.established for count in clients) > ESTABLISHED
    assert sum(count.connects for count in clients) == sum(
        count.established + sum(count.failures.values()) for count in clients
    )


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """Root files without an init."""
    archive = tmp_path / "empty.cpio"
    with archive.open("wb") as output:
        initramfs.Archive(output).end()
    return archive


def test_guest_that_dies_has_its_console_shown(empty: Path) -> None:
    with pytest.raises(GuestError, match=r"(?s)powered off without a report.*Kernel panic - not syncing"):
        boot(image_of("bookworm"), empty)


def test_guest_that_hangs_is_ended(empty: Path) -> None:
    with pytest.raises(GuestError, match="not done after 1 s and was ended"):
        boot(image_of("bookworm"), empty, deadline=1)
