# SPDX-License-Identifier: Apache-2.0
"""The driver of nginx's ``server NAME resolve``: who is out isn't in the answer when nginx asks for the name."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from tidegate.config.pools import DnsDriver as Config
from tidegate.errors import DriverError
from tidegate.model.driver import Use
from tidegate.pools.dns_zone import GONE, RESENT, ROUNDED, Kind, Zone
from tidegate.pools.driver import Discovery, Exchange, Wanted
from tidegate.pools.journal import Journal

if TYPE_CHECKING:
    from tidegate.pools.dns_responder import Opener, Responder

#: A command names no more addresses than these.
_NAMED = 8
#: What an answer over TCP has room for (RFC 1035, 4.2.2).
_LARGEST = 4000


class DnsDriver:
    """One pool in all nginx (1.27.3 or later) that ask this agent for its name; nothing is ever reloaded.

    nginx asks a second after its last answer has run out, and can't be told sooner. It can't be asked what it uses
    either: ``read`` says what it was last answered, and an endpoint counts as out when nobody who still asks can
    have an answer with it. The name is never left without addresses, so that a pool can't be made to fail fast:
    where all would be out, none is, and ``read`` says so. While nobody answers, nginx keeps the servers it has.

    ``opener`` opens the sockets, for another network namespace than this process's.
    """

    sticks = True
    period = 1.0

    def __init__(
        self,
        endpoints: Iterable[str],
        config: Config,
        journal: Journal,
        *,
        opener: Opener | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endpoints = tuple(endpoints)
        self._listen, self._journal, self._opener, self._clock = config.listen, journal, opener, clock
        self._zone = Zone(config.name, self._endpoints, config.ttl, journal.entries)
        #: What nginx was last known to have: at first what the journal tells.
        self._last = {one: Use.EJECTED if one in self._zone.out else Use.ACTIVE for one in self._endpoints}
        self._responder: Responder | None = None
        self._since = clock()
        self.target = f"dns {config.listen} {config.name}"
        #: Until nginx has asked again, in seconds; with 'valid=1s' that is up to two.
        self._asks = max(config.ttl, 1.0) + ROUNDED
        self.settles = self._asks + 0.75

    def discover(self) -> Discovery:
        """Answer from now on; say what the DNS can't express of this pool."""
        self._open()
        zone, kinds = self._zone, self._zone.kinds(self._clock())
        warnings = []
        if Kind.SRV not in kinds:
            warnings += _of_addresses(zone)
        if len(zone.all) == 1:
            warnings.append(
                f"{self.target}: the one endpoint can't be taken out: a name without addresses would drop all "
                "servers; add the failfast driver where callers should fail at once"
            )
        refusals = []
        if len(zone.all) > _LARGEST:
            refusals.append(
                f"{self.target}: expected at most {_LARGEST} endpoints, as many as fit into an answer, found "
                f"{len(zone.all)}; split the pool"
            )
        return Discovery("", tuple(warnings), tuple(refusals))

    def read(self) -> dict[str, Use]:
        """Return what those who ask have; right after the start, what the journal says that they have."""
        self._open()
        now = self._clock()
        uses = self._zone.uses(now)
        if not uses:
            if not self._zone.kinds(now) and now - self._since > self._patience:
                raise self._unasked()
            return dict(self._last)
        self._last = uses
        # Only now does nobody need it any more, should the agent die.
        back = self._journal.entries.keys() - self._zone.out
        self._journal.drop(*(name for name in back if uses.get(name, Use.ACTIVE) is Use.ACTIVE))
        return dict(uses)

    def apply(self, out: Wanted) -> list[Exchange]:
        """Leave these out of the answers from the next question on; who is half open is in them."""
        self._open()
        wanted = {endpoint for endpoint, permits in out.items() if not permits} & self._zone.all
        if wanted == self._zone.all:
            wanted = set()
        if wanted == self._zone.out:
            return []
        self._journal.put(dict.fromkeys(sorted(wanted), str(Use.ACTIVE)))
        return [self._publish(wanted)]

    def restore(self) -> list[Exchange]:
        """Have all in the answers, and wait until all who ask have been answered so.

        Where nobody asks, that is a DriverError, and the journal stays.
        """
        if not self._journal.entries and not self._zone.out:
            return []
        started = self._clock()
        self._open_soon(started + self._patience)
        exchange = self._publish(set())
        end = max(started + self._asks + 1.0, self._since + self._patience)
        while not self._all_in(now := self._clock()):
            if now >= end:
                uses = self._zone.uses(now)
                raise (
                    self._unasked()
                    if not uses
                    else DriverError(
                        f"{self.target}: somebody still has an answer without all endpoints and hasn't asked for "
                        f"{now - started:.1f} s; take 'valid' out of the resolver of nginx",
                        exchanges=(exchange,),
                    )
                )
            self._zone.wait(min(end - now, 0.1))
        self._journal.clear()
        return [exchange]

    def close(self) -> None:
        """Answer no longer; nginx keeps what it has."""
        if self._responder is not None:
            from tidegate.pools import dns_responder  # noqa: PLC0415

            dns_responder.leave(self._responder, self._zone)
            self._responder = None

    @property
    def _patience(self) -> float:
        """How long after the start somebody must have asked: a question may have been lost meanwhile."""
        return max(self._zone.ttl + GONE, RESENT + ROUNDED)

    def _open(self) -> Responder:
        if self._responder is None:
            # dnslib takes memory, and most agents have no pool with this driver.
            from tidegate.pools import dns_responder  # noqa: PLC0415

            self._responder = dns_responder.join(self._zone, self._listen, self._opener or dns_responder.bind)
            self._since = self._clock()
        return self._responder

    def _open_soon(self, end: float) -> Responder:
        """Open, once an agent that is just ending has let go of the address."""
        while True:
            try:
                return self._open()
            except DriverError as error:
                if not error.away or self._clock() >= end:
                    raise
                time.sleep(0.05)

    def _publish(self, out: set[str]) -> Exchange:
        self._zone.publish(out)
        zone = self._zone
        left = [found for found in zone.targets if found.endpoint not in zone.out]
        if len(left) <= _NAMED:
            named = " ".join(found.endpoint for found in left)
        else:
            named = f"{len(left)} of {len(zone.targets)} endpoints, without {' '.join(sorted(zone.out)[:_NAMED])}"
        return Exchange(f"answer {zone.name}: {named}", f"asked {zone.asked} times since the start")

    def _all_in(self, now: float) -> bool:
        uses = self._zone.uses(now)
        return bool(uses) and Use.EJECTED not in uses.values()

    def _unasked(self) -> DriverError:
        zone = self._zone
        ports = {found.port for found in zone.targets}
        port, service = (f":{min(ports)}", "") if len(ports) == 1 else ("", "service=http ")
        only = {Kind.A: " ipv6=off", Kind.AAAA: " ipv4=off"}
        kinds = {found.kind for found in zone.targets}
        family = only[kinds.pop()] if len(kinds) == 1 else ""
        return DriverError(
            f"{self.target}: nobody asks for {zone.name} at {self._listen}; in the upstream of nginx 1.27.3 or "
            f"later expected: zone {zone.name.partition('.')[0]} 64k; server {zone.name}{port} {service}resolve; "
            f"resolver {self._listen}{family}; resolver_timeout 1s;",
            away=True,
        )


def _of_addresses(zone: Zone) -> list[str]:
    """Return what an answer of addresses alone, without ports, can't express."""
    ports = {found.port for found in zone.targets}
    remedy = f"write 'server {zone.name} service=http resolve' in nginx, which asks for ports too"
    if len({found.address for found in zone.targets}) < len(zone.targets):
        return [
            f"{zone.name}: endpoints that share an address are out only together, when all of them are; {remedy}"
        ]
    if len(ports) > 1:
        one = f"server {zone.name}:PORT resolve"
        return [f"{zone.name}: the endpoints have {len(ports)} ports, of which '{one}' has one; {remedy}"]
    return []
