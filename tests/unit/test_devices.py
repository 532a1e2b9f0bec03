# SPDX-License-Identifier: Apache-2.0
"""Names of block devices, from folders as sysfs has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidegate.identity.devices import Device, Devices, any_takes_bios, any_unaccounted, number_text

pytestmark = pytest.mark.unit


def number(major: int, minor: int) -> int:
    return major << 20 | minor


class Sys:
    """A sysfs to look in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "dev/block").mkdir(parents=True)
        (root / "block").mkdir()

    def add(self, major: int, minor: int, path: str, **files: str) -> Path:
        folder = self.root / "devices" / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            file = folder / name.replace("__", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n", encoding="ascii")
        (self.root / "dev/block" / f"{major}:{minor}").symlink_to(folder)
        if "partition" not in files:
            (self.root / "block" / folder.name).symlink_to(folder)
        return folder


@pytest.fixture
def sys(tmp_path: Path) -> Sys:
    return Sys(tmp_path)


def test_names_are_those_of_lsblk(sys: Sys) -> None:
    sda = sys.add(8, 0, "pci/sda", queue__rotational="1", size="100")
    sys.add(8, 1, "pci/sda/sda1", partition="1")
    dm = sys.add(253, 0, "virtual/dm-0", dm__name="vg-root", queue__rotational="0")
    (dm / "slaves").mkdir()
    (dm / "slaves/sda").symlink_to(sda)
    sys.add(72, 0, "cciss!c0d0")
    devices = Devices(sys.root)
    assert devices.of(number(8, 0)) == Device("sda", rotational=True)
    assert devices.of(number(8, 1)) == Device("sda1", "sda", True, is_partition=True)
    assert devices.of(number(253, 0)) == Device("vg-root", "sda", False)
    assert devices.of(number(72, 0)) == Device("cciss/c0d0")


def test_a_device_that_nobody_knows_goes_by_its_number(sys: Sys) -> None:
    assert Devices(sys.root).of(number(259, 1 << 18)) == Device("259:262144")
    assert number_text(number(8, 17)) == "8:17"


def test_a_device_that_is_gone_keeps_its_name_until_its_number_is_anothers(sys: Sys) -> None:
    now = 0.0
    sys.add(8, 0, "pci/sda")
    devices = Devices(sys.root, lambda: now)
    assert devices.of(number(8, 0)).name == "sda"
    link = sys.root / "dev/block/8:0"
    link.unlink()
    now = 11.0
    assert devices.of(number(8, 0)).name == "sda"
    sys.add(8, 0, "pci/sdq")
    assert devices.of(number(8, 0)).name == "sda"
    now = 22.0
    assert devices.of(number(8, 0)).name == "sdq"


def test_devices_that_take_bios_are_those_without_queues(sys: Sys) -> None:
    (sys.add(8, 0, "pci/sda", size="100") / "mq").mkdir()
    sys.add(252, 0, "virtual/zram0", size="0")
    assert not any_takes_bios(sys.root)
    sys.add(253, 0, "virtual/dm-0", size="100")
    assert any_takes_bios(sys.root)
    assert not any_takes_bios(sys.root / "none")


def test_devices_without_accounting_are_those_that_make_requests_and_hold_something(sys: Sys) -> None:
    sys.add(253, 0, "virtual/dm-0", size="100", queue__iostats="0")
    for name, size, iostats in (("loop0", "0", "0"), ("sda", "100", "1")):
        (sys.add(8, len(name), f"pci/{name}", size=size, queue__iostats=iostats) / "mq").mkdir()
    assert not any_unaccounted(sys.root)
    (sys.add(8, 9, "pci/sdb", size="100", queue__iostats="0") / "mq").mkdir()
    assert any_unaccounted(sys.root)
