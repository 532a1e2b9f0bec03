# SPDX-License-Identifier: Apache-2.0
"""Which mode is in force and for how long: the config's, or one that was asked for; pure."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from tidegate.errors import UsageError
from tidegate.kernel.layouts import RatelimitMode as Kernel

#: Enforcement goes on for so many seconds after the agent's last sign of life.
LEASE = 10.0


class Mode(IntEnum):
    """What the limiter does with a packet that is too much."""

    OFF = Kernel.OFF
    MONITOR = Kernel.MONITOR
    ENFORCE = Kernel.ENFORCE

    @property
    def word(self) -> str:
        """Its name in the config."""
        return self.name.lower()


class InForce(NamedTuple):
    """A mode, and until when it may be enforced without word from the agent; None for ever."""

    mode: Mode
    lease: float | None


class Modes:
    """The mode of the config, and over it one that was asked for; times are CLOCK_MONOTONIC in seconds."""

    def __init__(self, configured: Mode, *, persist: bool) -> None:
        self._configured, self.persist = configured, persist
        self._asked: Mode | None = None
        self._until: float | None = None

    def configure(self, configured: Mode, *, persist: bool) -> None:
        """Take the mode of a config that was read again: what was asked for ends with the old one's."""
        if configured is not self._configured:
            self._asked = self._until = None
        self._configured, self.persist = configured, persist

    def ask(self, mode: Mode, now: float, seconds: float | None) -> None:
        """Change the mode until the agent's end, or for so many seconds.

        To enforce, a time is needed, or that the config does: it rolls back unless :meth:`confirm` follows.
        """
        self.check(mode, seconds)
        self._asked, self._until = mode, None if seconds is None else now + seconds

    def check(self, mode: Mode, seconds: float | None) -> None:
        """Raise UsageError for what :meth:`ask` refuses."""
        if seconds is None and mode is Mode.ENFORCE and self._configured is not Mode.ENFORCE:
            raise UsageError(
                "ratelimit mode enforce: expected --for SECONDS, after which it rolls back unless confirmed, as "
                "the config doesn't enforce; found none: try 'tidegate ratelimit mode enforce --for 60s'"
            )

    def confirm(self, now: float) -> Mode:
        """Keep what was asked for with a deadline."""
        if self._asked is None or self._until is None or now >= self._until:
            raise UsageError(
                "ratelimit mode --confirm: expected a mode that waits for confirmation, found none; it may have "
                "rolled back already: see 'tidegate ratelimit status'"
            )
        self._until = None
        return self._asked

    def expired(self, now: float) -> Mode | None:
        """Roll back what was not confirmed in time, and return it; None where there is nothing."""
        if self._asked is None or self._until is None or now < self._until:
            return None
        over, self._asked, self._until = self._asked, None, None
        return over

    @property
    def mode(self) -> Mode:
        """The mode, as of the last :meth:`expired`."""
        return self._configured if self._asked is None else self._asked

    @property
    def until(self) -> float | None:
        """When it rolls back; None where it doesn't."""
        return self._until

    def in_force(self, now: float) -> InForce:
        """Return what the kernel is to do from now on, should it hear nothing more."""
        if self.mode is Mode.ENFORCE and self.persist and self._until is None:
            return InForce(self.mode, None)
        lease = now + LEASE
        return InForce(self.mode, lease if self._until is None else min(lease, self._until))
