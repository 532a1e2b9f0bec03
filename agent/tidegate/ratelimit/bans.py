# SPDX-License-Identifier: Apache-2.0
"""Which sources to ban for what the proxy refused of them: thresholds, durations, a cap; pure."""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from tidegate.model.feed import Address, Event, Kind

Network = IPv4Network | IPv6Network
_IPV6_BITS = 64
_IPV6 = 1 << _IPV6_BITS


@dataclass(frozen=True, slots=True)
class Threshold:
    """So many events within so many seconds, both ends included, are too many."""

    count: int
    within: float


@dataclass(frozen=True, slots=True)
class Parameters:
    """What is banned, for how long, and how much is remembered; times in seconds.

    A further ban of a source within ``memory`` of its last one's end is ``escalation`` times as long as that one,
    up to ``longest``. At most ``at_most`` bans are in force. ``max_sources`` (each kind
    counts) and ``max_events`` bound what is remembered of sources that aren't banned.
    """

    thresholds: Mapping[Kind, Threshold]
    duration: float = 60.0
    escalation: float = 2.0
    longest: float = 3600.0
    at_most: int = 10_000
    memory: float = 86_400.0
    max_sources: int = 16_384
    max_events: int = 262_144


@dataclass(frozen=True, slots=True)
class Ban:
    """A source is to be kept out until then."""

    prefix: Network
    until: float
    reason: str
    kind: Kind
    count: int  # events that led to it
    duration: float


@dataclass(frozen=True, slots=True)
class Expired:
    """A ban's time is over."""

    prefix: Network


class Bans:
    """Counts events by source and says when a source is to be banned, and when no longer.

    ``allowed`` tells whether an address is never to be banned. Times are a monotonic clock's; one that is earlier
    than the last is taken as the last.
    """

    def __init__(self, parameters: Parameters, allowed: Callable[[Address], bool]) -> None:
        self._parameters, self._allowed = parameters, allowed
        # Sources are kept as numbers (_key), of which hundreds of thousands fit where networks would not.
        self._times: OrderedDict[tuple[int, Kind], array[float]] = OrderedDict()  # least recently seen first
        self._events = 0
        self._bans: dict[int, float] = {}
        self._ends: list[tuple[float, int]] = []  # a heap
        self._past: OrderedDict[int, tuple[float, float]] = OrderedDict()  # last ban's duration and end
        self._now = float("-inf")
        self._counts: Counter[str] = Counter(
            bans=0, refused_at_most=0, allowed=0, while_banned=0, sources_forgotten=0, past_forgotten=0
        )

    def observe(self, event: Event) -> Ban | None:
        """Count an event; return the ban that it leads to."""
        now = self._advance(event.time)
        threshold = self._parameters.thresholds.get(event.kind)
        if threshold is None:
            return None
        if self._allowed(event.address):
            self._counts["allowed"] += 1
            return None
        key = _key(event.address)
        if self._bans.get(key, now) > now:  # underway when it was banned, or the mode doesn't enforce
            self._counts["while_banned"] += 1
            return None
        count = self._count(key, event.kind, threshold, now)
        return self._ban(key, event.kind, threshold, now) if count >= threshold.count else None

    def expire(self, now: float) -> list[Expired]:
        """Return the bans that have ended by now."""
        now = self._advance(now)
        found = []
        while self._ends and self._ends[0][0] <= now:
            until, key = heapq.heappop(self._ends)
            if self._bans.get(key) == until:
                del self._bans[key]
                found.append(Expired(_network(key)))
        return found

    def lift(self, prefix: Network) -> bool:
        """Forget a ban and what led to it, as somebody has said so; return whether there was one."""
        key = _key(prefix.network_address)
        self._past.pop(key, None)
        self._drop(key)
        return self._bans.pop(key, None) is not None

    def restore(self, prefix: Network, until: float) -> None:
        """Take up a ban that an earlier run of the agent made."""
        key = _key(prefix.network_address)
        self._bans[key] = until
        self._schedule(key, until)

    def __len__(self) -> int:
        """Return how many bans are in force or not yet reported as ended."""
        return len(self._bans)

    @property
    def tracked(self) -> tuple[int, int]:
        """How many sources (once for each kind of event) and how many events are remembered."""
        return len(self._times), self._events

    def counts(self) -> dict[str, int]:
        """Return how many bans there were, what was refused and what was forgotten, by reason."""
        return dict(self._counts)

    def _advance(self, time: float) -> float:
        self._now = max(self._now, time)
        return self._now

    def _count(self, key: int, kind: Kind, threshold: Threshold, now: float) -> int:
        """Add an event; return how many there are within the threshold's time."""
        times = self._times.get((key, kind))
        if times is None:
            times = self._times[key, kind] = array("d")
        else:
            self._times.move_to_end((key, kind))
        gone = bisect_left(times, now - threshold.within)
        del times[:gone]
        times.append(now)
        self._events += 1 - gone
        while len(self._times) > 1 and (
            len(self._times) > self._parameters.max_sources or self._events > self._parameters.max_events
        ):
            _, forgotten = self._times.popitem(last=False)
            self._events -= len(forgotten)
            self._counts["sources_forgotten"] += 1
        return len(times)

    def _ban(self, key: int, kind: Kind, threshold: Threshold, now: float) -> Ban | None:
        self._drop(key)  # whatever comes of it, it is counted anew
        if key not in self._bans and len(self._bans) >= self._parameters.at_most:
            self._counts["refused_at_most"] += 1
            return None
        duration = self._duration(key, now)
        until = now + duration
        self._bans[key] = until
        self._schedule(key, until)
        self._past[key] = (duration, until)
        self._past.move_to_end(key)
        if len(self._past) > max(self._parameters.max_sources, self._parameters.at_most):
            self._past.popitem(last=False)
            self._counts["past_forgotten"] += 1
        self._counts["bans"] += 1
        reason = f"{threshold.count} {kind} within {threshold.within:g} s"
        return Ban(_network(key), until, reason, kind, threshold.count, duration)

    def _duration(self, key: int, now: float) -> float:
        duration, until = self._past.get(key, (0.0, float("-inf")))
        if now - until > self._parameters.memory:
            return min(self._parameters.duration, self._parameters.longest)
        return min(duration * self._parameters.escalation, self._parameters.longest)

    def _schedule(self, key: int, until: float) -> None:
        heapq.heappush(self._ends, (until, key))
        if len(self._ends) > 2 * len(self._bans) + 64:  # most are of bans that were lifted
            self._ends = sorted({(until, key) for until, key in self._ends if self._bans.get(key) == until})

    def _drop(self, key: int) -> None:
        for kind in self._parameters.thresholds:
            self._events -= len(self._times.pop((key, kind), ()))


def prefix_of(address: Address) -> Network:
    """Return the source that an address belongs to, as the limiter's tables have it: its /32 or /64."""
    return _network(_key(address))


def _key(address: Address) -> int:
    """Return an address's source as a number: of IPv4 32 bits, of IPv6 the upper 64 and one above them."""
    if isinstance(address, IPv4Address):
        return int(address)
    return _IPV6 | int(address) >> _IPV6_BITS


def _network(key: int) -> Network:
    if key & _IPV6:
        return IPv6Network(((key ^ _IPV6) << _IPV6_BITS, _IPV6_BITS))
    return IPv4Network(key)
