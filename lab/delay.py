# SPDX-License-Identifier: Apache-2.0
"""A path that delays every packet, between two namespaces: a pair of TUN devices and a process between them.

For hosts without netem. Run as ``python -m lab.delay CGROUP NAMESPACE NAMESPACE MIN MAX SEED``
(seconds); says ``ready`` on stdout once both devices exist.
"""

from __future__ import annotations

import errno
import fcntl
import heapq
import itertools
import os
import pathlib
import random
import select
import struct
import sys
import time

from pyroute2 import netns

from lab.lifeline import end_with_the_lab

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
DEVICE = "slow0"
_MTU = 1500


def open_tun(namespace: str) -> int:
    """Make the device in a namespace and return its descriptor; the calling thread stays in the namespace."""
    netns.setns(namespace)
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    return fd


class Path:
    """Moves packets between two descriptors, each ``low`` to ``high`` seconds late, evenly spread."""

    def __init__(self, left: int, right: int, low: float, high: float, seed: int) -> None:
        self._other = {left: right, right: left}
        self._low, self._high, self._random = low, high, random.Random(seed)
        self._waiting: list[tuple[float, int, int, bytes]] = []
        self._order = itertools.count()

    def run(self) -> None:
        """Forward until killed."""
        while True:
            now = time.monotonic()
            patience = max(self._waiting[0][0] - now, 0) if self._waiting else None
            readable, _, _ = select.select(list(self._other), [], [], patience)
            for fd in readable:
                self._take(fd)
            self._deliver()

    def _take(self, fd: int) -> None:
        now = time.monotonic()
        while True:
            try:
                packet = os.read(fd, _MTU + 40)
            except BlockingIOError:
                return
            due = now + self._random.uniform(self._low, self._high)
            heapq.heappush(self._waiting, (due, next(self._order), self._other[fd], packet))

    def _deliver(self) -> None:
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            _, _, fd, packet = heapq.heappop(self._waiting)
            try:
                os.write(fd, packet)
            except OSError as error:
                if error.errno != errno.EIO:  # the far device is down, as while the path is built: nobody hears it
                    raise


def main() -> None:
    """Open both devices and forward."""
    cgroup, left, right, low, high, seed = sys.argv[1:]
    pathlib.Path(cgroup, "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
    end_with_the_lab()
    path = Path(open_tun(left), open_tun(right), float(low), float(high), int(seed))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    path.run()


if __name__ == "__main__":
    main()
