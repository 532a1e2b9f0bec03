# SPDX-License-Identifier: Apache-2.0
"""Which path each cgroup id has, also after the cgroup is gone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self

from tidegate.identity.services import KERNEL, UNKNOWN, Service, service
from tidegate.identity.workload import Kind, Workload, workload_of
from tidegate.kernel import layouts
from tidegate.kernel.maps import RingBuffer
from tidegate.kernel.objects import BpfObject, Program, map_health
from tidegate.model.snapshot import MapHealth

_HEAD = layouts.CGROUP_EVENT.size - layouts.CgroupLimit.CGROUP_PATH_MAX
_GONE_KEPT = 4096
#: Bytes of the ring of events, as cgroup.bpf.c has it.
_RING = 512 * 1024
_NAMES_KEPT = 4096
#: A container's name is looked for again and again for so long, in seconds, and so many names at a time.
_NAME_AWAITED = 60.0
_NAMES_AT_A_TIME = 64


def text_of(name: bytes) -> str:
    """Decode a kernel name; bytes that are not UTF-8 and control characters become escapes."""
    text = name.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Event(NamedTuple):
    """A cgroup that appeared or went; ``hierarchy`` is 0 for cgroup2."""

    id: int
    change: layouts.CgroupChange
    path: str
    hierarchy: int = 0


def decode_event(record: bytes) -> Event:
    """Decode one ``struct cgroup_event``."""
    padded = record.ljust(layouts.CGROUP_EVENT.size, b"\0")
    event = layouts.CgroupEvent._make(layouts.CGROUP_EVENT.unpack(padded))
    path = record[_HEAD : _HEAD + event.length].split(b"\0", 1)[0]
    return Event(event.id, layouts.CgroupChange(event.change), text_of(path), event.hierarchy)


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


def tree(host_root: Path, mounted: Path) -> Path:
    """Return the directory of the cgroup tree: the host's, as seen below ``host_root``, else ``mounted``.

    In a container with a cgroup namespace of its own, what is mounted is the container's part of the tree.
    """
    of_host = host_root / mounted.relative_to("/")
    return of_host if (of_host / "cgroup.procs").is_file() else mounted


def _no_name(_: Workload) -> str:
    return ""


Walk = Callable[[], Iterable[tuple[int, str]]]
#: A cgroup: its hierarchy, 0 for cgroup2, and its id in there. Each root has the id 1.
_Key = tuple[int, int]


class Services:
    """The service of each cgroup id; knows every cgroup that lived since the start, however shortly.

    ``walk`` gives the cgroups that are there, ``others`` those of hierarchies of cgroup v1 by their number; a
    service has the same path in each. A cgroup that is gone keeps its name while it is among the last
    4,096 that went or were asked for: its sockets may outlive it. ``name_of`` says what a container is called, or
    an empty string; as engines may write that down after the cgroup is made, it is asked again with each ``apply``
    for a minute, and until then the container goes by its id. ``clock`` is monotonic seconds.
    """

    def __init__(
        self,
        walk: Walk,
        name_of: Callable[[Workload], str] = _no_name,
        clock: Callable[[], float] = time.monotonic,
        others: Mapping[int, Walk] | None = None,
    ) -> None:
        self._walks = {0: walk, **(others or {})}
        self._name_of = name_of
        self._clock = clock
        self._here: dict[_Key, Service] = {}
        self._paths: dict[int, str] = {}
        self._by_service: dict[Service, list[str]] | None = None
        self._gone: dict[_Key, Service] = {}
        self._names: dict[str, str] = {}
        self._unasked: dict[str, Workload] = {}
        self._nameless: dict[str, tuple[Workload, float]] = {}
        self.rescan()

    def rescan(self) -> None:
        """Read all cgroups anew: at the start, and after events were lost."""
        paths = {hierarchy: dict(walk()) for hierarchy, walk in self._walks.items()}
        here = {
            (hierarchy, id_): self._service(path)
            for hierarchy, found in paths.items()
            for id_, path in found.items()
        }
        for key in self._here.keys() - here.keys():
            self._retire(key)
        self._here, self._paths, self._by_service = here, paths[0], None
        self._find_names(len(self._unasked))

    def apply(self, events: Iterable[bytes]) -> None:
        """Take cgroups that appeared or went, as the kernel reported them, and look for names still unknown."""
        for record in events:
            event = decode_event(record)
            key = (event.hierarchy, event.id)
            if event.change is layouts.CgroupChange.REMOVED:
                if key not in self._here:
                    self._here[key] = self._service(event.path)
                self._retire(key)
                self._forget_name(event.path)
            else:
                self._gone.pop(key, None)
                self._here[key] = self._service(event.path)
                if event.hierarchy == 0:
                    self._paths[event.id] = event.path
                    self._by_service = None
        self._find_names(_NAMES_AT_A_TIME)

    def of(self, cgroup: int, hierarchy: int = 0) -> Service:
        """Return the service of a cgroup id of a hierarchy, cgroup2 where none is given.

        All that nobody knows are one service: an id alone leads to nothing, and there may be any number of them.
        """
        if cgroup == layouts.TcpCgroup.KERNEL:
            return KERNEL
        key = (hierarchy, cgroup)
        found = self._here.get(key)
        if found is None and key in self._gone:
            # To the end of the table: what still has traffic is dropped last.
            found = self._gone[key] = self._gone.pop(key)
        return found or UNKNOWN

    def cgroups(self) -> Mapping[Service, Sequence[str]]:
        """Return the paths of the cgroups that are there by service; the same object while nothing changes."""
        if self._by_service is None:
            self._by_service = {}
            for id_, path in self._paths.items():
                self._by_service.setdefault(self._here[0, id_], []).append(path)
        return self._by_service

    def names(self) -> dict[int, str]:
        """Return the service's name of each cgroup2 id that is there."""
        return {id_: found.name for (hierarchy, id_), found in self._here.items() if hierarchy == 0}

    def at(self, path: str) -> Service:
        """Return the service of a cgroup path, as of one in another hierarchy than cgroup2's."""
        return self._service(path)

    def _service(self, path: str) -> Service:
        workload = workload_of(path)
        if workload.kind is not Kind.CONTAINER:
            return service(workload)
        id_ = workload.container_id
        name = self._names.get(id_, "")
        if not name and id_ not in self._nameless:
            self._unasked[id_] = workload
        return service(workload, name)

    def _find_names(self, limit: int) -> None:
        """Ask for at most ``limit`` names, first for those that were never asked for."""
        now = self._clock()
        asked = [(workload, now + _NAME_AWAITED) for workload in islice(self._unasked.values(), limit)]
        asked += islice(self._nameless.values(), limit - len(asked))
        renamed: dict[Service, Service] = {}
        for workload, until in asked:
            id_ = workload.container_id
            self._unasked.pop(id_, None)
            self._nameless.pop(id_, None)
            name = self._name_of(workload)
            if name:
                self._names[id_] = name
                renamed[service(workload)] = service(workload, name)
            elif now < until:
                self._nameless[id_] = (workload, until)
        for table in (self._unasked, self._nameless, self._names):
            _drop_oldest(table, _NAMES_KEPT)
        if renamed:
            for services in (self._here, self._gone):
                services.update({key: renamed[known] for key, known in services.items() if known in renamed})
            self._by_service = None

    def _forget_name(self, path: str) -> None:
        """Drop what is known of a container whose own cgroup went: it may come back under another name."""
        id_ = workload_of(path).container_id
        if id_ and workload_of(path.rpartition("/")[0]).container_id != id_:
            self._names.pop(id_, None)
            self._nameless.pop(id_, None)

    def _retire(self, key: _Key) -> None:
        self._gone[key] = self._here.pop(key)
        hierarchy, id_ = key
        if hierarchy == 0 and self._paths.pop(id_, None) is not None:
            self._by_service = None
        _drop_oldest(self._gone, _GONE_KEPT * len(self._walks))


