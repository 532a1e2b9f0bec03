# SPDX-License-Identifier: Apache-2.0
"""Block devices of the lab: in memory, or as slow as wanted, through a loop device over a FUSE file.

Run as ``python -m lab.disk MOUNTPOINT SIZE DELAY`` it serves the slow file (bytes, seconds) until its stdin ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lab.lifeline import end_with_the_lab
from lab.network import PREFIX, lab_name, started

ROOT = Path(__file__).parents[1]
MIB = 1 << 20
_RUN = Path("/run")
_FILE = "slow"
_OWNER = re.compile(rf"{_RUN}/{PREFIX}-(\d+)-(\d+)-\d+-disk")
_MOUNTED_BY = 20.0
_PR_SET_IO_FLUSHER = 57  # prctl(2)
_numbers = itertools.count()


class Device(NamedTuple):
    """A block device that is there for the time of a ``with`` block."""

    path: Path
    size: int

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
def slow_device(delay: float = 0.02, size: int = 64 * MIB) -> Iterator[Device]:
    """Make a loop device that takes ``delay`` seconds for each read, write and flush, up to 128 KiB at a time."""
    sweep()
    folder = _RUN / f"{lab_name(next(_numbers))}-disk"
    folder.mkdir()
    server = subprocess.Popen(
        [sys.executable, "-m", "lab.disk", str(folder), str(size), str(delay)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        start_new_session=True,  # Ctrl-C is for the lab, which then ends it
    )
    try:
        _wait_for(folder / _FILE, server)
        with _loop(str(folder / _FILE), size, "--direct-io=on") as device:
            yield device
    finally:
        server.kill()
        server.communicate()
        _remove(folder)


def drop_caches() -> None:
    """Have the next reads come from their devices."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1", encoding="ascii")


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
                    subprocess.run(["losetup", "--detach", name], check=True)
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
            raise RuntimeError(
                f"lab: expected {file}, its server did not mount it; is /dev/fuse there, and fuse3?"
            )
        time.sleep(0.01)


def _remove(folder: Path) -> None:
    # The kernel keeps a mount whose server is gone.
    subprocess.run(["umount", "--lazy", "--quiet", folder], check=False, capture_output=True)
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()


def serve(mountpoint: str, size: int, delay: float) -> None:
    """Serve one file whose reads, writes and flushes take their time."""
    import mfusepy  # noqa: PLC0415  (needs libfuse, which only this process has to have)

    class Slow(mfusepy.Operations):  # type: ignore[misc]
        """The file, and the folder that it is in."""

        use_ns = True

        def __init__(self) -> None:
            self._content = bytearray(size)

        def getattr(self, path: str, *_: Any) -> dict[str, Any]:
            """Describe one of the two."""
            if path == "/":
                return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}
            if path != f"/{_FILE}":
                raise mfusepy.FuseOSError(2)
            return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": size}

        def readdir(self, *_: Any) -> list[str]:
            """List the folder."""
            return [".", "..", _FILE]

        def open(self, _: str, fi: Any) -> int:
            """Have each request come here, and none from the page cache."""
            fi.direct_io = True
            return 0

        def read(self, _: str, length: int, offset: int, *__: Any) -> bytes:
            """Read after the delay."""
            time.sleep(delay)
            return bytes(self._content[offset : offset + length])

        def write(self, _: str, data: bytes, offset: int, *__: Any) -> int:
            """Write after the delay."""
            time.sleep(delay)
            self._content[offset : offset + len(data)] = data
            return len(data)

        def fsync(self, *_: Any) -> int:
            """Flush after the delay."""
            time.sleep(delay)
            return 0

    end_with_the_lab()
    # Else what it needs of memory may wait for write-back to its own device.
    ctypes.CDLL(None).prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0)
    mfusepy.FUSE(Slow(), mountpoint, raw_fi=True, foreground=True, fsname="tidegate-lab")


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
