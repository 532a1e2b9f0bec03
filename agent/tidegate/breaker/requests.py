# SPDX-License-Identifier: Apache-2.0
"""What is asked of the breaker over the control socket; what it changes is on the record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from tidegate.audit import actor
from tidegate.breaker.control import Breaker
from tidegate.errors import UsageError
from tidegate.model.breaker import PoolRow
from tidegate.model.driver import DriverRow

Params = Mapping[str, Any]


class Peer(Protocol):
    """Who asks."""

    @property
    def pid(self) -> int:
        """The process; 0 for one of another pid namespace."""

    @property
    def uid(self) -> int:
        """Its user."""


def methods(breaker: Breaker) -> dict[str, Callable[[Params, Peer], Any]]:
    """Return them by name. Each raises UsageError for what can't be done."""

    def status(_params: Params, _peer: Peer) -> tuple[PoolRow, ...]:
        return breaker.rows()

    def drivers(_params: Params, _peer: Peer) -> list[DriverRow]:
        return [driver for pool in breaker.rows() for driver in pool.drivers]

    def changing(how: str, done: str) -> Callable[[Params, Peer], dict[str, str]]:
        def change(params: Params, peer: Peer) -> dict[str, str]:
            pool, endpoint = _text(params, "pool"), _text(params, "endpoint")
            by = actor(peer.pid, peer.uid)
            but = breaker.change(how, pool, endpoint, force=bool(params.get("force")), by=by)
            return {"done": f"{pool} {endpoint}: {done}" + (f"; but {but}" if but and how == "open" else "")}

        return change

    return {
        "breaker.status": status,
        "pools.list": drivers,
        "breaker.open": changing("open", "out, until 'tidegate breaker close' or 'reset'"),
        "breaker.close": changing("close", "back"),
        "breaker.reset": changing("reset", "back, and all about it forgotten"),
    }


def _text(params: Params, name: str) -> str:
    found = params.get(name)
    if not isinstance(found, str):
        raise UsageError(f"breaker: expected a {name} as text, found {found!r}")
    return found
