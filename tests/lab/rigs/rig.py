# SPDX-License-Identifier: Apache-2.0
"""What the conformance suite asks of a driver's surroundings."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Protocol

from tidegate.pools.driver import Driver
from tidegate.pools.journal import Journal, Kept

#: The endpoints of the pool: each answers any request with its own address, as text.
ENDPOINTS = ("10.0.0.6:5000", "10.0.0.7:5000", "10.0.0.8:5000")


class Rig(Protocol):
    """A real proxy, or what stands for one, before the three ENDPOINTS; ``name`` is the driver's."""

    name: str
    #: Whether it tells an operator's own change; False where it has no such thing.
    has_operator: bool
    #: Whether it can be ended; False for what runs in the kernel or in the driver itself.
    can_be_away: bool

    def driver(self, journal: Journal) -> Driver:
        """Make a driver, as an agent that starts does."""

    def state(self) -> Any:
        """Return all that the driver may change, as the proxy has it: files byte by byte, states, weights."""

    def reached(self, requests: int) -> Counter[str]:
        """Send so many requests through the proxy; count by endpoint who answered, failures by status."""

    def hold(self, endpoint: str) -> None:
        """Take an endpoint out as an operator does."""

    def release(self, endpoint: str) -> None:
        """Take it back as an operator does."""

    def restart(self) -> None:
        """End the proxy and start it again with its own config; returns when it serves."""

    def stop(self) -> None:
        """End the proxy."""

    def start(self) -> None:
        """Start it; returns when it serves."""


def journal(directory: Path, name: str) -> Journal:
    """Return the driver's journal below a directory; a second one is of the same file."""
    return Journal(directory / f"{name}.json", Kept(pool="inventory", driver=name, endpoints=ENDPOINTS, config={}))
