# SPDX-License-Identifier: Apache-2.0
"""The endpoints of pools in the kernel: which are watched, what speaks against one, which are refused at once."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from tidegate.errors import UnavailableError
from tidegate.kernel.layouts import (
    FAILFAST_ENTRY,
    FAILFAST_SERVICE,
    POOL_COUNTS,
    POOL_ENDPOINT,
    POOL_EVENT,
    POOL_KEY,
    FailfastEntry,
    PoolEvent,
    PoolEvidence,
    PoolLoss,
)
from tidegate.kernel.maps import Map, RingBuffer

#: The maps that the programs of connects and of HTTP share.
SHARED = ("pool_endpoints", "pool_counts", "pool_events", "pool_losses")


class Endpoint(NamedTuple):
    """An address and port, IPv4 also where a connection maps it into IPv6."""

    address: IPv4Address | IPv6Address
    port: int

    def __str__(self) -> str:
        """As people write it."""
        return f"{self.address}:{self.port}" if self.address.version == 4 else f"[{self.address}]:{self.port}"


def room_for(count: int) -> int:
    """Return the size of the maps for so many endpoints: twice that, as a config may be read again."""
    return max(1024, 2 * count)


def key_of(endpoint: Endpoint) -> bytes:
    """Return an endpoint as the kernel's maps have it."""
    packed = endpoint.address.packed.ljust(16, b"\0")
    return POOL_KEY.pack(packed, endpoint.port, endpoint.address.version, 0, 0)


def endpoint_of(key: bytes) -> Endpoint:
    """Return the endpoint of a key."""
    address, port, family, _, _ = POOL_KEY.unpack(key)
    return Endpoint(IPv4Address(address[:4]) if family == 4 else IPv6Address(address), port)


class Seen(NamedTuple):
    """What was counted of an endpoint: handshakes, HTTP responses below 500, connects that failfast refused.

    ``is_encrypted``: a connection spoke something else than HTTP/1.
    """

    connected: int
    answered: int
    refused: int
    is_encrypted: bool


class Evidence(NamedTuple):
    """What speaks against an endpoint, as ``struct pool_event`` has it; times in ns of CLOCK_MONOTONIC."""

    at_ns: int
    age_ns: int
    cgroup: int
    connected: int
    answered: int
    endpoint: Endpoint
    evidence: PoolEvidence
    code: int
    retransmits: int
    error: int
    source_port: int
    head: bytes


