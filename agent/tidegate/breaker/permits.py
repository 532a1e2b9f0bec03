# SPDX-License-Identifier: Apache-2.0
"""Trial connections to an endpoint that is half open: so many, and each comes back."""

from __future__ import annotations

from tidegate.model.outliers import Probe


class Permits:
    """``permits`` trials that have to succeed; one that isn't settled in ``wait`` seconds is overdue.

    A trial is known by its attempt (a socket's cookie), or by None where nobody knows.
    """

    __slots__ = ("_limits", "_nameless", "_out", "since", "succeeded")

    def __init__(self, limits: Probe, now: float) -> None:
        self.since, self.succeeded = now, 0
        self._limits = limits
        self._out: dict[int, float] = {}
        self._nameless: list[float] = []

    @property
    def out(self) -> int:
        """Trials under way."""
        return len(self._out) + len(self._nameless)

    @property
    def left(self) -> int:
        """Trials that may still begin."""
        return self._limits.permits - self.succeeded - self.out

    @property
    def complete(self) -> bool:
        """Whether all have succeeded."""
        return self.succeeded >= self._limits.permits

    def take(self, attempt: int | None, now: float) -> bool:
        """Begin a trial, where one is left; a known one keeps its permit."""
        if attempt is not None and attempt in self._out:
            return True
        if self.left <= 0:
            return False
        if attempt is None:
            self._nameless.append(now + self._limits.wait)
        else:
            self._out[attempt] = now + self._limits.wait
        return True

    def holds(self, attempt: int | None) -> bool:
        """Whether this is a trial, or may be one: its attempt isn't known, or that of a trial isn't."""
        return attempt in self._out or bool(self._nameless) or (attempt is None and bool(self._out))

    def settle(self, attempt: int | None, *, success: bool) -> None:
        """Take the permit back; without success it may be used again."""
        if attempt is not None and attempt in self._out:
            del self._out[attempt]
        elif self._nameless:
            del self._nameless[0]
        elif attempt is None and self._out:
            del self._out[next(iter(self._out))]
        else:
            return
        self.succeeded += success

    def return_all(self) -> None:
        """Take all permits back that are out."""
        self._out.clear()
        self._nameless.clear()

    def overdue(self, now: float) -> int:
        """Count the trials that nobody has settled in time."""
        return sum(deadline <= now for deadline in (*self._out.values(), *self._nameless))
