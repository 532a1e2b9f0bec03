# SPDX-License-Identifier: Apache-2.0
"""A FUSE file that takes its time, for lab/disk.py.

Run as ``python -m lab.slow MOUNTPOINT SIZE DELAY SOUND ORDER`` (bytes, seconds, bytes; order is ``single``, for
one request at a time, or ``many``); serves until its stdin ends.
"""

from __future__ import annotations

import ctypes
import errno
import stat
import sys
import time
from typing import Any

import mfusepy

from lab.lifeline import end_with_the_lab

_FILE = "slow"
_PR_SET_IO_FLUSHER = 57  # prctl(2)


class SlowFile(mfusepy.Operations):  # type: ignore[misc]
    """The file, in memory, and the folder that it is in; past its first ``sound`` bytes it fails."""

    use_ns = True

    def __init__(self, size: int, delay: float, sound: int) -> None:
        self._content = bytearray(size)
        self._delay, self._sound = delay, sound
        self._is_dirty = False

    def getattr(self, path: str, *_: Any) -> dict[str, Any]:
        """Describe one of the two."""
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}
        if path != f"/{_FILE}":
            raise mfusepy.FuseOSError(errno.ENOENT)
        return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": len(self._content)}

    def readdir(self, *_: Any) -> list[str]:
        """List the folder."""
        return [".", "..", _FILE]

    def open(self, _: str, fi: Any) -> int:
        """Have each request come here, and none from the page cache."""
        fi.direct_io = True
        return 0

    def read(self, _: str, length: int, offset: int, *__: Any) -> bytes:
        """Read after the delay."""
        self._take_time(offset + length)
        return bytes(self._content[offset : offset + length])

    def write(self, _: str, data: bytes, offset: int, *__: Any) -> int:
        """Write after the delay."""
        self._take_time(offset + len(data))
        self._content[offset : offset + len(data)] = data
        self._is_dirty = True
        return len(data)

    def fsync(self, *_: Any) -> int:
        """Flush after the delay, if there is anything to flush."""
        if self._is_dirty:
            self._is_dirty = False
            time.sleep(self._delay)
        return 0

    def _take_time(self, end: int) -> None:
        time.sleep(self._delay)
        if end > self._sound:
            raise mfusepy.FuseOSError(errno.EIO)


def main() -> None:
    """Serve."""
    mountpoint, size, delay, sound, order = sys.argv[1:]
    end_with_the_lab()
    # Else what it needs of memory may wait for write-back to its own device.
    ctypes.CDLL(None).prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0)
    file = SlowFile(int(size), float(delay), int(sound))
    single = order == "single"
    mfusepy.FUSE(file, mountpoint, raw_fi=True, foreground=True, nothreads=single, fsname="tidegate-lab")


if __name__ == "__main__":
    main()
