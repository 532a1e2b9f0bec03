# SPDX-License-Identifier: Apache-2.0
"""What proxies say of their endpoints, taken to the breaker where the kernel can't read the answers (TLS)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tidegate.breaker.control import Breaker
from tidegate.config import units
from tidegate.config.pools import EnvoyDriver, HaproxyDriver, Pool
from tidegate.errors import TidegateError
from tidegate.feeds import datagrams, upstreams
from tidegate.feeds.polled import Statistics
from tidegate.model.breaker import Event
from tidegate.pools import making

log = logging.getLogger("tidegate")

_LOST = ("malformed", "truncated")
_Key = tuple[str, str]  # of a pool and the driver's name in it
_Asked = tuple[HaproxyDriver | EnvoyDriver, Sequence[str]]  # where, and of which endpoints
_Take = Callable[[Sequence[Event]], int]


class Hearing:
    """nginx's log lines, at ``listen`` where that isn't None, and the statistics of HAProxy and Envoy.

    Statistics are asked for while an endpoint of their pool has answers that can't be read. Raises
    UnavailableError where ``listen`` can't be used.
    """

    def __init__(self, breaker: Breaker, listen: str | None, pools: Mapping[str, Pool]) -> None:
        self._breaker, self._pools = breaker, pools
        self._polled: dict[_Key, tuple[_Asked, Statistics[Any]]] = {}
        self.lines: datagrams.Datagrams[tuple[upstreams.Try, ...]] | None = None
        if listen is not None:
            where = units.listen(listen) if not listen.startswith("/") else Path(listen)
            at = where if isinstance(where, Path) else (where.host, where.port)
            self.lines = datagrams.Datagrams(at, datagrams.TRIES)
            if complaint := self.lines.complaint():
                log.warning(complaint)

    def read(self) -> None:
        """Take the lines that have come."""
        if self.lines is None:
            return
        pools = self._breaker.names()
        while tries := self.lines.read():
            events: list[Event] = []
            for each in (one for several in tries for one in several):
                pool = pools.get(each.endpoint)
                if pool is not None:
                    # A wait that the pool's response_timeout calls too long the kernel tells itself.
                    asked = self._pools[pool].response_timeout if pool in self._pools else None
                    events += upstreams.events_of(each, pool, timeouts=asked is None)
            self._breaker.hear(events)

    def configure(self, pools: Mapping[str, Pool]) -> None:
        """Take the pools of another config at the next tick."""
        self._pools = pools

    def tick(self) -> None:
        """Ask for the statistics of pools with answers that can't be read, and for no others."""
        blind = {pool for pool, _ in self._breaker.blind()}
        wanted = {
            (pool, name): (section, self._pools[pool].endpoints)
            for pool in blind & self._pools.keys()
            for name, section in making.names(self._pools[pool].drivers)
            if isinstance(section, HaproxyDriver | EnvoyDriver) and section.statistics
        }
        for key, (asked, polled) in list(self._polled.items()):
            if wanted.get(key) != asked:
                del self._polled[key]
                polled.stop()
        for key, (section, endpoints) in wanted.items():
            if key not in self._polled:
                found = _statistics(key, section, endpoints, self._breaker.hear)
                if found is not None:
                    self._polled[key] = (section, endpoints), found

    def losses(self) -> dict[str, int]:
        """Return what was lost of lines and statistics, by kind."""
        found = {"upstream_statistics": sum(polled.counts()["failed"] for _, polled in self._polled.values())}
        if self.lines is not None:
            counts = self.lines.counts()
            found["upstream_lines"] = sum(counts[name] for name in _LOST) + (self.lines.dropped() or 0)
            found["upstream_queue_full"] = self.lines.full() or 0
        return found

    def close(self) -> None:
        """Listen and ask no more."""
        for _, polled in self._polled.values():
            polled.stop()
        self._polled.clear()
        if self.lines is not None:
            self.lines.close()


def _statistics(
    key: _Key,
    section: HaproxyDriver | EnvoyDriver,
    endpoints: Sequence[str],
    take: Callable[[Sequence[Event]], int],
) -> Statistics[Any] | None:
    """Begin to ask a proxy; None where the config doesn't say where."""
    pool, name = key
    of = dict.fromkeys(endpoints, pool)
    if isinstance(section, HaproxyDriver):
        return _of_haproxy(f"{pool}: {name}", section, of, take)
    return None if section.admin is None else _of_envoy(f"{pool}: {name}", section.admin, of, take)


def _of_haproxy(name: str, section: HaproxyDriver, of: Mapping[str, str], take: _Take) -> Statistics[Any]:
    from tidegate.feeds import haproxy  # noqa: PLC0415
    from tidegate.pools import haproxy_runtime as runtime  # noqa: PLC0415

    def ask() -> haproxy.Sample:
        servers = runtime.exchange(section.socket, runtime.show_servers(section.backend))
        number = runtime.backend_number(servers, section.backend)
        text = runtime.exchange(section.socket, f"show stat {number:d} 4 -1")
        found = haproxy.parse(text)
        if found is None:
            raise TidegateError(f"haproxy {section.socket}: expected its statistics, found {text[:80]!r}")
        return found

    return Statistics(name, ask, lambda old, new: haproxy.difference(old, new, of), take)


def _of_envoy(name: str, address: str, of: Mapping[str, str], take: _Take) -> Statistics[Any]:
    from tidegate.feeds import envoy  # noqa: PLC0415
    from tidegate.pools.envoy_admin import Admin  # noqa: PLC0415

    admin = Admin(address)

    def ask() -> envoy.Sample:
        text = admin.statistics()
        found = envoy.parse(text)
        if found is None:
            raise TidegateError(f"envoy {address}: expected its statistics, found {text[:80]!r}")
        return found

    return Statistics(name, ask, lambda old, new: envoy.difference(old, new, of), take)
