# SPDX-License-Identifier: Apache-2.0
"""Block devices of the lab: in memory, or as slow as wanted, through a loop device over a FUSE file."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lab.network import PREFIX, lab_name, started

ROOT = Path(__file__).parents[1]
MIB = 1 << 20
_RUN = Path("/run")
#: The name of the file that lab/slow.py serves.
_FILE = "slow"
_OWNER = re.compile(rf"{_RUN}/{PREFIX}-(\d+)-(\d+)-\d+-disk")
_MOUNTED_BY = 20.0
_numbers = itertools.count()


class Device(NamedTuple):
    """A block device that is there for the time of a ``with`` block."""

    path: Path
    size: int
    #: The process that serves a slow one.
    server: int | None = None

    @property
    def name(self) -> str:
        """The name that lsblk shows."""
        return self.path.name

    @property
    def sys(self) -> Path:
        """Its folder in sysfs."""
        return Path("/sys/class/block") / self.name


@contextlib.contextmanager
def memory_device(size: int = 64 * MIB, *, partitions: bool = False) -> Iterator[Device]:
    """Make a loop device over memory, which takes discards, and ``partitions`` where that is asked for."""
    fd = os.memfd_create("tidegate-lab-disk")
    try:
        os.truncate(fd, size)
        options = ["--partscan"] if partitions else []
        with _loop(f"/proc/{os.getpid()}/fd/{fd}", size, *options) as device:
            yield device
    finally:
        os.close(fd)


@contextlib.contextmanager
def slow_device(
    delay: float = 0.02, size: int = 64 * MIB, sound: int | None = None, *, single: bool = False
) -> Iterator[Device]:
    """Make a loop device that takes ``delay`` seconds for each read, write and flush, up to 128 KiB at a time.

    Reads and writes past its first ``sound`` bytes fail. A ``single`` one does one request at a time, so that
    others wait behind it.
    """
    sweep()
    folder = _RUN / f"{lab_name(next(_numbers))}-disk"
    folder.mkdir()
    order = "single" if single else "many"
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "lab.slow",
            *map(str, (folder, size, delay, size if sound is None else sound, order)),
        ],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        start_new_session=True,  # Ctrl-C is for the lab, which then ends it
    )
    try:
        _wait_for(folder / _FILE, server)
        with _loop(str(folder / _FILE), size, "--direct-io=on") as device:
            yield device._replace(server=server.pid)
    finally:
        server.kill()
        server.communicate()
        _remove(folder)


def sweep() -> None:
    """Remove the slow devices of labs whose process is dead."""
    for folder in _RUN.glob(f"{PREFIX}-*-disk"):
        owner = _OWNER.fullmatch(str(folder))
        if owner and started(int(owner[1])) != int(owner[2]):
            listing = subprocess.run(
                ["losetup", "--noheadings", "--output=NAME,BACK-FILE"], capture_output=True, text=True, check=True
            )
            for name, file in (line.split(maxsplit=1) for line in listing.stdout.splitlines()):
                if file.startswith(f"{folder}/"):
                    subprocess.run(["losetup", "--detach", name], check=False)
            _remove(folder)


@contextlib.contextmanager
def _loop(file: str, size: int, *options: str) -> Iterator[Device]:
    command = ["losetup", "--find", "--show", *options, file]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        raise RuntimeError(f"lab: expected a loop device over {file}, losetup said: {made.stderr.strip()}")
    device = Device(Path(made.stdout.strip()), size)
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device.path], check=True)


def _wait_for(file: Path, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _MOUNTED_BY
    while not file.exists():
        if server.poll() is not None or time.monotonic() > end:
            server.kill()
            said = server.communicate()[1].decode(errors="replace").strip()
            raise RuntimeError(f"lab: expected {file} of a FUSE mount (/dev/fuse, package fuse3), found: {said}")
        time.sleep(0.01)


def _remove(folder: Path) -> None:
    # The kernel keeps a mount whose server is gone.
    subprocess.run(["umount", "--lazy", "--quiet", folder], check=False, capture_output=True)
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()
