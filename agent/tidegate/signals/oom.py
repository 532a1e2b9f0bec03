# SPDX-License-Identifier: Apache-2.0
"""Processes that the kernel killed for want of memory: whose they were, whatever became of their cgroup."""

from __future__ import annotations

from typing import NamedTuple, Self

from tidegate.kernel import layouts
from tidegate.kernel.maps import RingBuffer
from tidegate.kernel.objects import BpfObject, map_health
from tidegate.model.snapshot import MapHealth

_HEAD = layouts.OOM_EVENT.size - layouts.OomLimit.OOM_DEPTH * layouts.OomLimit.OOM_NAME_MAX


class OomKill(NamedTuple):
    """One kill: the victim's cgroup2 id, process and name; ``path`` of its memory cgroup where that is v1's."""

    cgroup: int
    pid: int
    comm: bytes
    path: bytes | None


def decode(record: bytes) -> OomKill:
    """Turn one ``struct oom_event`` into a kill."""
    padded = record.ljust(layouts.OOM_EVENT.size, b"\0")
    event = layouts.OomEvent._make(layouts.OOM_EVENT.unpack(padded))
    size = layouts.OomLimit.OOM_NAME_MAX
    names = [event.path[i * size : (i + 1) * size].split(b"\0", 1)[0] for i in range(event.levels)]
    path = b"/" + b"/".join(reversed(names)) if names else None
    return OomKill(event.cgroup, event.pid, event.comm.split(b"\0", 1)[0], path)


class OomSignal:
    """The running programs, and the kills since the last read."""

    def __init__(self, bpf: BpfObject) -> None:
        self.bpf = bpf
        self._ring = RingBuffer(bpf.maps["oom_events"])

    @classmethod
    def start(cls) -> Self:
        """Load and attach."""
        bpf = BpfObject.named("oom")
        try:
            bpf.load().attach()
            return cls(bpf)
        except BaseException:
            bpf.close()
            raise

    def read(self) -> list[OomKill]:
        """Return the kills since the last read, oldest first."""
        return [decode(record) for record in self._ring.consume()]

    def losses(self) -> dict[str, int]:
        """Return how many events found no place in the ring."""
        return {"oom_events": self.bpf.variable("oom_events_lost")}

    def maps(self) -> dict[str, MapHealth]:
        """Return how large the maps are."""
        return map_health(self.bpf)

    def close(self) -> None:
        """Detach and unload."""
        self._ring.close()
        self.bpf.close()
