# SPDX-License-Identifier: Apache-2.0
"""Requests of block devices: how long the device and the queue take, whose they are, what is under way."""

from __future__ import annotations

import errno
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Self

from tidegate.errors import KernelError
from tidegate.kernel import layouts
from tidegate.kernel.maps import SwappedTables
from tidegate.kernel.objects import BpfObject, Link, map_health
from tidegate.model.record import DiskRecord
from tidegate.model.snapshot import MapHealth
from tidegate.signals.counts import Counts, CountsDecoder, difference, read_counter
from tidegate.signals.disk_fields import COUNTERS, HISTOGRAMS, OPERATIONS

#: Rows that are read at a time.
BATCH = 64
#: Programs at events that Linux has since 6.5 and 5.11; without them, queue times need io accounting.
OPTIONAL = ("disk_made", "disk_merged")
#: Programs for devices that take bios as they are; the end first, so that none is begun whose end is missed.
BIOS = ("disk_bio_ended", "disk_bio_begun")
#: How a load fails where an event is missing, or has other arguments.
_OTHER_EVENTS = (errno.ESRCH, errno.EINVAL, errno.EACCES)


#: What older kernels call for, one after the other: programs that are left out, and constants that are set.
_VARIANTS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    ((), ()),
    (OPTIONAL, ()),
    (OPTIONAL, ("queue_before_bio",)),
    (OPTIONAL, ("queue_before_bio", "queue_before_request")),
)


def sizes(max_rows: int, max_requests: int) -> dict[str, int]:
    """Return how many entries the maps have that are sized by the config."""
    rows = dict.fromkeys(("disk_rows_a", "disk_rows_b"), max_rows)
    return rows | dict.fromkeys(("disk_requests", "disk_bios"), max_requests)


def load(max_rows: int, max_requests: int) -> tuple[BpfObject, str]:
    """Load the programs, not yet attached.

    Without those that are optional where the kernel lacks their events; the second value is the reason then, else
    empty.
    """
    for left_out, constants in _VARIANTS:
        try:
            bpf = _load(max_rows, max_requests, left_out, constants)
        except KernelError as error:
            if error.errno not in _OTHER_EVENTS or constants == _VARIANTS[-1][1]:
                raise
        else:
            break
    missing = "the kernel doesn't show when a request is made (block_io_start, Linux 6.5)"
    return bpf, missing if left_out else ""


def _load(max_rows: int, max_requests: int, left_out: Iterable[str], constants: Iterable[str]) -> BpfObject:
    bpf = BpfObject.named("disk")
    try:
        bpf.resize(sizes(max_rows, max_requests))
        for name in constants:
            bpf.set_constant(name, bytes([True]))
        for name in left_out:
            bpf.programs[name].skip()
        row = (layouts.DISK_KEY.size, layouts.DISK_COUNTS.size)
        rows = dict.fromkeys(("disk_rows_a", "disk_rows_b", "disk_other"), row)
        return bpf.load(rows | {"disk_requests": (8, layouts.DISK_REQUEST.size)})
    except BaseException:
        bpf.close()
        raise


