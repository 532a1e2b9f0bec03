# SPDX-License-Identifier: Apache-2.0
"""TCP connections: who connects to whom, what fails and why, how much flows, how long it takes, what is lost."""

from __future__ import annotations

import errno
import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_ntop
from struct import Struct
from typing import Any, Self

from tidegate.errors import KernelError
from tidegate.kernel import layouts
from tidegate.kernel.maps import SwappedTables
from tidegate.kernel.namespaces import network_namespaces, run_in_each
from tidegate.kernel.objects import BpfObject, Program, map_health
from tidegate.model.fields import Role
from tidegate.model.record import Record
from tidegate.model.snapshot import MapHealth
from tidegate.signals.counts import Counts, CountsDecoder, difference, read_counter
from tidegate.signals.tcp_fields import COUNTERS, HISTOGRAMS

#: Machines whose CPUs show stores in their order.
_IN_ORDER = ("x86_64", "i686")
#: Rows that are read at a time.
BATCH = 256
_ROLES = {layouts.TcpRole.CLIENT: Role.CLIENT, layouts.TcpRole.SERVER: Role.SERVER}
#: What stands behind the counters: the shortest round trip and a network namespace.
_LEVELS, _LEVELS_AT = Struct("<2I"), 8 * COUNTERS


@lru_cache(maxsize=65536)
def endpoint_text(role: int, family: int, address: bytes, port: int) -> str:
    """Return the listening side as people write it: ``10.0.0.6:5000``, ``[fd00::6]:5000``, ``:5000``.

    ``:*`` is any port of this node on which nobody listens.
    """
    if role == layouts.TcpRole.SERVER:
        return f":{port or '*'}"
    if family == 4:
        return f"{inet_ntop(AF_INET, address[:4])}:{port}"
    return f"[{inet_ntop(AF_INET6, address)}]:{port}"


class Decoder:
    """Turns the bytes of keys and values, each one after the other, into records."""

    def __init__(self) -> None:
        self._counts = CountsDecoder(COUNTERS, HISTOGRAMS, BATCH, between=_LEVELS.size)

    def records(self, keys: Any, values: Any) -> Iterator[Record]:
        """Decode a batch of at most ``BATCH`` rows."""
        rows = zip(layouts.TCP_KEY.iter_unpack(keys), self.counts(values), strict=True)
        for i, ((cgroup, address, port, role, family, _), (counters, histograms)) in enumerate(rows):
            levels = _LEVELS.unpack_from(values, i * layouts.TCP_COUNTS.size + _LEVELS_AT)
            endpoint = endpoint_text(role, family, address, port)
            yield Record(cgroup, _ROLES[role], endpoint, counters, histograms, *levels)

    def counts(self, values: Any) -> Iterator[Counts]:
        """Decode the values of a batch: each ``struct tcp_counts`` as (counters, histograms)."""
        return self._counts.counts(values)


def sizes(max_rows: int, max_sockets: int, max_ports: int, max_endpoints: int = 1024) -> dict[str, int]:
    """Return how many entries the maps have that are sized by the config.

    The template in tcp_rows keeps its size: since 5.10 (134fede4eecf) inner hashes may differ in it.
    """
    rows = dict.fromkeys(("tcp_rows_a", "tcp_rows_b"), max_rows)
    return rows | {
        "tcp_sockets": max_sockets,
        "tcp_ports": max_ports,
        "pool_endpoints": max_endpoints,
        "pool_counts": max_endpoints,
    }


def load(
    max_rows: int, max_sockets: int, max_ports: int = 4096, max_endpoints: int = 1024
) -> tuple[BpfObject, str]:
    """Load the programs, not yet attached.

    Without the walk where the kernel refuses that; the second value is the reason then, else empty.
    """
    try:
        return _load(sizes(max_rows, max_sockets, max_ports, max_endpoints), walks=True), ""
    except KernelError as error:
        if error.errno != errno.EINVAL:
            raise
        refusal = error
    # What else may be wrong is wrong without it too, and then raised.
    bpf = _load(sizes(max_rows, max_sockets, max_ports, max_endpoints), walks=False)
    verdict = next((line for line in reversed(refusal.log) if not line.startswith("libbpf:")), str(refusal))
    return bpf, f"the kernel refuses the walk over open connections ({verdict.strip()})"


def _load(entries: Mapping[str, int], *, walks: bool) -> BpfObject:
    """Load with the walk, or with what counts the ports alone instead of it."""
    bpf = BpfObject.named("tcp")
    try:
        bpf.resize(entries)
        bpf.set_constant("stores_in_order", bytes([platform.machine() in _IN_ORDER]))
        bpf.programs["tcp_ports_walk" if walks else "tcp_walk"].skip()
        if not walks:
            bpf.set_constant("walks", bytes(1))
        row = (layouts.TCP_KEY.size, layouts.TCP_COUNTS.size)
        return bpf.load({"tcp_rows_a": row, "tcp_rows_b": row, "tcp_other": (4, row[1])})
    except BaseException:
        bpf.close()
        raise