class Endpoints:
    """The watched endpoints; ``fd`` is readable when something speaks against one.

    ``maps`` are those of an object that has all of :data:`SHARED`.
    """

    def __init__(self, maps: Mapping[str, Map]) -> None:
        self._table, self._counts, self._losses = maps["pool_endpoints"], maps["pool_counts"], maps["pool_losses"]
        self._ring = RingBuffer(maps["pool_events"])
        self._watched: dict[bytes, int] = {}
        self._places: dict[bytes, int] = {}
        self._free = deque(range(self._counts.max_entries))
        self._generations = [0] * self._counts.max_entries

    @property
    def fd(self) -> int:
        """The ring's descriptor."""
        return self._ring.fd

    def watch(self, wanted: Mapping[Endpoint, float]) -> bool:
        """Watch these, each with its response timeout in seconds (0: none), and no others; say whether any is new.

        A timeout that changes holds for connections that are made from then on. Raises UnavailableError where they
        are more than there is room for, and then changes nothing.
        """
        now = {key_of(endpoint): int(seconds * 1e9) for endpoint, seconds in wanted.items()}
        if len(now) > self._counts.max_entries:
            raise UnavailableError(
                f"pools: expected at most {self._counts.max_entries} endpoints, found {len(now)}; start the agent "
                "again, which makes room for more"
            )
        for key in self._watched.keys() - now.keys():
            del self._table[key]
            place = self._places.pop(key)
            self._begin(place)  # so that its connections count for nothing any more
            self._free.append(place)
        new = now.keys() - self._watched.keys()
        for key in new:
            self._places[key] = self._free.popleft()
            self._begin(self._places[key])
        for key, timeout in now.items():
            if self._watched.get(key) != timeout:
                place = self._places[key]
                self._table[key] = POOL_ENDPOINT.pack(timeout, place, self._generations[place])
        self._watched = now
        return bool(new)

    def _begin(self, place: int) -> None:
        self._generations[place] += 1
        self._counts[_number(place)] = POOL_COUNTS.pack(0, 0, 0, 0, self._generations[place])

    def seen(self) -> dict[Endpoint, Seen]:
        """Return what was counted of each."""
        found = {}
        for key, place in self._places.items():
            connected, answered, refused, encrypted, _ = POOL_COUNTS.unpack(self._counts[_number(place)])
            found[endpoint_of(key)] = Seen(connected, answered, refused, bool(encrypted))
        return found

    def evidence(self) -> list[Evidence]:
        """Return what has been told since the last call, oldest first."""
        found = []
        for record in self._ring.consume():
            event = PoolEvent._make(POOL_EVENT.unpack(record.ljust(POOL_EVENT.size, b"\0")[: POOL_EVENT.size]))
            found.append(
                Evidence(
                    at_ns=event.at_ns,
                    age_ns=event.age_ns,
                    cgroup=event.cgroup,
                    connected=event.connected,
                    answered=event.answered,
                    endpoint=endpoint_of(event.endpoint),
                    evidence=PoolEvidence(event.evidence),
                    code=event.code,
                    retransmits=event.retransmits,
                    error=event.error,
                    source_port=event.source_port,
                    head=event.head[: event.length],
                )
            )
        return found

    def losses(self) -> dict[str, int]:
        """Return what the programs had to leave out."""
        return {
            f"pool_{loss.name.lower()}": int.from_bytes(self._losses[_number(loss)], "little")
            for loss in PoolLoss
            if loss is not PoolLoss.COUNT
        }

    def close(self) -> None:
        """Unmap the ring; the maps are their object's."""
        self._ring.close()


class Failfast:
    """The endpoints to which connects are refused at once, as long as that is renewed."""

    def __init__(self, maps: Mapping[str, Map]) -> None:
        self._entries, self._services = maps["failfast_entries"], maps["failfast_services"]
        self._lease = maps["failfast_lease"]

    def renew(self, until: float) -> None:
        """Let all entries hold until then (CLOCK_MONOTONIC, seconds)."""
        self._lease[bytes(4)] = int(until * 1e9).to_bytes(8, "little")

    def refuse(self, endpoint: Endpoint, *, permits: int = 0, scope: int = 0) -> None:
        """Refuse all connects but the next ``permits``; of all services, or of those of a scope."""
        self._entries[key_of(endpoint)] = FAILFAST_ENTRY.pack(permits, 0, scope, 0)

    def allow(self, endpoint: Endpoint) -> None:
        """Refuse none any more."""
        with contextlib.suppress(KeyError):
            del self._entries[key_of(endpoint)]

    def entries(self) -> dict[Endpoint, FailfastEntry]:
        """Return all entries."""
        found = {}
        for _, keys, values in self._entries.batches():
            rows = zip(_split(keys, POOL_KEY.size), FAILFAST_ENTRY.iter_unpack(values), strict=True)
            found.update({endpoint_of(key): FailfastEntry._make(entry) for key, entry in rows})
        return found

    def choose(self, scope: int, cgroups: Iterable[int]) -> None:
        """Say which cgroups a scope is of."""
        wanted = {FAILFAST_SERVICE.pack(cgroup, scope, 0) for cgroup in cgroups}
        present = {key for key in set(self._services.keys()) if FAILFAST_SERVICE.unpack(key)[1] == scope}
        for key in wanted - present:
            self._services[key] = b"\1"
        for key in present - wanted:
            del self._services[key]


def _number(number: int) -> bytes:
    return number.to_bytes(4, "little")


def _split(buffer: bytes, size: int) -> Iterable[bytes]:
    return (bytes(buffer[at : at + size]) for at in range(0, len(buffer), size))
