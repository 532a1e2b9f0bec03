# SPDX-License-Identifier: Apache-2.0
"""What is shown of a pool's drivers: what each proxy says of the endpoints, and how the updates went."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

import msgspec

from tidegate.model.histogram import Distribution

#: Upper bounds of the buckets of update times, in seconds.
UPDATE_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Use(StrEnum):
    """How a proxy uses an endpoint of a pool, and whose doing it is."""

    ACTIVE = "active"
    EJECTED = "ejected"  # out, by Tidegate
    TRIAL = "trial"  # half open: back, as far as the proxy can be told so with a limit
    HELD = "held"  # out, by the proxy's operator: never undone
    FAILED = "failed"  # out, by the proxy's own checks
    ABSENT = "absent"  # the proxy doesn't have it


#: What gets requests, or would but for Tidegate.
USABLE = (Use.ACTIVE, Use.EJECTED, Use.TRIAL)


class Result(StrEnum):
    """How an update ended."""

    OK = "ok"  # the proxy says what was asked
    UNVERIFIED = "unverified"  # it was told, but says something else
    FAILED = "failed"  # it is away, or refused
    REFUSED = "refused"  # not asked of it, as too few endpoints would be left in it


class Standing(StrEnum):
    """How a driver stands to its proxy."""

    OFF = "off"  # the pool's mode is off: the proxy isn't even read
    STARTING = "starting"  # not read yet
    OK = "ok"  # the proxy says what is wanted
    BEHIND = "behind"  # it says something else
    AWAY = "away"  # it doesn't answer


class Updates(msgspec.Struct, frozen=True, kw_only=True):
    """Updates of one driver that ended in one way; ``seconds`` from the decision until that was known."""

    pool: str
    driver: str
    result: str
    count: int
    seconds: Distribution


class DriverRow(msgspec.Struct, frozen=True, kw_only=True):
    """One driver of a pool.

    ``target`` is what it writes to, ``version`` the proxy's. ``uses`` is what the proxy says of each endpoint,
    ``refused`` whom it could not take out without too few being left. ``error`` is why the standing isn't ok,
    ``warnings`` what is worth a look. ``replays`` counts how often a proxy had forgotten and was told again.
    ``old_workers`` are processes of before a reload that go on, None where there is no such thing.
    """

    pool: str
    driver: str
    target: str
    version: str
    standing: Standing
    uses: dict[str, Use]
    refused: tuple[str, ...] = ()
    error: str = ""
    warnings: tuple[str, ...] = ()
    replays: int = 0
    old_workers: int | None = None
    old_worker_bytes: int | None = None
    updates: tuple[Updates, ...] = ()

    @property
    def standings(self) -> dict[str, int]:
        """1 for how it stands, 0 for the other ways."""
        return {str(standing): int(standing is self.standing) for standing in Standing}

    @property
    def used(self) -> dict[str, int]:
        """How many endpoints the proxy uses in each way."""
        uses = list(self.uses.values())
        return {str(use): uses.count(use) for use in Use}


def updates(rows: Iterable[DriverRow]) -> tuple[Updates, ...]:
    """Return the updates of all drivers."""
    return tuple(updates for row in rows for updates in row.updates)
