# SPDX-License-Identifier: Apache-2.0
"""What is asked of the limiter over the control socket: on the record, addresses as they may be shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address
from itertools import islice
from typing import Any, Protocol

from tidegate.audit import Action, Audit, actor
from tidegate.errors import UsageError
from tidegate.model.limiter import Limiter as LimiterView
from tidegate.model.limiter import SourceRow
from tidegate.privacy import Addresses
from tidegate.ratelimit import METHODS
from tidegate.ratelimit.bans import prefix_of
from tidegate.ratelimit.heaviest import Heavy
from tidegate.ratelimit.keys import Address, Network, address_of, network_of
from tidegate.ratelimit.limiter import Limiter
from tidegate.ratelimit.modes import Mode

Params = Mapping[str, Any]
_MOST = 1000


class Peer(Protocol):
    """Who asks."""

    @property
    def pid(self) -> int:
        """The process; 0 for one of another pid namespace."""

    @property
    def uid(self) -> int:
        """Its user."""


class Requests:
    """The methods of the control socket; ``view`` gives what ``status`` shows, ``lift`` tells who is let in again.

    Each raises TidegateError for what can't be done. The caller takes care of turns.
    """

    def __init__(
        self,
        limiter: Limiter,
        view: Callable[[], LimiterView],
        heaviest: Callable[[], Iterable[Heavy]],
        lift: Callable[[Network], None],
        addresses: Addresses,
        audit: Audit,
    ) -> None:
        self._limiter, self._view, self._heaviest, self._lift = limiter, view, heaviest, lift
        self._addresses, self._audit = addresses, audit

    def methods(self) -> dict[str, Callable[[Params, Peer], Any]]:
        """Return them by name."""
        return {name: getattr(self, name.partition(".")[2]) for name in METHODS}

    def status(self, _params: Params, _peer: Peer) -> LimiterView:
        """Return mode, lists and the counts of each interface."""
        return self._view()

    def top(self, params: Params, _peer: Peer) -> list[SourceRow]:
        """Return the sources of which most was refused."""
        count = params.get("count", 20)
        if not isinstance(count, int) or not 1 <= count <= _MOST:
            raise UsageError(f"ratelimit top: expected a number of sources from 1 to {_MOST}, found {count!r}")
        return rows_of(islice(self._heaviest(), count), self._addresses)

    def ban(self, params: Params, peer: Peer) -> dict[str, str]:
        """Ban a source."""
        address, seconds = self._target(params), _seconds(params)
        self._limiter.ban(address, seconds)
        shown = self._record(Action.BAN, peer, address, str(params.get("reason") or "by hand"), seconds=seconds)
        return {"done": f"{shown} is banned" + ("" if seconds is None else f" for {seconds:g} s")}

    def unban(self, params: Params, peer: Peer) -> dict[str, str]:
        """End a ban."""
        address = self._target(params)
        self._limiter.unban(address)
        self._lift(prefix_of(address))
        return {"done": f"{self._record(Action.UNBAN, peer, address, 'by hand')} is not banned any more"}

    def allow(self, params: Params, peer: Peer) -> dict[str, str]:
        """Never limit a network, or take that back. It is the operator's own, and shown as it is."""
        network, seconds = str(params.get("network")), _seconds(params)
        if params.get("remove"):
            self._limiter.take_back(network)
            done = f"{network} is limited again, unless the config allows it"
        else:
            self._limiter.allow(network, seconds)
            done = f"{network} is allowed" + ("" if seconds is None else f" for {seconds:g} s")
        details = {"network": network, "seconds": seconds, "remove": bool(params.get("remove"))}
        self._audit.record(Action.ALLOW, by=actor(peer.pid, peer.uid), reason="by hand", details=details)
        return {"done": done}

    def mode(self, params: Params, peer: Peer) -> dict[str, str]:
        """Change the mode, or keep the one that waits for that."""
        seconds, yes = _seconds(params), bool(params.get("yes"))
        if params.get("confirm"):
            mode = self._limiter.confirm()
            done = f"mode {mode.word} stays"
        else:
            mode = _mode_of(params.get("mode"))
            self._limiter.ask(mode, seconds, session=params.get("session"), yes=yes, shown=self._addresses.shown)
            unless = "it rolls back unless 'tidegate ratelimit mode --confirm' follows"
            done = f"mode {mode.word}" + ("" if seconds is None else f" for {seconds:g} s; {unless}")
        details = {"mode": mode.word, "seconds": seconds, "yes": yes, "confirm": bool(params.get("confirm"))}
        self._audit.record(Action.MODE, by=actor(peer.pid, peer.uid), reason="by hand", details=details)
        return {"done": done}

    def _record(self, action: Action, peer: Peer, address: Address, reason: str, **details: Any) -> str:
        shown = self._addresses.shown(address)
        self._audit.record(action, by=actor(peer.pid, peer.uid), subject=shown, reason=reason, details=details)
        return shown

    def _target(self, params: Params) -> Address:
        text = str(params.get("target"))
        known = self._addresses.source_of(text)
        if known is None:
            return address_of(text)
        return known if isinstance(known, IPv4Address | IPv6Address) else known.network_address


def rows_of(found: Iterable[Heavy], addresses: Addresses) -> list[SourceRow]:
    """Return sources as they may be shown."""
    rows = []
    for heavy in found:
        source = network_of(heavy.key)
        rows.append(
            SourceRow(
                handle=addresses.handle(source),
                source=addresses.shown(source),
                packets=heavy.packets,
                packet_rate=heavy.packet_rate,
                refused=heavy.refused,
                refused_rate=heavy.refused_rate,
            )
        )
    return rows


def _seconds(params: Params) -> float | None:
    seconds = params.get("seconds")
    if seconds is None:
        return None
    if not isinstance(seconds, int | float) or not 0 < seconds < 1e9:
        raise UsageError(f"ratelimit: expected a time above 0 in seconds, found {seconds!r}")
    return float(seconds)


def _mode_of(word: object) -> Mode:
    try:
        return Mode[str(word).upper()]
    except KeyError:
        raise UsageError(f"ratelimit mode: expected off, monitor or enforce, found {word!r}") from None
