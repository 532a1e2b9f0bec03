# SPDX-License-Identifier: Apache-2.0
"""When each tick is due, and how well that was kept; pure."""

from __future__ import annotations

from tidegate.model.snapshot import Ticks

#: A tick that begins later than this share of its interval is counted as late.
LATE_SHARE = 0.1


class Schedule:
    """Ticks at a fixed distance; ``due`` is when the next shall begin, in seconds of the caller's clock.

    A tick that takes longer than its interval is followed at once by the next, and what was due meanwhile is
    skipped, not made up for.
    """

    def __init__(self, due: float) -> None:
        self.due = due
        self.ticks = Ticks()

    def begin(self, now: float, interval: float) -> Ticks:
        """Begin the tick that was due, and return how all have gone so far."""
        late = max(now - self.due, 0.0)
        # The first is late by what the start takes.
        counted = self.ticks.taken > 0 and late > interval * LATE_SHARE
        self.ticks = Ticks(
            taken=self.ticks.taken + 1,
            late=self.ticks.late + counted,
            skipped=self.ticks.skipped + int(late / interval),
            late_seconds=late,
        )
        # Back onto the beat: after a tick that began late the next comes sooner.
        self.due += interval * (1 + int(late / interval))
        return self.ticks
