# SPDX-License-Identifier: Apache-2.0
"""What services have done to their upstreams' ports in the last minute; pure."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Mapping

from tidegate.ports.exhaustion import TIME_WAIT

_BINS = TIME_WAIT + 4
#: Rates are of so many seconds, without the interval in which the traffic began.
_RECENT = 5.0


class Flow:
    """The connections of one service to one upstream: closes that left a port in TIME_WAIT, and failures.

    Times are monotonic seconds. Closes are kept by the second, for as long as TIME_WAIT lasts.
    """

    def __init__(self, now: float) -> None:
        self._bins = array("L", bytes(array("L").itemsize * _BINS))
        self._second = int(now)
        self._recent: deque[tuple[float, int, int]] = deque()
        self.closes: dict[str, int] = {}
        #: Ports that were left in TIME_WAIT in the last minute.
        self.waiting = 0
        self.exhausted = 0
        self.exhausted_at = float("-inf")
        self.touched = now

    def add(self, now: float, connects: int, closes: Mapping[str, int], resets: int, exhausted: int) -> None:
        """Take what happened in the interval that ends now.

        ``closes`` are by who was first; those that were ``resets`` of this side leave no port behind.
        """
        self._advance(now)
        for name, n in closes.items():
            self.closes[name] = self.closes.get(name, 0) + n
        left_behind = closes["local"] - resets
        if connects or left_behind or exhausted:
            self.touched = now
        if left_behind > 0:
            self._bins[int(now) % _BINS] += left_behind
            self.waiting += left_behind
        if exhausted:
            self.exhausted += exhausted
            self.exhausted_at = now
        # The interval in which traffic begins is a part of one: it only says since when.
        if not any(connects or left for _, connects, left in self._recent):
            self._recent.clear()
        self._recent.append((now, connects, max(left_behind, 0)))
        while self._recent[0][0] < now - _RECENT and len(self._recent) > 2:
            self._recent.popleft()

    @property
    def seen(self) -> float:
        """For how many seconds there has been traffic without a pause, at most five or so."""
        return self._recent[-1][0] - self._recent[0][0]

    def close_rate(self, interval: float) -> float:
        """Return how many ports a second are left in TIME_WAIT; ``interval`` is that of the last tick."""
        return self._rate(2, interval)

    def connect_rate(self, interval: float) -> float:
        """Return how many connects a second there are."""
        return self._rate(1, interval)

    def expiries(self, now: float) -> list[int]:
        """Return how many of them end in each of the next 60 seconds."""
        oldest = int(now) - TIME_WAIT + 1
        return [
            self._bins[second % _BINS] if second <= self._second else 0
            for second in range(oldest, oldest + TIME_WAIT)
        ]

    def _rate(self, place: int, interval: float) -> float:
        first, *later = self._recent
        if not later:
            return first[place] / interval if interval > 0 else 0.0
        return sum(entry[place] for entry in later) / (later[-1][0] - first[0])

    def _advance(self, now: float) -> None:
        """Let the minute end of what was left behind a minute before."""
        for second in range(self._second + 1, min(int(now), self._second + _BINS) + 1):
            self.waiting -= self._bins[(second - TIME_WAIT) % _BINS]
            self._bins[(second - TIME_WAIT) % _BINS] = 0
        self._second = max(int(now), self._second)


class Level:
    """A number over time, and how fast it grows; times are monotonic seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, now: float, value: int) -> None:
        """Take the number of this moment."""
        if len(self._samples) > 1 and now - self._samples[-2][0] < 1.0:
            self._samples.pop()
        self._samples.append((now, value))
        while now - self._samples[0][0] > 30.0:
            self._samples.popleft()

    def growth(self, seconds: float, least: int) -> float:
        """Return by how much it grows a second.

        0 unless it grew by more than ``least``, in both halves of so many seconds or more.
        """
        (first_at, first), (last_at, last) = self._samples[0], self._samples[-1]
        if last_at - first_at < seconds or last - first <= least:
            return 0.0
        middle = self._samples[len(self._samples) // 2][1]
        return (last - first) / (last_at - first_at) if first < middle < last else 0.0
