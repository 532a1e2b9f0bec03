# SPDX-License-Identifier: Apache-2.0
"""Keeps what the kernel judges by in step with the config, the lists, the bans and the mode that is in force."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import ip_address
from typing import NamedTuple, Protocol

from tidegate.config.limits import RateLimit
from tidegate.config.units import ip_network
from tidegate.errors import TidegateError
from tidegate.kernel.layouts import (
    RATELIMIT_KEY,
    RatelimitBan,
    RatelimitKey,
    RatelimitSource,
    RatelimitWidth,
)
from tidegate.ratelimit.admission import check_front, check_session
from tidegate.ratelimit.keys import Address, Network, ban_key, mapped, network_of
from tidegate.ratelimit.listening import Listening
from tidegate.ratelimit.lists import allow_list, deny_list, divides, holds
from tidegate.ratelimit.modes import Mode, Modes
from tidegate.ratelimit.policy import Compiled, compiled

log = logging.getLogger("tidegate")

#: Seconds after which it is asked again what this node listens on, and whether files of lists have changed.
_LOOKS, _READS = 2.0, 5.0


class Tables(Protocol):
    """The kernel's side, as :class:`tidegate.kernel.limiter.LimiterMaps` gives it."""

    def policies(self) -> bytes:
        """Return the policies that are in force."""

    def put_in_force(self, policies: bytes, ports: bytes, *, anew: bool) -> None:
        """Let packets be judged by this set; ``anew``: with fresh buckets."""

    def set_own(self, addresses: Iterable[bytes] | None) -> None:
        """Judge only what is sent to these addresses; None: whatever the address."""

    def set_mode(self, mode: int, lease_ns: int) -> None:
        """Change the mode, and until when it is enforced."""

    def set_lists(self, allowed: Iterable[bytes], denied: Iterable[bytes], *, divides: bool) -> None:
        """Replace both lists."""

    def ban(self, key: bytes, until_ns: int) -> None:
        """Ban a source."""

    def unban(self, key: bytes) -> bool:
        """End a ban; false if there is none."""

    def banned(self, key: bytes) -> RatelimitBan | None:
        """Return the ban of a source, also one that has ended."""

    def bans(self) -> Mapping[bytes, RatelimitBan]:
        """Return the bans, those that have ended among them."""

    def ended_bans(self, now_ns: int) -> list[bytes]:
        """Return whose bans have ended."""

    def sources(self) -> Iterable[tuple[RatelimitKey, RatelimitSource]]:
        """Yield the sources of all other packets."""

    def requesting(self) -> Iterable[tuple[RatelimitKey, RatelimitSource]]:
        """Yield the sources that ask for connections."""


class Surroundings(NamedTuple):
    """How it learns what this node listens on, and which addresses it can't do without."""

    listening: Callable[[], Listening]
    needed: Callable[[], list[str]]


