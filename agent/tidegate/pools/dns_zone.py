# SPDX-License-Identifier: Apache-2.0
"""One pool's name in the DNS: what is answered for it, and what each asker was last told; no I/O."""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import NamedTuple

from tidegate.model.driver import Use

#: nginx asks again a second after its answer has run out (ngx_http_upstream_zone_resolve_handler counts whole
#: seconds). Who hasn't asked for two seconds more has ended, and holds no answer any more.
ROUNDED, GONE = 1.0, 3.0
#: nginx sends a question that nobody heard again after so many seconds (resend_timeout of ngx_resolver_create).
RESENT = 5.0
#: Until an answer that was sent is in nginx's table of servers: it asks for both families one after the other, and
#: for the addresses of an SRV record's targets.
_TAKEN = 0.2
#: The longest silence that is learned from how often an asker asks.
_SELDOM = 60.0
#: Askers that are known one by one; what further ones hold is known of all of them together.
_ASKERS = 256

IP = ipaddress.IPv4Address | ipaddress.IPv6Address
#: Where a question comes from: an address and a port. nginx keeps its own for as long as a worker lives.
Asker = tuple[str, int]
_OTHERS: Asker = ("others", 0)


class Kind(IntEnum):
    """The types of records that there are, by their number (RFC 1035, 3596, 2782)."""

    A = 1
    AAAA = 28
    SRV = 33


class Target(NamedTuple):
    """An endpoint, and the label below the pool's name that has its address alone."""

    endpoint: str
    label: str
    address: IP
    port: int

    @property
    def kind(self) -> Kind:
        """The type of its address."""
        return Kind.A if self.address.version == 4 else Kind.AAAA


class Answer(NamedTuple):
    """What is in an answer: addresses, or ports with the labels of their targets.

    ``holds`` are the endpoints that the asker then has; None where the answer says nothing of the pool.
    """

    addresses: tuple[IP, ...] = ()
    services: tuple[tuple[int, str], ...] = ()
    holds: frozenset[str] | None = None


class _Given(NamedTuple):
    at: float
    until: float
    holds: frozenset[str]
    since: float
    before: frozenset[str] | None

    def held(self, now: float) -> frozenset[str] | None:
        """Return what the asker has, as far as that is known; None also once it is gone."""
        if now > self.until:
            return None
        return self.holds if now - self.since >= _TAKEN else self.before


