# SPDX-License-Identifier: Apache-2.0
"""From what the proxy refuses to bans at the card."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from tidegate.audit import Action, Audit, agent
from tidegate.config import units
from tidegate.config.keys import Feed
from tidegate.feeds.datagrams import Datagrams
from tidegate.model.feed import Kind
from tidegate.privacy import Addresses
from tidegate.ratelimit.bans import Bans, Parameters, Threshold
from tidegate.ratelimit.limiter import Limiter


class Feeding:
    """Reads the feed's socket at each tick, bans through the limiter, and puts each ban on the record."""

    def __init__(self, feed: Feed, limiter: Limiter, addresses: Addresses, audit: Audit) -> None:
        assert feed.listen is not None
        self._limiter, self._addresses, self._audit = limiter, addresses, audit
        storms = {
            Kind.LIMITED: feed.limited,
            Kind.TOO_MANY: feed.too_many,
            Kind.UNAUTHORIZED: feed.unauthorized,
        }
        parameters = Parameters(
            thresholds={kind: Threshold(storm.count, storm.within) for kind, storm in storms.items()},
            duration=feed.ban.duration,
            escalation=feed.ban.escalation,
            longest=feed.ban.longest,
            at_most=feed.ban.at_most,
        )
        self._bans = Bans(parameters, limiter.is_allowed)
        if feed.listen.startswith("/"):
            self._datagrams = Datagrams(Path(feed.listen))
        else:
            listen = units.listen(feed.listen)
            self._datagrams = Datagrams((listen.host, listen.port))

    def tick(self, now: float) -> None:
        """Read what has come, ban, and end what is over; ``now`` is monotonic seconds."""
        refused = self._bans.counts()["refused_at_most"]
        while events := self._datagrams.read():
            for event in events:
                ban = self._bans.observe(event)
                if ban is None:
                    continue
                self._limiter.ban(ban.prefix.network_address, max(ban.until - now, 0.0))
                details = {"kind": ban.kind.value, "count": ban.count, "seconds": ban.duration}
                self._record(Action.BAN, ban.prefix, ban.reason, details)
        refused = self._bans.counts()["refused_at_most"] - refused
        if refused:
            details = {"not_banned": refused}
            self._audit.record(
                Action.THRESHOLD, by=agent(), reason="as many bans as feed.ban.at_most", details=details
            )
        for expired in self._bans.expire(now):
            self._limiter.expire_ban(expired.prefix.network_address)
            self._record(Action.UNBAN, expired.prefix, "its time is over", {})

    def losses(self) -> dict[str, int]:
        """Return what was lost or not understood of the feed, by reason."""
        counts = {f"feed_{name}": n for name, n in self._datagrams.counts().items() if name != "events"}
        return counts | {"feed_dropped": self._datagrams.dropped() or 0}

    def close(self) -> None:
        """Listen no more."""
        self._datagrams.close()

    def _record(
        self, action: Action, prefix: IPv4Network | IPv6Network, reason: str, details: Mapping[str, object]
    ) -> None:
        self._audit.record(
            action, by=agent(), subject=self._addresses.shown(prefix), reason=reason, details=details
        )