class DiskSignal:
    """The running disk programs and what they have counted since the last read."""

    def __init__(self, bpf: BpfObject) -> None:
        self.bpf = bpf
        tables = [bpf.maps["disk_rows_a"], bpf.maps["disk_rows_b"]]
        self._rows = SwappedTables(bpf.maps["disk_rows"], tables, BATCH)
        self._walk = bpf.programs["disk_walk"].attach_iterator(bpf.maps["disk_requests"])
        bpf.links.append(self._walk)
        self._decoder = CountsDecoder(COUNTERS, HISTOGRAMS, BATCH)
        self._as_needed: dict[str, Link] = {}
        self._other: dict[bytes, Counts] = {}
        self.rows = 0
        self.requests = 0

    @classmethod
    def start(cls, max_rows: int, max_requests: int) -> Self:
        """Load and attach.

        ``max_rows`` is how many (cgroup, device, operation) one interval may have, ``max_requests`` how many
        requests are followed at a time.
        """
        bpf, _ = load(max_rows, max_requests)
        try:
            for program in bpf.programs.values():
                if program.is_loaded and not program.is_iterator and program.name not in BIOS + OPTIONAL:
                    bpf.links.append(program.attach())
            signal = cls(bpf)
            bpf.set_variable("attached_ns", time.monotonic_ns())
            return signal
        except BaseException:
            bpf.close()
            raise

    def read(self) -> list[DiskRecord]:
        """Return what was counted since the last read."""
        records: list[DiskRecord] = []
        for _, keys, values in self._rows.drain():
            for key, counts in zip(_keys(keys), self._decoder.counts(values), strict=True):
                records.append(_record(key, counts, key.cgroup))
        self.rows = len(records)
        records.extend(self._read_other())
        return records

    def in_flight(self) -> Counter[tuple[int, int, str]]:
        """Count the requests that devices have, by (disk, device, operation).

        Requests that have ended, though no program saw that, are counted as such meanwhile, once they are a second
        old: to be called before :meth:`read`.
        """
        keys = Counter(layouts.DISK_KEY.iter_unpack(self._walk.read()))
        self.requests = sum(keys.values())
        if BIOS[0] in self._as_needed:
            for _, _, values in self.bpf.maps["disk_bios"].batches():
                begun = map(layouts.DiskRequest._make, layouts.DISK_REQUEST.iter_unpack(values))
                keys.update(layouts.DISK_KEY.unpack(bio.key) for bio in begun)
        found: Counter[tuple[int, int, str]] = Counter()
        for key, count in keys.items():
            known = layouts.DiskKey._make(key)
            found[known.disk, known.device, OPERATIONS[known.operation]] += count
        return found

    def follow(self, *, bios: bool, making: bool) -> None:
        """Attach what only some hosts need: it costs something for each bio or request of every device.

        ``bios``: some devices take bios as they are. ``making``: some devices are without io accounting,
        so that the kernel does not note when their requests were made.
        """
        for names, wanted in ((BIOS, bios), (OPTIONAL, making)):
            for name in names:
                self._attach_if(name, wanted)

    def _attach_if(self, name: str, wanted: bool) -> None:
        program, link = self.bpf.programs[name], self._as_needed.get(name)
        if wanted and link is None and program.is_loaded:
            self._as_needed[name] = program.attach()
            self.bpf.links.append(self._as_needed[name])
        elif not wanted and link is not None:
            link.close()
            self.bpf.links.remove(self._as_needed.pop(name))

    def losses(self) -> dict[str, int]:
        """Return what the programs had to leave out since they were loaded."""
        return {
            f"disk_{reason.name.lower()}": read_counter(self.bpf.maps["disk_losses"], reason)
            for reason in layouts.DiskLoss
            if reason is not layouts.DiskLoss.COUNT
        }

    def maps(self) -> dict[str, MapHealth]:
        """Return how full the maps are; the two tables and their selector are one, ``disk_rows``."""
        maps = map_health(self.bpf)
        parts = [maps.pop(name) for name in ("disk_rows_a", "disk_rows_b", "disk_rows")]
        size = sum(part.bytes or 0 for part in parts)
        requests = maps.pop("disk_requests")
        return {
            "disk_rows": MapHealth(entries=self.rows, limit=parts[0].limit, bytes=size),
            "disk_requests": MapHealth(entries=self.requests, limit=requests.limit, bytes=requests.bytes),
            **maps,
        }

    def close(self) -> None:
        """Detach and unload."""
        self.bpf.close()

    def _read_other(self) -> Iterator[DiskRecord]:
        for _, keys, values in self.bpf.maps["disk_other"].batches(BATCH):
            size = layouts.DISK_KEY.size
            raw = [bytes(keys[i : i + size]) for i in range(0, len(keys), size)]
            for key, now in zip(raw, self._decoder.counts(values), strict=True):
                before = self._other.get(key)
                if now == before:
                    continue
                self._other[key] = now
                (known,) = _keys(key)
                yield _record(known, difference(now, before) if before else now, None)


def _keys(keys: Any) -> Iterator[layouts.DiskKey]:
    return map(layouts.DiskKey._make, layouts.DISK_KEY.iter_unpack(keys))


def _record(key: layouts.DiskKey, counts: Counts, cgroup: int | None) -> DiskRecord:
    return DiskRecord(
        cgroup=cgroup,
        hierarchy=key.hierarchy,
        disk=key.disk,
        device=key.device,
        operation=OPERATIONS[key.operation],
        counters=counts[0],
        histograms=counts[1],
    )
