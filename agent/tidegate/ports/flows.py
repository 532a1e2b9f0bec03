# SPDX-License-Identifier: Apache-2.0
"""What services have done to their upstreams' ports in the last minute; pure."""

from __future__ import annotations

from array import array
from collections import deque
from typing import NamedTuple

from tidegate.ports.exhaustion import TIME_WAIT
from tidegate.signals.tcp_fields import CLOSERS

_LOCAL = CLOSERS.index("local")
_BINS = TIME_WAIT + 4
#: Rates are of so many seconds, without the interval in which the traffic began.
_RECENT = 5.0


class Tick(NamedTuple):
    """The moment of a tick, the earlier one from which its rates are taken, and the seconds since the last."""

    now: float
    since: float
    interval: float


class Ticks:
    """The ticks of the seconds that rates are of."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()

    def add(self, now: float) -> None:
        """Take the next tick."""
        self._times.append(now)
        while self._times[0] < now - _RECENT and len(self._times) > 2:
            self._times.popleft()

    def last(self, interval: float) -> Tick:
        """Return the last one, which came ``interval`` seconds after the one before."""
        return Tick(self._times[-1], self._times[0], interval)


class Traffic(NamedTuple):
    """What one service did to one upstream in an interval; ``closes`` by who was first, as in ``CLOSERS``.

    Of those that this side closed first, its own ``resets`` leave no port behind.
    """

    connects: int = 0
    resets: int = 0
    exhausted: int = 0
    closes: tuple[int, ...] = (0,) * len(CLOSERS)

    @property
    def left_behind(self) -> int:
        """Ports that were left in TIME_WAIT."""
        return max(self.closes[_LOCAL] - self.resets, 0)


class Flow:
    """The connections of one service to one upstream: closes that left a port in TIME_WAIT, and failures.

    Times are monotonic seconds. Closes are kept by the second, for as long as TIME_WAIT lasts. Intervals without
    traffic need not be told: they cost nothing.
    """

    def __init__(self, now: float) -> None:
        self._bins = array("L", bytes(array("L").itemsize * _BINS))
        self._second = int(now)
        self._waiting = 0
        self._recent: deque[tuple[float, int, int]] = deque()
        self.closes = [0] * len(CLOSERS)
        self.exhausted = 0
        self.exhausted_at = float("-inf")
        self.touched = now

    def add(self, tick: Tick, traffic: Traffic) -> None:
        """Take what happened in the interval that ends with this tick."""
        now, left_behind = tick.now, traffic.left_behind
        for closer, n in enumerate(traffic.closes):
            self.closes[closer] += n
        if not (traffic.connects or left_behind or traffic.exhausted):
            return
        self.touched = now
        if left_behind:
            self._advance(now)
            self._bins[int(now) % _BINS] += left_behind
            self._waiting += left_behind
        if traffic.exhausted:
            self.exhausted += traffic.exhausted
            self.exhausted_at = now
        # The interval in which traffic begins is a part of one: it only says since when.
        if self._recent and self._recent[-1][0] < tick.since:
            self._recent.clear()
        self._recent.append((now, traffic.connects, left_behind))
        while len(self._recent) > 1 and self._recent[1][0] <= tick.since:
            self._recent.popleft()

    def waiting(self, now: float) -> int:
        """Return how many ports were left in TIME_WAIT in the last minute."""
        if self._waiting:
            self._advance(now)
        return self._waiting

    def seen(self, tick: Tick) -> float:
        """Return of how many seconds its rates are, five or so unless its traffic has just begun."""
        return tick.now - self._since(tick)

    def close_rate(self, tick: Tick) -> float:
        """Return how many ports a second are left in TIME_WAIT."""
        return self._rate(2, tick)

    def connect_rate(self, tick: Tick) -> float:
        """Return how many connects a second there are."""
        return self._rate(1, tick)

    def expiries(self, now: float) -> list[int]:
        """Return how many of them end in each of the next 60 seconds."""
        self._advance(now)
        oldest = int(now) - TIME_WAIT + 1
        return [self._bins[second % _BINS] for second in range(oldest, oldest + TIME_WAIT)]

    def _since(self, tick: Tick) -> float:
        """Return from when its rates are taken."""
        return max(self._recent[0][0], tick.since) if self._recent else tick.since

    def _rate(self, place: int, tick: Tick) -> float:
        since = self._since(tick)
        if since < tick.now:
            return sum(entry[place] for entry in self._recent if entry[0] > since) / (tick.now - since)
        if self._recent and self._recent[0][0] == tick.now and tick.interval > 0:
            return self._recent[0][place] / tick.interval
        return 0.0

    def _advance(self, now: float) -> None:
        """Let the minute end of what was left behind a minute before."""
        to = int(now)
        if to <= self._second:
            return
        for second in range(self._second + 1, min(to, self._second + _BINS) + 1):
            self._waiting -= self._bins[(second - TIME_WAIT) % _BINS]
            self._bins[(second - TIME_WAIT) % _BINS] = 0
        self._second = to


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
