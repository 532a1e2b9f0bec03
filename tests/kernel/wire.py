# SPDX-License-Identifier: Apache-2.0
"""Two network namespaces on a veth pair, of which the test's own thread is in the near one."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from pyroute2 import netns

from lab.network import lab_name, remove_namespaces

NEAR, FAR = "10.213.0.1", "10.213.0.2"
PORT = 9
#: Further from 0 than the labs that a process opens.
_NUMBER = 1_000_000


class Wire:
    """``tg0`` here, ``tg1`` in the other namespace; a context manager."""

    def __init__(self, *, queues: tuple[int, int] = (1, 1)) -> None:
        self._lab = lab_name(_NUMBER)
        self._near, self._far = f"{self._lab}-near", f"{self._lab}-far"
        self._queues = queues

    def __enter__(self) -> Self:
        try:
            netns.create(self._near)
            netns.create(self._far)
            self.connect()
        except BaseException:
            remove_namespaces(self._lab)
            raise
        netns.pushns(self._near)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        netns.popns()
        remove_namespaces(self._lab)

    def connect(self, index: int | None = None) -> None:
        """Make the pair, the near end with an index of choice, and give both addresses."""
        chosen = [] if index is None else ["index", str(index)]
        near, far = (["numrxqueues", str(n), "numtxqueues", str(n)] for n in self._queues)
        pair = ["link", "add", *chosen, "name", "tg0", *near, "type", "veth"]
        self._ip(self._near, *pair, "peer", "name", "tg1", *far, "netns", self._far)
        for namespace, device, address in ((self._near, "tg0", NEAR), (self._far, "tg1", FAR)):
            self._ip(namespace, "addr", "add", f"{address}/30", "dev", device)
            self._ip(namespace, "link", "set", device, "up")

    def ip(self, *words: str) -> None:
        """Run ip(8) in the near namespace."""
        self._ip(self._near, *words)

    def ip_far(self, *words: str) -> None:
        """Run ip(8) in the far namespace."""
        self._ip(self._far, *words)

    def in_near(self, *argv: str) -> list[str]:
        """Return the command line that runs something in the near namespace."""
        return ["nsenter", f"--net=/run/netns/{self._near}", *argv]

    def move(self, device: str) -> None:
        """Move a device from the near namespace to the far one."""
        self._ip(self._near, "link", "set", device, "netns", self._far)

    @staticmethod
    def _ip(namespace: str, *words: str) -> None:
        subprocess.run(["ip", "-n", namespace, *words], check=True)

    @contextmanager
    def stream(self) -> Iterator[Stream]:
        """Send datagrams from the far end meanwhile, each of which the near end takes."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taker:
            taker.bind((NEAR, PORT))
            taker.settimeout(10)
            netns.pushns(self._far)
            try:
                sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            finally:
                netns.popns()
            with sender:
                stream = Stream(sender, taker)
                stream.start()
                try:
                    yield stream
                finally:
                    stream.stop()


class Stream(threading.Thread):
    """Sends datagrams in bursts that the ring of a veth holds, and takes all of a burst before the next one."""

    BURST = 32
    MOST = 2_000_000

    def __init__(self, sender: socket.socket, taker: socket.socket) -> None:
        super().__init__(name="stream")
        self._sender, self._taker = sender, taker
        self._ends = threading.Event()
        self.sent = self.taken = 0

    def run(self) -> None:
        """Send and take until the end is asked for."""
        while not self._ends.is_set() and self.sent < self.MOST:
            for _ in range(self.BURST):
                self._sender.sendto(b"tidegate", (NEAR, PORT))
                self.sent += 1
            for _ in range(self.BURST):
                self._taker.recv(64)
                self.taken += 1

    def stop(self) -> None:
        """End after the burst that is under way."""
        self._ends.set()
        self.join()


def index_of(device: str) -> int:
    """Return the index of a device of the near namespace."""
    return socket.if_nametoindex(device)