def _drop_oldest(table: dict[Any, Any], keep: int) -> None:
    """Shorten a table to ``keep`` entries; a dict has its oldest first."""
    while len(table) > keep:
        del table[next(iter(table))]


def sizes(hierarchies: int) -> dict[str, int]:
    """Return the bytes of the ring: each container has a cgroup in each hierarchy."""
    return {"cgroup_events": _RING if hierarchies == 1 else 2 * _RING}


class CgroupWatch:
    """The running cgroup programs: each cgroup that appears or goes is a record."""

    def __init__(self, bpf: BpfObject) -> None:
        self.bpf = bpf
        self._ring = RingBuffer(bpf.maps["cgroup_events"])

    @classmethod
    def start(cls, hierarchies: Iterable[int] = ()) -> Self:
        """Load and attach; follow cgroup2 and these ``hierarchies`` of cgroup v1."""
        followed = {0, *(n for n in hierarchies if n < layouts.CgroupLimit.HIERARCHY_MAX)}
        bpf = BpfObject.named("cgroup")
        try:
            bpf.set_constant("hierarchies", sum(1 << n for n in followed).to_bytes(8, "little"))
            bpf.resize(sizes(len(followed)))
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

    @property
    def programs(self) -> list[Program]:
        """Its programs."""
        return list(self.bpf.programs.values())

    def maps(self) -> dict[str, MapHealth]:
        """Return how large the maps are."""
        return map_health(self.bpf)

    def close(self) -> None:
        """Detach and unload."""
        self._ring.close()
        self.bpf.close()
