# SPDX-License-Identifier: Apache-2.0
"""Which path each cgroup id has, also after the cgroup is gone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Self

from tidegate.identity.services import Service, service_of
from tidegate.kernel import layouts
from tidegate.kernel.maps import RingBuffer
from tidegate.kernel.objects import BpfObject, map_health
from tidegate.model.snapshot import MapHealth

_HEAD = layouts.CGROUP_EVENT.size - layouts.CgroupLimit.CGROUP_PATH_MAX
_GONE_KEPT = 4096


def text_of(name: bytes) -> str:
    """Decode a kernel name; bytes that are not UTF-8 and control characters become escapes."""
    text = name.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def decode_event(record: bytes) -> tuple[int, layouts.CgroupChange, str]:
    """Turn one ``struct cgroup_event`` into (id, change, path)."""
    padded = record.ljust(layouts.CGROUP_EVENT.size, b"\0")
    event = layouts.CgroupEvent._make(layouts.CGROUP_EVENT.unpack(padded))
    path = record[_HEAD : _HEAD + event.length].split(b"\0", 1)[0]
    return event.id, layouts.CgroupChange(event.change), text_of(path)


def walk(root: Path) -> Iterator[tuple[int, str]]:
    """Yield (id, path below ``root``) of every cgroup; one that goes away meanwhile is left out."""
    top = os.fsencode(root)
    pending = [(top, b"/")]
    try:
        yield os.stat(top).st_ino, "/"
    except OSError:
        return
    while pending:
        directory, path = pending.pop()
        try:
            entries = [e for e in os.scandir(directory) if e.is_dir(follow_symlinks=False)]
        except OSError:
            continue
        for entry in entries:
            below = path.rstrip(b"/") + b"/" + entry.name
            pending.append((entry.path, below))
            yield entry.inode(), text_of(below)


class Services:
    """The service of each cgroup id; knows every cgroup that lived since the start, however shortly.

    ``walk`` gives the cgroups that are there. A cgroup that is gone keeps its name while it is among the last
    4,096 that went: its sockets may outlive it.
    """

    def __init__(self, walk: Callable[[], Iterable[tuple[int, str]]]) -> None:
        self._walk = walk
        self._here: dict[int, Service] = {}
        self._gone: dict[int, Service] = {}
        self.rescan()

    def rescan(self) -> None:
        """Read all cgroups anew: at the start, and after events were lost."""
        here = {id_: service_of(path) for id_, path in self._walk()}
        for id_ in self._here.keys() - here.keys():
            self._retire(id_)
        self._here = here

    def apply(self, events: Iterable[bytes]) -> None:
        """Take cgroups that appeared or went, as the kernel reported them."""
        for record in events:
            id_, change, path = decode_event(record)
            if change is layouts.CgroupChange.REMOVED:
                self._here.setdefault(id_, service_of(path))
                self._retire(id_)
            else:
                self._here[id_] = service_of(path)

    def of(self, cgroup: int) -> Service:
        """Return the service of a cgroup id; one that nobody knows is named by its number."""
        return self._here.get(cgroup) or self._gone.get(cgroup) or Service(f"cgroup:{cgroup}")

    def _retire(self, id_: int) -> None:
        self._gone[id_] = self._here.pop(id_)
        while len(self._gone) > _GONE_KEPT:
            del self._gone[next(iter(self._gone))]


class CgroupWatch:
    """The running cgroup programs: each cgroup of cgroup2 that appears or goes is a record."""

    def __init__(self, bpf: BpfObject) -> None:
        self.bpf = bpf
        self._ring = RingBuffer(bpf.maps["cgroup_events"])

    @classmethod
    def start(cls) -> Self:
        """Load and attach."""
        bpf = BpfObject.named("cgroup")
        try:
            bpf.load().attach()
            return cls(bpf)
        except BaseException:
            bpf.close()
            raise

    def read(self) -> list[bytes]:
        """Return the events since the last read, oldest first."""
        return self._ring.consume()

    def losses(self) -> dict[str, int]:
        """Return how many events found no place in the ring."""
        return {"cgroup_events": self.bpf.variable("cgroup_events_lost")}

    def maps(self) -> dict[str, MapHealth]:
        """Return how large the maps are."""
        return map_health(self.bpf)

    def close(self) -> None:
        """Detach and unload."""
        self._ring.close()
        self.bpf.close()
