# SPDX-License-Identifier: Apache-2.0
"""From what the proxy refuses to bans at the card."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from tidegate.audit import Action, Audit, agent
from tidegate.config import units
from tidegate.config.limits import Feed
from tidegate.errors import TidegateError
from tidegate.feeds.datagrams import REFUSALS, Datagrams
from tidegate.model.feed import Kind
from tidegate.model.limiter import FeedRow
from tidegate.privacy import Addresses
from tidegate.ratelimit.bans import Ban, Bans, Parameters, Threshold
from tidegate.ratelimit.limiter import Limiter

log = logging.getLogger("tidegate")

_LOST = ("malformed", "truncated")


class Feeding:
    """Reads the feed's socket when something comes, bans through the limiter, and puts each ban on the record.

    :meth:`read` is for a loop's readers and never waits: what it decides is put in force by a thread, at the
    limiter's ``turn``, one after the other.
    """

    def __init__(
        self, feed: Feed, limiter: Limiter, addresses: Addresses, audit: Audit, turn: threading.Lock
    ) -> None:
        assert feed.listen is not None
        self._limiter, self._addresses, self._audit, self._turn = limiter, addresses, audit, turn
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
        self._counting = threading.Lock()
        self._bans = Bans(parameters, limiter.is_allowed)
        for prefix, until in limiter.bans():
            self._bans.restore(prefix, until)
        self._failed = 0
        if feed.listen.startswith("/"):
            self._datagrams = Datagrams(Path(feed.listen), REFUSALS)
        else:
            listen = units.listen(feed.listen)
            self._datagrams = Datagrams((listen.host, listen.port), REFUSALS)
        self._acting = ThreadPoolExecutor(1, "tidegate-feed")
        self._listen = feed.listen
        if complaint := self._datagrams.complaint():
            log.warning(complaint)

    def fileno(self) -> int:
        """Return the descriptor that is readable when lines have come."""
        return self._datagrams.fileno()

    def read(self) -> None:
        """Count what has come, and have banned who is to be."""
        decided = []
        with self._counting:
            refused = self._bans.counts()["refused_at_most"]
            while events := self._datagrams.read():
                self._bans.expire(events[-1].time)
                decided += [ban for ban in map(self._bans.observe, events) if ban is not None]
            refused = self._bans.counts()["refused_at_most"] - refused
        if decided or refused:
            self._acting.submit(self._act, decided, refused)

    def lift(self, prefix: IPv4Network | IPv6Network) -> None:
        """Count a source anew, as somebody has ended its ban."""
        with self._counting:
            self._bans.lift(prefix)

    def row(self) -> FeedRow:
        """Return what there is to show of the feed."""
        with self._counting:
            counts = self._datagrams.counts()
            return FeedRow(
                feed="nginx",
                listen=self._listen,
                lines=counts,
                bans=self._bans.counts(),
                dropped=self._datagrams.dropped(),
                full=self._datagrams.full(),
                complaint=self._datagrams.complaint(),
            )

    def losses(self) -> dict[str, int]:
        """Return what was lost of the feed, by reason."""
        row = self.row()
        return {
            "feed_lines": sum(row.lines[name] for name in _LOST) + (row.dropped or 0),
            "feed_queue_full": row.full or 0,
            "feed_sources_forgotten": row.bans["sources_forgotten"] + row.bans["past_forgotten"],
            "feed_bans_refused": row.bans["refused_at_most"] + self._failed,
        }

    def close(self) -> None:
        """Listen no more, when all that was decided is in force."""
        self._datagrams.close()
        self._acting.shutdown()

    def _act(self, decided: Iterable[Ban], refused: int) -> None:
        with self._turn:
            for ban in decided:
                details = {"kind": ban.kind.value, "count": ban.count, "seconds": ban.duration}
                try:
                    longer = self._limiter.ban_until(ban.prefix.network_address, ban.until)
                except TidegateError as error:
                    self._failed += 1
                    log.error("rate limit: a ban by the feed: %s", error)
                    self._record(Action.THRESHOLD, ban.prefix, f"not banned: {ban.reason}", details)
                else:
                    if longer:
                        self._record(Action.BAN, ban.prefix, ban.reason, details)
            if refused:
                self._record(Action.THRESHOLD, None, "as many bans as feed.ban.at_most", {"not_banned": refused})

    def _record(
        self,
        action: Action,
        prefix: IPv4Network | IPv6Network | None,
        reason: str,
        details: Mapping[str, object],
    ) -> None:
        subject = None if prefix is None else self._addresses.shown(prefix)
        self._audit.record(action, by=agent(), subject=subject, reason=reason, details=details)