class TcpSignal:
    """The running TCP programs and what they have counted since the last read."""

    def __init__(self, bpf: BpfObject) -> None:
        self.bpf = bpf
        tables = [bpf.maps["tcp_rows_a"], bpf.maps["tcp_rows_b"]]
        self._rows = SwappedTables(bpf.maps["tcp_rows"], tables, BATCH)
        self.walks = bpf.programs["tcp_walk"].is_loaded
        walk = bpf.programs["tcp_walk" if self.walks else "tcp_ports_walk"]
        self._walk = walk.attach_iterator(bpf.maps["tcp_sockets"])
        bpf.links.append(self._walk)
        self._decoder = Decoder()
        self._other = bpf.maps["tcp_other"]
        self._seen_other = [bytes(self._other.value_size)] * layouts.TcpRole.COUNT
        self.rows = 0
        self.sockets = 0
        self.unadopted: list[str] = []

    @classmethod
    def start(cls, max_rows: int, max_sockets: int, max_ports: int = 4096, max_endpoints: int = 1024) -> Self:
        """Load and attach.

        ``max_rows`` is how many (service, role, endpoint) one interval may have, ``max_sockets`` how many
        connections are followed at a time, ``max_ports`` how many (service, source, upstream) may hold ports,
        ``max_endpoints`` how many endpoints of pools may be watched.
        """
        bpf, _ = load(max_rows, max_sockets, max_ports, max_endpoints)
        try:
            signal = cls(bpf.attach())
            signal.adopt()
        except BaseException:
            bpf.close()
            raise
        return signal

    def adopt(self) -> None:
        """Take in the connections that are open already, of every network namespace that may be entered.

        The reasons for those that may not are in ``unadopted``; their connections are taken in at the first that
        happens to them. Where there are none, a connection that turns up later is new.
        """
        with self.bpf.programs["tcp_adopt"].attach_iterator() as link:
            self.unadopted = run_in_each(list(network_namespaces().values()), link.read)
        if not self.unadopted:
            self.bpf.set_variable("all_are_known", 1)

    def walk(self) -> None:
        """Count what open connections have done since the last walk, and their ports: half of :meth:`read`.

        Where the kernel refuses that (:attr:`walks`), their ports alone.
        """
        self.sockets = len(self._walk.read())

    def read(self) -> list[Record]:
        """Return what was counted since the last read, the progress of open connections included."""
        self.walk()
        records: list[Record] = []
        for _, keys, values in self._rows.drain():
            records.extend(self._decoder.records(keys, values))
        self.rows = len(records)
        records.extend(self._read_other())
        return records

    def open_connections(self) -> Counter[tuple[int, Role, str]]:
        """Count what is open, by (cgroup, role, endpoint)."""
        with self.bpf.programs["tcp_open"].attach_iterator(self.bpf.maps["tcp_sockets"]) as link:
            keys = Counter(layouts.TCP_KEY.iter_unpack(link.read()))
        return Counter(
            {
                (cgroup, _ROLES[role], endpoint_text(role, family, address, port)): count
                for (cgroup, address, port, role, family, _), count in keys.items()
            }
        )

    def losses(self) -> dict[str, int]:
        """Return what the programs had to leave out since they were loaded."""
        return {
            f"tcp_{reason.name.lower()}": read_counter(self.bpf.maps["tcp_losses"], reason)
            for reason in layouts.TcpLoss
            if reason is not layouts.TcpLoss.COUNT
        }

    @property
    def programs(self) -> list[Program]:
        """Its programs."""
        return list(self.bpf.programs.values())

    def maps(self) -> dict[str, MapHealth]:
        """Return how full the maps are; the two tables and their selector are one, ``tcp_rows``."""
        maps = map_health(self.bpf)
        parts = [maps.pop(name) for name in ("tcp_rows_a", "tcp_rows_b", "tcp_rows")]
        size = sum(part.bytes or 0 for part in parts)
        return {"tcp_rows": MapHealth(entries=self.rows, limit=parts[0].limit, bytes=size), **maps}

    def close(self) -> None:
        """Detach and unload."""
        self.bpf.close()

    def _read_other(self) -> Iterable[Record]:
        for role in (layouts.TcpRole.CLIENT, layouts.TcpRole.SERVER):
            before, now = self._seen_other[role], self._other[role.to_bytes(4, "little")]
            if now == before:
                continue
            self._seen_other[role] = now
            counters, histograms = difference(*self._decoder.counts(now), *self._decoder.counts(before))
            yield Record(None, Role(role.name.lower()), "other", counters, histograms)
