# SPDX-License-Identifier: Apache-2.0
"""What a driver is: it reads how one proxy uses the endpoints of one pool, and writes the difference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from tidegate.model.driver import Use

#: Who is to be out, each with how many trial requests may pass at a time all the same: 0 none, else half open.
Wanted = Mapping[str, int]


class Exchange(NamedTuple):
    """A command that was sent to a proxy, or a file that was written for it, and what came back."""

    command: str
    answer: str


class Discovery(NamedTuple):
    """What a proxy is; ``warnings`` are worth a look, each of ``refusals`` keeps the driver from writing.

    ``old_workers`` are how many processes of before a reload go on, and their resident bytes; None where there is
    no such thing.
    """

    version: str
    warnings: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    old_workers: tuple[int, int] | None = None


class Driver(Protocol):
    """One pool in one proxy. Endpoints are ``ADDRESS:PORT`` as the config writes them.

    Only one thread at a time calls. All but ``close`` raise DriverError for a proxy that is away or refuses, which
    leaves the driver as it was: the next call tries anew.

    What a driver finds before its first write to an endpoint it puts into its journal, on disk before the write,
    so that another driver with the same journal (after a restart, an upgrade, or to uninstall) puts exactly that
    back. What an operator has taken out is ``HELD``; it is never written to, and where an operator takes out what
    Tidegate has ejected, it is the operator's from then on.
    """

    #: What it writes to, for people.
    target: str
    #: Whether an ejection outlives an agent that has died.
    sticks: bool
    #: The proxy is read again after so many seconds, in which it may have forgotten.
    period: float

    def discover(self) -> Discovery:
        """Look at the proxy: what it is, and what is in the way of writing. Changes nothing."""

    def read(self) -> dict[str, Use]:
        """Ask the proxy how it uses each endpoint of the pool, and return that; not what was asked of it."""

    def apply(self, out: Wanted) -> list[Exchange]:
        """Have these be out and no others but those of operators; nothing is sent where that is so already."""

    def restore(self) -> list[Exchange]:
        """Put back all that the journal tells, exactly as it was found."""

    def close(self) -> None:
        """Let go of what is held here; the proxy stays as it is."""