class Limiter:
    """The limiter while the agent runs; times are CLOCK_MONOTONIC in seconds."""

    def __init__(
        self,
        config: RateLimit,
        tables: Tables,
        surroundings: Surroundings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._tables, self._surroundings, self._clock = config, tables, surroundings, clock
        self._modes = Modes(Mode[config.mode.upper()], persist=config.persist)
        self._allow, self._deny = allow_list(config), deny_list(config)
        self._by_hand: dict[str, float | None] = {}
        self._needed: list[str] = []
        self._in_force: Compiled | None = None
        self._own: frozenset[Address] | None = frozenset()  # not known yet
        self._looked_at = self._read_at = float("-inf")
        self._complaints: list[str] = []
        self.tick()

    def configure(self, config: RateLimit) -> None:
        """Take a config that was read again; nothing goes unjudged meanwhile."""
        if config == self._config:
            return
        self._config = config
        self._modes.configure(Mode[config.mode.upper()], persist=config.persist)
        self._allow, self._deny = allow_list(config), deny_list(config)
        self._looked_at = self._read_at = float("-inf")
        self.tick()

    def tick(self) -> Mode | None:
        """Renew the lease and whatever may have changed: the lists first, before anything is enforced.

        Returns the mode that rolled back, as nobody confirmed it.
        """
        now = self._clock()
        rolled_back = self._modes.expired(now)
        if rolled_back is not None:
            log.warning("rate limit: %s was not confirmed, back to %s", rolled_back.word, self._modes.mode.word)
        if now - self._read_at >= _READS:
            self._read_at = now
            self._ask_for_needed()
            self._read_lists(now)
        if now - self._looked_at >= _LOOKS:
            self._looked_at = now
            self._look()
        self._renew(now)
        return rolled_back

    @property
    def mode(self) -> Mode:
        """The mode that is in force."""
        return self._modes.mode

    @property
    def until(self) -> float | None:
        """When the mode rolls back; None where it stays."""
        return self._modes.until

    @property
    def allowed(self) -> int:
        """How many prefixes are never limited."""
        return len(self._allow.prefixes)

    @property
    def denied(self) -> int:
        """How many prefixes are always refused."""
        return len(self._deny.prefixes)

    def ask(
        self,
        mode: Mode,
        seconds: float | None,
        *,
        session: str | None,
        yes: bool,
        shown: Callable[[Network], str] = str,
    ) -> None:
        """Change the mode; to enforce is refused where it may lock out who asks, or a crowd, unless ``yes``.

        ``shown`` says how a source may be named.
        """
        now = self._clock()
        self._modes.check(mode, seconds)
        if mode is Mode.ENFORCE and not yes:
            if self._allow.complaints:
                raise TidegateError(
                    f"ratelimit mode enforce: the allow list isn't whole: {self._allow.complaints[0]}; mend it, "
                    "or --yes"
                )
            check_session(session, self.is_allowed)
            check_front(self._requests(), shown)
        self._modes.ask(mode, now, seconds)
        self._renew(now)

    def confirm(self) -> Mode:
        """Keep the mode that waits for that."""
        mode = self._modes.confirm(self._clock())
        self._renew(self._clock())
        return mode

    def ban(self, address: Address, seconds: float | None) -> None:
        """Refuse all of a source; raises TidegateError for one that is allowed."""
        if self.is_allowed(address):
            raise TidegateError(f"ratelimit ban: {address} is on the allow list, which comes before bans")
        until = 0.0 if seconds is None else self._clock() + seconds
        self._tables.ban(ban_key(address), int(until * 1e9))

    def unban(self, address: Address) -> None:
        """End a ban."""
        if not self._tables.unban(ban_key(address)):
            raise TidegateError(f"ratelimit unban: expected a ban of {address}, found none")

    def ban_until(self, address: Address, until: float) -> bool:
        """Ban as :meth:`ban` does, unless it is banned for longer already; return whether it was not."""
        banned = self._tables.banned(ban_key(address))
        if banned is not None and (banned.until_ns == 0 or banned.until_ns >= until * 1e9):
            return False
        self.ban(address, max(until - self._clock(), 0.0))
        return True

    def bans(self) -> list[tuple[Network, float]]:
        """Return the banned sources, and until when; infinity for ever."""
        return [
            (_banned(key), ban.until_ns / 1e9 if ban.until_ns else math.inf)
            for key, ban in self._tables.bans().items()
        ]

    def end_bans(self) -> list[Network]:
        """Remove the bans whose time is over; return whose they were."""
        ended = self._tables.ended_bans(int(self._clock() * 1e9))
        return [_banned(key) for key in ended if self._tables.unban(key)]

    def entries(self) -> Iterable[tuple[RatelimitKey, RatelimitSource]]:
        """Yield all buckets."""
        yield from self._tables.requesting()
        yield from self._tables.sources()

    def allow(self, network: str, seconds: float | None) -> None:
        """Never limit a network from now on; raises TidegateError for a text that is none."""
        with _as_error("ratelimit allow"):
            ip_network(network)
        self._by_hand[network] = None if seconds is None else self._clock() + seconds
        self._read_lists(self._clock())

    def take_back(self, network: str) -> None:
        """End what :meth:`allow` began."""
        if network not in self._by_hand:
            raise TidegateError(f"ratelimit allow --remove: expected what was allowed by hand, found {network!r}")
        del self._by_hand[network]
        self._read_lists(self._clock())

    @property
    def complaints(self) -> list[str]:
        """What is wrong with the files of the lists."""
        return list(self._complaints)

    def is_allowed(self, address: Address) -> bool:
        """Return whether an address is never limited."""
        return holds(self._allow.prefixes, address)

    def _renew(self, now: float) -> None:
        mode, lease = self._modes.in_force(now)
        self._tables.set_mode(mode, 0 if lease is None else int(lease * 1e9))

    def _read_lists(self, now: float) -> None:
        self._by_hand = {
            network: until for network, until in self._by_hand.items() if until is None or until > now
        }
        changed = [self._allow.refresh([*self._needed, *self._by_hand]), self._deny.refresh()]
        if any(changed):
            allowed, denied = self._allow.prefixes, self._deny.prefixes
            self._tables.set_lists(allowed, denied, divides=divides(allowed | denied))
        complaints = [*self._allow.complaints, *self._deny.complaints]
        if complaints != self._complaints:
            self._complaints = complaints
            for complaint in complaints:
                log.error("rate limit: %s; the last good content stays", complaint)

    def _ask_for_needed(self) -> None:
        try:
            self._needed = [address for address in self._surroundings.needed() if _is_address(address)]
        except TidegateError as error:
            log.error("rate limit: %s; those that were allowed so far stay", error)

    def _look(self) -> None:
        try:
            listening = self._surroundings.listening()
        except TidegateError as error:
            log.error("rate limit: %s; the ports stay as they were", error)
            return
        own = listening.own if self._config.destinations == "own" else None
        if own != self._own:
            self._tables.set_own(None if own is None else map(mapped, own))
            self._own = own
        found = compiled(self._config, listening.tcp, listening.udp)
        before, self._in_force = self._in_force, found
        if found != before:
            # An earlier agent's buckets are gone on with where its policies were the same.
            self._tables.put_in_force(found.policies, found.ports, anew=found.policies != self._tables.policies())

    def _requests(self) -> dict[Network, int]:
        found: dict[Network, int] = {}
        for key, source in self._tables.requesting():
            if key.width == RatelimitWidth.NARROW:
                network = network_of(key)
                found[network] = found.get(network, 0) + source.packets
        return found


def _banned(key: bytes) -> Network:
    return network_of(RatelimitKey._make(RATELIMIT_KEY.unpack(key)))


def _is_address(text: str) -> bool:
    with contextlib.suppress(ValueError):
        ip_address(text)
        return True
    return False


@contextlib.contextmanager
def _as_error(what: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise TidegateError(f"{what}: {error}") from error
