# SPDX-License-Identifier: Apache-2.0
"""The driver of a pool that has none: it remembers what would be out, and tells nobody."""

from __future__ import annotations

from collections.abc import Iterable

from tidegate.model.driver import Use
from tidegate.pools.driver import Discovery, Exchange, Wanted
from tidegate.pools.journal import Journal


class NullDriver:
    """A pool that no proxy is told of."""

    target = "nobody"
    sticks = False
    period = 60.0

    def __init__(self, endpoints: Iterable[str], journal: Journal) -> None:
        self.uses = dict.fromkeys(endpoints, Use.ACTIVE)
        self._journal = journal

    def discover(self) -> Discovery:
        """Say that nothing comes of it."""
        return Discovery("", ("no driver: what is decided has no effect; name one in 'drivers' of the pool",))

    def read(self) -> dict[str, Use]:
        """Return what would be out."""
        return dict(self.uses)

    def apply(self, out: Wanted) -> list[Exchange]:
        """Remember it."""
        exchanges = []
        for endpoint, use in self.uses.items():
            if use not in (Use.ACTIVE, Use.EJECTED, Use.TRIAL):
                continue
            permits = out.get(endpoint)
            wanted = Use.ACTIVE if permits is None else Use.TRIAL if permits else Use.EJECTED
            if wanted is use:
                continue
            if wanted is not Use.ACTIVE:
                self._journal.put({endpoint: Use.ACTIVE})
            self.uses[endpoint] = wanted
            exchanges.append(Exchange(f"{endpoint} {wanted}", "nobody was told"))
        self._journal.drop(
            *(name for name, use in self.uses.items() if use not in (Use.EJECTED, Use.TRIAL)),
        )
        return exchanges

    def restore(self) -> list[Exchange]:
        """Forget it."""
        exchanges = self.apply({})
        self._journal.clear()
        return exchanges

    def close(self) -> None:
        """Hold nothing."""
