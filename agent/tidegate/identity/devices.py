# SPDX-License-Identifier: Apache-2.0
"""Block devices by their number, named as lsblk names them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

_MINOR_BITS = 20  # MINORBITS of the kernel
#: A device that is in use is looked up again after so many seconds: its number may be another's by then.
_KEPT = 10.0
_DEVICES_KEPT = 4096


class Device(NamedTuple):
    """A device; ``parent`` is the disk of a partition, or what a stacked device stands on, else empty.

    ``is_partition`` tells the two apart; ``rotational`` is None where the kernel doesn't say.
    """

    name: str
    parent: str = ""
    rotational: bool | None = None
    is_partition: bool = False


def number_text(number: int) -> str:
    """Return a device's number as people write it: ``8:1``."""
    return f"{number >> _MINOR_BITS}:{number & (1 << _MINOR_BITS) - 1}"


class Devices:
    """The devices of a node; one that is gone keeps its name. ``sys`` is where sysfs is seen, ``clock`` in s."""

    def __init__(self, sys: Path = Path("/sys"), clock: Callable[[], float] = time.monotonic) -> None:
        self._sys, self._clock = sys, clock
        self._known: dict[int, tuple[Device, float]] = {}

    def of(self, number: int) -> Device:
        """Return the device of a number as the kernel has it; one that nobody knows is called by the number."""
        now = self._clock()
        known = self._known.pop(number, None)
        if known is None or now - known[1] >= _KEPT:
            found = self._look_up(number) or (known[0] if known else Device(number_text(number)))
            known = (found, now)
        self._known[number] = known  # at the end: what is in use is dropped last
        while len(self._known) > _DEVICES_KEPT:
            del self._known[next(iter(self._known))]
        return known[0]

    def _look_up(self, number: int) -> Device | None:
        try:
            folder = (self._sys / "dev/block" / number_text(number)).resolve(strict=True)
        except OSError:
            return None
        is_partition = (folder / "partition").exists()
        disk = folder.parent if is_partition else folder
        rotational = _read(disk / "queue/rotational")
        return Device(
            name=name_of(folder),
            parent=name_of(disk) if is_partition else ",".join(_below(folder)),
            rotational=None if rotational is None else rotational == "1",
            is_partition=is_partition,
        )


def any_takes_bios(sys: Path = Path("/sys")) -> bool:
    """Tell whether there is a device whose driver makes no requests: dm, md, zram, an NVMe multipath head."""
    return any(not (folder / "mq").exists() for folder in _disks(sys))


def any_unaccounted(sys: Path = Path("/sys")) -> bool:
    """Tell whether there is a device with requests that the kernel does not account for."""
    return any((folder / "mq").exists() and _read(folder / "queue/iostats") == "0" for folder in _disks(sys))


def _disks(sys: Path) -> Iterator[Path]:
    """Yield the folders of disks that hold anything; loop devices that nobody uses don't."""
    try:
        for folder in (sys / "block").iterdir():
            if _read(folder / "size") not in (None, "0"):
                yield folder
    except OSError:
        return


def name_of(folder: Path) -> str:
    """Return the name of the device that a folder of sysfs describes.

    As lsblk does: device mapper's own name, else the kernel's, in which ``!`` stands for ``/``.
    """
    return _read(folder / "dm/name") or folder.name.replace("!", "/")


def _below(folder: Path) -> list[str]:
    """Return the names of the devices on which a stacked one stands."""
    try:
        return sorted(name_of((folder / "slaves" / entry).resolve()) for entry in os.listdir(folder / "slaves"))
    except OSError:
        return []


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="backslashreplace").strip()
    except OSError:
        return None
