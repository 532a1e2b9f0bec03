# SPDX-License-Identifier: Apache-2.0
"""The limiter of a running agent: its pins and interfaces, what it shows, and what it is asked over the socket."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import msgspec

from tidegate.audit import Action, Audit, agent
from tidegate.config.limits import RateLimit
from tidegate.kernel.limiter import LimiterMaps, counts, notes
from tidegate.kernel.objects import BpfObject, possible_cpus
from tidegate.kernel.pins import PINS, PinDirectory
from tidegate.model.limiter import InterfaceRow, SourceRow, VerdictCount
from tidegate.model.limiter import Limiter as LimiterView
from tidegate.model.snapshot import MapHealth
from tidegate.privacy import Addresses
from tidegate.ratelimit import STARTED_WITH, instance, listening
from tidegate.ratelimit.feeding import Feeding
from tidegate.ratelimit.heaviest import Heavy
from tidegate.ratelimit.interfaces import Attachment, Interfaces
from tidegate.ratelimit.keys import Network, network_of
from tidegate.ratelimit.limiter import Limiter, Surroundings
from tidegate.ratelimit.modes import Mode
from tidegate.ratelimit.policy import sizes
from tidegate.ratelimit.requests import Params, Peer, Requests, rows_of
from tidegate.ratelimit.watch import SourceWatch

log = logging.getLogger("tidegate")

#: So many of the heaviest sources are in a view.
SHOWN = 50
#: So many sources that begin to be over their limits have a record of their own, at a tick.
_RECORDED = 20


class RunningLimiter:
    """Attached from the start; :meth:`close` leaves it attached, for the next agent to go on with.

    ``upstreams`` are addresses that are never limited, as pools of this node have them.

    What changes it comes from two threads, the tick's and that of the socket, and takes turns.
    """

    def __init__(
        self,
        config: RateLimit,
        addresses: Addresses,
        audit: Audit,
        upstreams: Iterable[str] = (),
        pins: Path = PINS,
        surroundings: Surroundings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._clock, self._audit, self._addresses = config, clock, audit, addresses
        self._wanted = config
        self._upstreams = frozenset(upstreams)
        self._turn = threading.Lock()
        with contextlib.ExitStack() as stack:
            self._pins = stack.enter_context(PinDirectory(pins))
            base, emptied = instance.load(self._pins, None, sizes(config))
            stack.enter_context(base)
            if emptied:
                log.warning("rate limit: %s", _anew(emptied))
            self._maps = LimiterMaps(base, possible_cpus())
            # Lists, policies and mode are in force before any interface is.
            self._limiter = Limiter(
                config, self._maps, surroundings or Surroundings(listening.listening, self._needed), clock
            )
            self._interfaces = stack.enter_context(
                Interfaces(
                    config.interfaces, self._pins, self._load, generic=config.generic == "allow", clock=clock
                )
            )
            if self._interfaces.stale_pins:
                log.info("rate limit: pins removed of %d interfaces that are gone", self._interfaces.stale_pins)
            self.feed: Feeding | None = None
            if config.feed.listen:
                self.feed = Feeding(config.feed, self._limiter, addresses, audit, self._turn)
                stack.callback(self.feed.close)
            self._watch = SourceWatch(self._maps.sources, self._maps.requesting, clock)
            stack.callback(self._watch.close)
            self._requests = Requests(
                self._limiter, self._view, lambda: self._watch.now().heavy, self._lift, addresses, audit
            )
            self._open = stack.pop_all()

    def _load(self, index: int, _: str) -> BpfObject:
        bpf, emptied = instance.load(self._pins, index, sizes(self._config))
        if emptied:
            log.warning("rate limit: %s", _anew(emptied))
        return bpf

    def tick(self) -> tuple[LimiterView, tuple[SourceRow, ...]]:
        """Renew the lease, follow what has changed, and return what there is to show, and the heaviest sources."""
        with self._turn:
            self._take_config()
            self._interfaces.follow()
            rolled_back = self._limiter.tick()
            if rolled_back is not None:
                self._record(Action.MODE, reason=f"{rolled_back.word} was not confirmed")
            for ended in self._limiter.end_bans():
                self._record(Action.UNBAN, ended, reason="its time is over")
            self._record_crossed(self._watch.tick())
            self._audit.tidy()
            latest = self._watch.latest
            rows = rows_of(latest.heavy[:SHOWN], self._addresses) if latest else ()
            return self._view(), tuple(rows)

    def configure(self, config: RateLimit, upstreams: Iterable[str] = ()) -> None:
        """Take limits, lists and mode of another config at the next tick; the rest is for the next start."""
        self._wanted, self._upstreams = config, frozenset(upstreams)

    def _needed(self) -> list[str]:
        """Return the addresses without which this node doesn't work."""
        return [*needed(), *sorted(self._upstreams)]

    def _take_config(self) -> None:
        kept = {name: getattr(self._config, name) for name in STARTED_WITH}
        wanted = msgspec.structs.replace(self._wanted, **kept)
        if wanted == self._config:
            return
        before, self._config = self._mode, wanted
        self._limiter.configure(wanted)
        if self._mode != before:
            self._record(Action.MODE, reason="the config was read again")

    @property
    def _mode(self) -> str:
        return self._limiter.mode.word

    def _record_crossed(self, crossed: list[Heavy]) -> None:
        """Put sources that have begun to be over their limits on the record, so many at a time one by one."""
        for heavy in crossed[:_RECORDED]:
            details = {"packets": heavy.packets, "refused": heavy.refused, "refused_rate": heavy.refused_rate}
            self._record(Action.THRESHOLD, network_of(heavy.key), reason="over its limit", **details)
        if more := crossed[_RECORDED:]:
            self._record(
                Action.THRESHOLD,
                reason="further sources over their limits",
                sources=len(more),
                refused=sum(heavy.refused for heavy in more),
            )

    def _record(self, action: Action, subject: Network | None = None, *, reason: str, **details: object) -> None:
        shown = None if subject is None else self._addresses.shown(subject)
        self._audit.record(
            action, by=agent(), subject=shown, reason=reason, details={"mode": self._mode, **details}
        )

    def losses(self) -> dict[str, int]:
        """Return what was lost, by reason."""
        return {**(self.feed.losses() if self.feed else {}), "audit_records": self._audit.health().lost}

    def maps(self) -> dict[str, MapHealth]:
        """Return how full its maps are."""
        latest = self._watch.latest
        return self._maps.health(
            {
                "ratelimit_sources": latest and latest.sources,
                "ratelimit_syns": latest and latest.requesting,
                "ratelimit_bans": self._maps.ban_count(),
                "ratelimit_allowed": self._limiter.allowed,
                "ratelimit_denied": self._limiter.denied,
            }
        )

    def methods(self) -> dict[str, Callable[[Params, Peer], Any]]:
        """Return what the control socket offers; any thread may call it."""
        found = self._requests.methods()
        # It may take half a second, and changes nothing.
        return {name: call if name.endswith(".top") else self._in_turn(call) for name, call in found.items()}

    def _in_turn(self, method: Callable[[Params, Peer], Any]) -> Callable[[Params, Peer], Any]:
        def asked(params: Params, peer: Peer) -> Any:
            with self._turn:
                return method(params, peer)

        return asked

    def _lift(self, prefix: Network) -> None:
        if self.feed is not None:
            self.feed.lift(prefix)

    def uninstall(self) -> None:
        """Detach from all interfaces and remove all pins."""
        with self._turn:
            self._interfaces.uninstall()
            self._pins.remove()

    def close(self) -> None:
        """Leave it attached; enforcement ends with the lease."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _view(self) -> LimiterView:
        found = self._interfaces.objects
        noted: Counter[str] = Counter()
        rows = []
        for at in self._interfaces.attachments():
            bpf = found.get(at.interface)
            noted.update(notes(bpf) if bpf else {})
            rows.append(self._row(at, bpf))
        until = self._limiter.until
        health = self._audit.health()
        return LimiterView(
            mode=self._mode,
            rolls_back_in=None if until is None else max(until - self._clock(), 0.0),
            interfaces=tuple(rows),
            bans=self._maps.ban_count(),
            allowed=self._limiter.allowed,
            denied=self._limiter.denied,
            guarded=noted["guarded"],
            contended=noted["contended"],
            feed=self.feed.row() if self.feed else None,
            complaints=(*self._limiter.complaints, *([health.error] if health.error else [])),
        )

    def _row(self, at: Attachment, bpf: BpfObject | None) -> InterfaceRow:
        latest = self._watch.latest
        return InterfaceRow(
            interface=at.interface,
            attached=at.mode,
            reason=at.reason,
            mode=self._maps.state.mode if at.mode else Mode.OFF,
            sources=latest.sources if latest else None,
            requesting=latest.requesting if latest else None,
            counts=tuple(
                VerdictCount(verdict=verdict, reason=reason, packets=count.packets, bytes=count.bytes)
                for (verdict, reason), count in (counts(bpf) if bpf else {}).items()
            ),
        )


def _anew(emptied: list[str]) -> str:
    """Say which pinned maps could not be gone on with."""
    names = ", ".join(name for name in emptied if name != "ratelimit_bans")
    return f"other sizes than those of the agent before, so these begin empty: {names or 'none'}" + (
        "; its bans are taken over" if "ratelimit_bans" in emptied else ""
    )


def remove_leftovers(pins: Path = PINS) -> None:
    """Detach what an agent with a limiter has left, and remove its pins; nothing where there is none."""
    if not pins.is_dir():
        return
    with PinDirectory(pins) as directory:
        with Interfaces([], directory, _no_object, generic=False) as left:
            left.uninstall()
        directory.remove()


def _no_object(_: int, name: str) -> BpfObject:
    raise ValueError(f"interface {name}: nothing is to be attached")


def needed() -> list[str]:
    """Return the addresses without which this node doesn't work."""
    return [*listening.gateways(), *listening.resolvers(), *listening.api_server()]
