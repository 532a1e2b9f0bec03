# SPDX-License-Identifier: Apache-2.0
"""The limiter of a running agent: its pins and interfaces, what it shows, and what it is asked over the socket."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import msgspec

from tidegate.audit import Audit
from tidegate.config.keys import RateLimit
from tidegate.kernel.limiter import SHARED, LimiterMaps, counts, notes
from tidegate.kernel.objects import BpfObject, possible_cpus
from tidegate.kernel.pins import PINS, PinDirectory
from tidegate.model.limiter import InterfaceRow, VerdictCount
from tidegate.model.limiter import Limiter as LimiterView
from tidegate.privacy import Addresses
from tidegate.ratelimit import listening
from tidegate.ratelimit.feeding import Feeding
from tidegate.ratelimit.interfaces import Interfaces
from tidegate.ratelimit.limiter import Limiter, Surroundings
from tidegate.ratelimit.modes import Mode
from tidegate.ratelimit.policy import sizes
from tidegate.ratelimit.requests import Params, Peer, Requests

#: Maps that each interface has for itself.
_OWN = ("ratelimit_counts", "ratelimit_notes")
#: Sources are counted again after so many seconds: 100,000 take 30 ms.
_COUNTED = 30.0


class RunningLimiter:
    """Attached from the start; :meth:`close` leaves it attached, for the next agent to go on with.

    What changes it comes from two threads, the tick's and that of the socket, and takes turns.
    """

    def __init__(
        self,
        config: RateLimit,
        addresses: Addresses,
        audit: Audit,
        pins: Path = PINS,
        surroundings: Surroundings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._clock, self._audit = config, clock, audit
        self._lock = threading.Lock()
        self._sources: tuple[float, int, int] | None = None
        with contextlib.ExitStack() as stack:
            self._pins = stack.enter_context(PinDirectory(pins))
            base = stack.enter_context(self._object())
            base.load()
            self._maps = LimiterMaps(base, possible_cpus())
            # Lists, policies and mode are in force before any interface is.
            self._limiter = Limiter(
                config, self._maps, surroundings or Surroundings(listening.listening, needed), clock
            )
            self._interfaces = stack.enter_context(
                Interfaces(
                    config.interfaces, self._pins, self._load, generic=config.generic == "allow", clock=clock
                )
            )
            self._requests = Requests(self._limiter, self._view, addresses, audit)
            self._feeding = Feeding(config.feed, self._limiter, addresses, audit) if config.feed.listen else None
            if self._feeding is not None:
                stack.callback(self._feeding.close)
            self._open = stack.pop_all()

    def _object(self) -> BpfObject:
        bpf = BpfObject.named("ratelimit")
        bpf.resize(sizes(self._config))
        bpf.pin_maps(self._pins.path, SHARED)
        return bpf

    def _load(self, index: int, _: str) -> BpfObject:
        bpf = self._object()
        bpf.pin_maps(self._pins.at_interface(index), _OWN)
        return bpf.load()

    def tick(self) -> LimiterView:
        """Renew the lease, follow what has changed, and return what there is to show."""
        with self._lock:
            self._interfaces.follow()
            self._limiter.tick()
            if self._feeding is not None:
                self._feeding.tick(self._clock())
            self._audit.tidy()
            return self._view()

    def configure(self, config: RateLimit) -> None:
        """Take limits, lists and mode of another config; its interfaces and sizes are for the next start."""
        with self._lock:
            kept = {name: getattr(self._config, name) for name in ("interfaces", "generic", *_SIZED)}
            self._config = msgspec.structs.replace(config, **kept)
            self._limiter.configure(self._config)

    def methods(self) -> dict[str, Callable[[Params, Peer], Any]]:
        """Return what the control socket offers."""
        return {name: self._in_turn(method) for name, method in self._requests.methods().items()}

    def _in_turn(self, method: Callable[[Params, Peer], Any]) -> Callable[[Params, Peer], Any]:
        def asked(params: Params, peer: Peer) -> Any:
            with self._lock:
                return method(params, peer)

        return asked

    def uninstall(self) -> None:
        """Detach from all interfaces and remove all pins."""
        with self._lock:
            self._interfaces.uninstall()
            self._pins.remove()

    def close(self) -> None:
        """Leave it attached; enforcement ends with the lease."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _view(self) -> LimiterView:
        now, state = self._clock(), self._maps.state
        sources, requesting = self._counted(now)
        found = self._interfaces.objects
        rows = []
        noted: dict[str, int] = {}
        for at in self._interfaces.attachments():
            bpf = found.get(at.interface)
            by = counts(bpf) if bpf else {}
            for name, number in (notes(bpf) if bpf else {}).items():
                noted[name] = noted.get(name, 0) + number
            rows.append(
                InterfaceRow(
                    interface=at.interface,
                    attached=at.mode,
                    reason=at.reason,
                    mode=state.mode if at.mode else Mode.OFF,
                    sources=sources,
                    requesting=requesting,
                    counts=tuple(
                        VerdictCount(verdict=verdict, reason=reason, packets=count.packets, bytes=count.bytes)
                        for (verdict, reason), count in by.items()
                    ),
                )
            )
        until = self._limiter.until
        return LimiterView(
            mode=self._limiter.mode.word,
            rolls_back_in=None if until is None else max(until - now, 0.0),
            interfaces=tuple(rows),
            bans=len(self._maps.bans()),
            allowed=self._limiter.allowed,
            denied=self._limiter.denied,
            guarded=noted.get("guarded", 0),
            contended=noted.get("contended", 0),
        )

    def _counted(self, now: float) -> tuple[int, int]:
        if self._sources is None or now - self._sources[0] >= _COUNTED:
            self._sources = now, sum(1 for _ in self._maps.sources()), sum(1 for _ in self._maps.requesting())
        return self._sources[1:]


_SIZED = ("max_sources", "sketch_cells", "max_prefixes", "max_bans")


def remove_leftovers(pins: Path = PINS) -> None:
    """Detach what an agent with a limiter has left, and remove its pins; nothing where there is none."""
    if not pins.is_dir():
        return
    with PinDirectory(pins) as directory:
        with Interfaces([], directory, _no_object, generic=False) as left:
            left.uninstall()
        directory.remove()


def _no_object(_: int, name: str) -> BpfObject:
    raise ValueError(f"interface {name}: nothing is to be attached")


def needed() -> list[str]:
    """Return the addresses without which this node doesn't work."""
    return [*listening.gateways(), *listening.resolvers(), *listening.api_server()]