class Zone:
    """The name of a pool. Threads may share it: one answers, another says who is ``out`` and asks who has what.

    No type of record that the pool has is ever answered with nothing, as nginx then drops all servers: where all
    endpoints would be out, none is. The one exception is an asker that is known to get the other family's.
    """

    def __init__(self, name: str, endpoints: Iterable[str], ttl: float, out: Iterable[str] = ()) -> None:
        self.name, self.ttl = name, ttl
        self.targets = tuple(map(target, endpoints))
        self.all = frozenset(found.endpoint for found in self.targets)
        self._labels = {found.label: found for found in self.targets}
        self._given: dict[tuple[Asker, Kind], _Given] = {}
        self._changed = threading.Condition()
        self._asked = 0
        self._out: frozenset[str] = frozenset()
        self.publish(out)

    @property
    def out(self) -> frozenset[str]:
        """Who is left out from the next answer on."""
        return self._out

    @property
    def asked(self) -> int:
        """How many answers were delivered that say who is in the pool."""
        return self._asked

    def publish(self, out: Iterable[str]) -> None:
        """Leave these out of the answers from now on; nobody, where that would be all."""
        found = self.all & frozenset(out)
        with self._changed:
            self._out = frozenset() if found == self.all else found

    # What the responder calls.

    def answer(self, labels: tuple[str, ...], kind: int, asker: Asker, now: float) -> Answer | None:
        """Answer a question for the name, or with ``labels`` below it; None where there is no such name."""
        with self._changed:
            if not labels:
                if kind == Kind.SRV:
                    return self._services()
                return self._addresses(Kind(kind), asker, now) if kind in (Kind.A, Kind.AAAA) else Answer()
            if len(labels) == 2 and all(label.startswith("_") for label in labels):  # RFC 2782
                return self._services() if kind == Kind.SRV else Answer()
            found = self._labels.get(labels[0]) if len(labels) == 1 else None
            if found is None:
                return None
            return Answer((found.address,)) if kind == found.kind else Answer()

    def delivered(self, kind: Kind, asker: Asker, holds: frozenset[str], now: float) -> None:
        """Note what an asker was sent."""
        with self._changed:
            key = asker, kind
            last = self._given.get(key)
            if last is None and len(self._given) >= _ASKERS:
                self._forget(now)
            silence, since, before = self.ttl + GONE, now, None
            if last is not None:
                # Who is known to ask more seldom isn't gone before that.
                silence = max(silence, min(1.5 * (now - last.at), _SELDOM))
                is_new = holds != last.holds
                since, before = (now, last.held(now)) if is_new else (last.since, last.before)
            self._given[key] = _Given(now, now + silence, holds, since, before)
            self._asked += 1
            self._changed.notify_all()

    # What the driver calls.

    def kinds(self, now: float) -> set[Kind]:
        """Return what is being asked for; empty where nobody asks."""
        with self._changed:
            return {kind for (_, kind), given in self._given.items() if now <= given.until}

    def uses(self, now: float) -> dict[str, Use]:
        """Return what the askers have: an endpoint is used if one has it; empty where that isn't known of any."""
        with self._changed:
            known = [(kind, given.held(now)) for (_, kind), given in self._given.items()]
        live = [(kind, held) for kind, held in known if held is not None]
        if not live:
            return {}
        uses = {}
        for found in self.targets:
            held = [found.endpoint in holds for kind, holds in live if kind in (found.kind, Kind.SRV)]
            uses[found.endpoint] = Use.ABSENT if not held else Use.ACTIVE if any(held) else Use.EJECTED
        return uses

    def wait(self, seconds: float) -> None:
        """Wait until an answer is delivered, at most so long."""
        with self._changed:
            self._changed.wait(seconds)

    # Below the lock.

    def _services(self) -> Answer:
        used = [found for found in self.targets if found.endpoint not in self._out]
        return Answer(
            services=tuple((found.port, found.label) for found in used),
            holds=frozenset(found.endpoint for found in used),
        )

    def _addresses(self, kind: Kind, asker: Asker, now: float) -> Answer:
        family = [found for found in self.targets if found.kind is kind]
        used = {found.address: None for found in family if found.endpoint not in self._out}
        if not used and not self._gets_others(kind, asker, now):
            used = {found.address: None for found in family}
        return Answer(tuple(used), holds=frozenset(found.endpoint for found in family if found.address in used))

    def _gets_others(self, kind: Kind, asker: Asker, now: float) -> bool:
        """Tell whether an asker gets addresses of the other family: nginx with ``ipv6=off`` never does."""
        other = Kind.AAAA if kind is Kind.A else Kind.A
        given = self._given.get((asker, other))
        return given is not None and now <= given.until and bool(given.holds)

    def _forget(self, now: float) -> None:
        """Make room: first who is gone, else who asked longest ago is one of the others from then on."""
        for key in [key for key, given in self._given.items() if now > given.until]:
            del self._given[key]
        if len(self._given) < _ASKERS:
            return
        asker, kind = min((key for key in self._given if key[0] != _OTHERS), key=lambda key: self._given[key].at)
        last = self._given.pop((asker, kind))
        others = self._given.get((_OTHERS, kind), last)
        held = last.holds | (last.before or last.holds) | others.holds
        self._given[_OTHERS, kind] = _Given(last.at, max(last.until, others.until), held, 0.0, None)


def target(endpoint: str) -> Target:
    """Return an endpoint's part of the answers; its label is the address, an IPv6 one with all of its digits."""
    host, _, port = endpoint.rpartition(":")
    address = ipaddress.ip_address(host.strip("[]"))
    return Target(endpoint, address.exploded.replace(".", "-").replace(":", "-"), address, int(port))


def find(zones: Mapping[str, Zone], name: str) -> tuple[Zone, tuple[str, ...]] | None:
    """Return the zone of a name in small letters, the longest one that it ends in, and the labels before it."""
    labels = name.split(".")
    for number in range(len(labels)):
        zone = zones.get(".".join(labels[number:]))
        if zone is not None:
            return zone, tuple(labels[:number])
    return None
