# SPDX-License-Identifier: Apache-2.0
"""HTTP/1 responses of the endpoints of pools: which status, and how long until the first byte."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from tidegate.errors import KernelError
from tidegate.kernel import layouts
from tidegate.kernel.endpoints import SHARED
from tidegate.kernel.maps import Map
from tidegate.kernel.namespaces import network_namespaces, run_in_each
from tidegate.kernel.objects import BpfObject, Program, map_health
from tidegate.model.fields import Role
from tidegate.model.record import Record
from tidegate.model.snapshot import MapHealth
from tidegate.signals.counts import Counts, CountsDecoder, difference
from tidegate.signals.http_fields import COUNTERS, HISTOGRAMS
from tidegate.signals.tcp import endpoint_text

#: Rows that are read at a time.
BATCH = 256
#: A row is removed after so many seconds without a response.
IDLE = 900.0
_ATTACHED, _ADOPTS, _ENDED = ("http_out", "http_in"), "http_adopt", "http_ended"


def sizes(max_rows: int) -> dict[str, int]:
    """Return how many entries the maps have that are sized by the config."""
    return {"http_rows": max_rows}


def load(max_rows: int, shared: Mapping[str, Map] | None = None) -> tuple[BpfObject, str]:
    """Load the programs, not yet attached; with maps of another object where given.

    Without what takes in connections that are open already, where the kernel refuses that; the second value is the
    reason then, else empty.
    """
    try:
        return _load(max_rows, shared, adopts=True), ""
    except KernelError as error:
        if error.errno != errno.EINVAL:
            raise
    return _load(max_rows, shared, adopts=False), (
        "no iterator may keep things with sockets (Linux 5.11), so connections of before aren't followed"
    )


def _load(max_rows: int, shared: Mapping[str, Map] | None, *, adopts: bool) -> BpfObject:
    bpf = BpfObject.named("http")
    try:
        if shared is not None:
            bpf.share({name: shared[name] for name in SHARED})
        bpf.resize(sizes(max_rows))
        if not adopts:
            for name in (_ADOPTS, _ENDED):
                bpf.programs[name].skip()
        return bpf.load({"http_rows": (layouts.HTTP_KEY.size, layouts.HTTP_COUNTS.size)})
    except BaseException:
        bpf.close()
        raise


class HttpSignal:
    """The running HTTP programs and what they have counted since the last read."""

    def __init__(self, bpf: BpfObject) -> None:
        self.bpf = bpf
        self._rows = bpf.maps["http_rows"]
        self._decoder = CountsDecoder(COUNTERS, HISTOGRAMS, BATCH)
        self._seen: dict[bytes, Counts] = {}
        self._touched: dict[bytes, float] = {}
        self._silence = bpf.programs["http_silence"].attach_iterator(bpf.maps["http_sockets"])
        bpf.links.append(self._silence)

    @classmethod
    def start(cls, shared: Mapping[str, Map], cgroup2: Path, max_rows: int) -> Self:
        """Load, and attach to all sockets below ``cgroup2``.

        ``shared`` are maps of another object, of which it takes the watched endpoints; ``max_rows`` is how many
        (cgroup, endpoint) are kept.
        """
        bpf, _ = load(max_rows, shared)
        try:
            for name in _ATTACHED:
                bpf.links.append(bpf.programs[name].attach_cgroup(cgroup2))
            if bpf.programs[_ENDED].is_loaded:
                bpf.links.append(bpf.programs[_ENDED].attach())
            return cls(bpf)
        except BaseException:
            bpf.close()
            raise

    def adopt(self) -> list[str]:
        """Follow the connections to watched endpoints that are open already.

        Returns the reasons for the network namespaces that could not be entered; new connections of those are
        followed all the same.
        """
        adopts = self.bpf.programs[_ADOPTS]
        if not adopts.is_loaded:
            return []
        with adopts.attach_iterator() as link:
            return run_in_each(list(network_namespaces().values()), link.read)

    def find_silence(self) -> int:
        """Have it told of each request that has waited too long; return how many connections are followed."""
        return len(self._silence.read())

    def read(self, now: float) -> list[Record]:
        """Return what was counted since the last read; ``now`` is monotonic seconds.

        Rows that nothing was added to for so long (IDLE) are removed: cgroups and endpoints come and go.
        """
        found: dict[bytes, Counts] = {}
        records = []
        for count, keys, values in self._rows.batches(BATCH):
            size = layouts.HTTP_KEY.size
            for n, counts in zip(range(count), self._decoder.counts(values), strict=True):
                key = bytes(keys[n * size : (n + 1) * size])
                found[key] = counts
                if (record := self._record(key, counts)) is not None:
                    records.append(record)
                    self._touched[key] = now
        for key in [key for key, touched in self._touched.items() if now - touched > IDLE]:
            del self._touched[key]
            if found.pop(key, None) is not None:
                with contextlib.suppress(KeyError):
                    del self._rows[key]
        self._seen = found
        return records

    def _record(self, key: bytes, counts: Counts) -> Record | None:
        before = self._seen.get(key)
        if before == counts:
            return None
        counters, histograms = difference(counts, before) if before else counts
        cgroup, endpoint = layouts.HTTP_KEY.unpack(key)
        address, port, family, _, _ = layouts.POOL_KEY.unpack(endpoint)
        text = endpoint_text(layouts.TcpRole.CLIENT, family, address, port)
        return Record(cgroup, Role.CLIENT, text, counters, histograms)

    @property
    def programs(self) -> Iterator[Program]:
        """Its programs."""
        yield from (program for program in self.bpf.programs.values() if program.is_loaded)

    def maps(self) -> dict[str, MapHealth]:
        """Return how full its own maps are."""
        return {name: health for name, health in map_health(self.bpf).items() if name not in SHARED}

    def close(self) -> None:
        """Detach and unload."""
        self.bpf.close()
