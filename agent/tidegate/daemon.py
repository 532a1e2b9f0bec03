# SPDX-License-Identifier: Apache-2.0
"""The agent: composes measurement, exporter and control socket, and runs the tick loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tidegate import __version__
from tidegate.advisor import Advisor
from tidegate.audit import Audit
from tidegate.breaker import requests
from tidegate.breaker.configured import members
from tidegate.breaker.control import Breaker
from tidegate.breaker.hearing import Hearing
from tidegate.config import Config, load, units
from tidegate.config.keys import Signals
from tidegate.control.server import ControlServer
from tidegate.errors import TidegateError
from tidegate.export.prometheus import Exporter, Tls
from tidegate.kernel.endpoints import room_for
from tidegate.kernel.pins import PINS
from tidegate.lock import AgentLock
from tidegate.logs import configure
from tidegate.measurement import TABLES, Bounds, Measurement
from tidegate.model.snapshot import MapHealth, Ticks, View
from tidegate.pools import fields as pool_fields
from tidegate.pools.failfast import Refusals
from tidegate.pools.keepers import Keepers
from tidegate.pools.lease import Lease
from tidegate.pools.updates import Told
from tidegate.privacy import Addresses
from tidegate.ratelimit import METHODS, STARTED_WITH, fields
from tidegate.schedule import Schedule

if TYPE_CHECKING:
    from tidegate.ratelimit.running import RunningLimiter

log = logging.getLogger("tidegate")

#: The first view comes after this many seconds, where the interval is longer.
FIRST_TICK = 0.25
#: The breaker looks at the clock so often.
BEAT = 0.1
#: How long a thread of the agent computes while another wants to.
SWITCH = 0.0005


class Agent:
    """One agent on one node, from start to stop.

    ``config_file`` is read again on SIGHUP; ``on_view`` is called with every view, in the agent's loop.
    """

    def __init__(
        self, config_file: Path | None, config: Config, on_view: Callable[[View], None] | None = None
    ) -> None:
        self.config_file, self.config, self.on_view = config_file, config, on_view
        self._stop = asyncio.Event()
        self._exporter: Exporter | None = None
        self._advisor = Advisor(config.advice, config.residency, members(config.pools))
        self._limiter: RunningLimiter | None = None
        self._breaker: Breaker | None = None
        self._hearing: Hearing | None = None

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT, or until :meth:`stop`; leaves no program, link or socket behind."""
        config = self.config
        loop = asyncio.get_running_loop()
        # A tick computes in a thread; what the kernel tells of an endpoint must not wait for it 5 ms at a time.
        sys.setswitchinterval(SWITCH)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        socket = Path(config.control.socket)
        with contextlib.ExitStack() as stack:
            lock = socket.with_name("agent.lock")
            stack.enter_context(AgentLock(lock))
            stack.callback(self._close_exporter)
            self._exporter = exporter_of(config)
            measurement = stack.enter_context(
                Measurement(
                    bounds_of(config),
                    host_root=Path(config.services.host_root),
                    statistics=config.signals.program_statistics,
                    locations=config.locations,
                )
            )
            audit = audit_of(config)
            # In a thread: what asks the kernel over netlink has an event loop of its own.
            limiter = await asyncio.to_thread(limiter_of, config, audit)
            self._limiter = stack.enter_context(limiter) if limiter else None
            self._breaker = await asyncio.to_thread(breaker_of, config, measurement, audit, lock)
            stack.callback(self._breaker.close)
            stack.enter_context(reading(loop, self._breaker.fd, self._breaker.read))
            self._hearing = Hearing(self._breaker, config.breaker.feed.listen, config.pools)
            stack.callback(self._hearing.close)
            if self._hearing.lines is not None:
                stack.enter_context(reading(loop, self._hearing.lines.fileno(), self._hearing.read))
            asking = self._limiter.methods() if self._limiter else dict.fromkeys(METHODS, _no_limiter)
            server = ControlServer(
                socket,
                version=__version__,
                methods={**asking, **requests.methods(self._breaker)},
                max_clients=config.control.max_clients,
                queue=config.control.queue,
            )
            await server.start()
            feed = self._limiter.feed if self._limiter else None
            if feed is not None:
                stack.enter_context(reading(loop, feed.fileno(), feed.read))
            beating = asyncio.create_task(self._beat())
            try:
                log.info(
                    "started: version %s, metrics on %s, control on %s",
                    __version__,
                    config.metrics.listen,
                    socket,
                )
                await self._tick(measurement, server)
            finally:
                beating.cancel()
                await server.close()
        log.info("stopped")

    def stop(self) -> None:
        """End the loop after the tick that is under way."""
        self._stop.set()

    def reload(self) -> None:
        """Read the config file again; a file with errors changes nothing."""
        try:
            new = load(self.config_file)
            pools = members(new.pools)
        except TidegateError as error:
            log.error("reload refused, the old config stays:\n%s", error)
            return
        old, self.config = self.config, new
        configure(new.logging.level, new.logging.format)
        self._advisor.configure(new.advice, new.residency, pools)
        if self._limiter is not None:
            self._limiter.configure(new.rate_limit, upstreams_of(new))
        if self._breaker is not None:
            self._breaker.configure(new.pools)
        if self._hearing is not None:
            self._hearing.configure(new.pools)
        if new.metrics != old.metrics:
            self._replace_exporter(old)
        if _for_the_next_start(new) != _for_the_next_start(old):
            log.warning(
                "reload: control, services.host_root, locations, signals (not interval), breaker, privacy, audit, "
                "and of rate_limit %s take effect at the next start",
                ", ".join(STARTED_WITH),
            )
        log.info("config reloaded")

    async def _tick(self, measurement: Measurement, server: ControlServer) -> None:
        loop = asyncio.get_running_loop()
        schedule = Schedule(loop.time() + min(FIRST_TICK, self.config.signals.interval))
        while not await self._stopped_before(schedule.due):
            ticks = schedule.begin(loop.time(), self.config.signals.interval)
            # In a thread: the swap of tables waits for a grace period, 10 to 30 ms in which clients are served.
            view = await asyncio.to_thread(self._view, measurement, ticks)
            view = with_health(view, server.losses(), {})
            if self._exporter is not None:
                self._exporter.collector.show(view)
            server.publish(view)
            if self.on_view is not None:
                self.on_view(view)
            measurement.limit(*limits_of(self.config))

    async def _beat(self) -> None:
        """Do what the breaker has to do between two ticks."""
        while self._breaker is not None:
            try:
                self._breaker.beat()
            except (TidegateError, OSError) as error:
                log.error("breaker: what is due by the clock could not be done, and is tried again: %s", error)
            await asyncio.sleep(BEAT if self.config.pools else FIRST_TICK)

    def _view(self, measurement: Measurement, ticks: Ticks) -> View:
        view = self._advisor.judge(measurement.measure(ticks))
        if self._breaker is not None:
            try:
                view = msgspec.structs.replace(view, pools=self._breaker.tick(view))
            except (TidegateError, OSError) as error:
                log.error("breaker: a tick could not be done, the next one tries again: %s", error)
            measurement.name(self._breaker.names())
        if self._hearing is not None:
            self._hearing.tick()
            view = with_health(view, self._hearing.losses(), {})
        if self._limiter is None:
            return view
        limiter, sources = self._limiter.tick()
        view = msgspec.structs.replace(view, limiter=limiter, sources=sources)
        return with_health(view, self._limiter.losses(), self._limiter.maps())

    async def _stopped_before(self, due: float) -> bool:
        delay = due - asyncio.get_running_loop().time()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), max(delay, 0))
        return self._stop.is_set()

    def _replace_exporter(self, old: Config) -> None:
        self._close_exporter()
        try:
            self._exporter = exporter_of(self.config)
        except TidegateError as error:
            log.error("reload: %s; going back to %s", error, old.metrics.listen)
            self._exporter = exporter_of(old)

    def _close_exporter(self) -> None:
        if self._exporter is not None:
            self._exporter.close()
            self._exporter = None


def _for_the_next_start(config: Config) -> tuple[object, ...]:
    """Return the parts of a config that a running agent doesn't change."""
    signals = msgspec.structs.replace(config.signals, interval=Signals().interval)
    limiter = [getattr(config.rate_limit, name) for name in STARTED_WITH]
    observing = config.control, signals, config.services.host_root, config.locations
    return *observing, *limiter, config.breaker, config.privacy, config.audit


def with_health(view: View, losses: Mapping[str, int], maps: Mapping[str, MapHealth]) -> View:
    """Return the view with the losses and maps of another part of the agent beside those of the measurement."""
    health = msgspec.structs.replace(
        view.health, losses={**view.health.losses, **losses}, maps={**view.health.maps, **maps}
    )
    return msgspec.structs.replace(view, health=health)


def exporter_of(config: Config) -> Exporter | None:
    """Start the metrics server that a config asks for; None for ``off``."""
    listen, tls = config.metrics.listen, config.metrics.tls
    if listen is None:
        return None
    files = None if tls is None else Tls(cert=tls.cert, key=tls.key, client_ca=tls.client_ca)
    return Exporter(listen.host, listen.port, (*TABLES, *fields.TABLES, *pool_fields.TABLES), files)


@contextlib.contextmanager
def reading(loop: asyncio.AbstractEventLoop, fd: int, read: Callable[[], None]) -> Iterator[None]:
    """Call ``read`` whenever ``fd`` is readable, until the end of the block."""
    loop.add_reader(fd, read)
    try:
        yield
    finally:
        loop.remove_reader(fd)


def audit_of(config: Config) -> Audit:
    """Return the audit trail; its file is made with the first record."""
    audit = config.audit
    return Audit(Path(audit.file), max_size=audit.max_size, files=audit.files, retention=audit.retention)


def breaker_of(config: Config, measurement: Measurement, audit: Audit, lock: Path) -> Breaker:
    """Start the breaker, with or without pools."""
    journal = Path(config.breaker.journal)

    def refusals() -> Refusals | None:
        try:
            return measurement.failfast()
        except TidegateError as error:
            log.error("pools: failfast: connects can't be refused: %s", error)
            return None

    def keepers(record: Callable[[Told], None]) -> Keepers:
        return Keepers(journal, Lease(config.breaker.lease, journal, lock), refusals, record)

    return Breaker(
        config.pools, config.breaker.freeze, measurement.http, keepers, audit, cgroups=measurement.cgroups
    )


def limiter_of(config: Config, audit: Audit) -> RunningLimiter | None:
    """Start the limiter where the config names interfaces; else remove what an earlier one has left."""
    if not config.rate_limit.interfaces and not PINS.is_dir():
        return None
    # For nodes that limit alone.
    from tidegate.ratelimit.running import RunningLimiter, remove_leftovers  # noqa: PLC0415

    if config.rate_limit.interfaces:
        addresses = Addresses(config.privacy.client_addresses)
        return RunningLimiter(config.rate_limit, addresses, audit, upstreams_of(config))
    try:
        remove_leftovers()
    except TidegateError as error:
        log.warning("rate limit: what an earlier agent left stays: %s", error)
    return None


def upstreams_of(config: Config) -> set[str]:
    """Return the addresses of all endpoints of pools, which the limiter never limits."""
    return {units.listen(endpoint).host for pool in config.pools.values() for endpoint in pool.endpoints}


def _no_limiter(_params: object, _peer: object) -> None:
    raise TidegateError("no limiter runs in this agent: rate_limit.interfaces of its config names none")


def limits_of(config: Config) -> tuple[int, int, float]:
    """Return the bounds of the rows that are kept: rows, endpoints of a service, idle seconds."""
    return config.services.max_rows, config.services.max_endpoints, config.services.idle


def bounds_of(config: Config) -> Bounds:
    """Return how much a config lets the measurement keep."""
    rows, endpoints, idle = limits_of(config)
    tcp, disk, resources = config.signals.tcp, config.signals.disk, config.signals.resources
    return Bounds(
        kernel_rows=tcp.max_rows,
        sockets=tcp.max_sockets,
        ports=config.signals.ports.max_rows,
        rows=rows,
        endpoints=endpoints,
        idle=idle,
        resource_interval=resources.interval,
        cgroups_per_second=resources.cgroups_per_second,
        watched=room_for(sum(len(pool.endpoints) for pool in config.pools.values())),
        disk_rows=disk.max_rows if disk.enabled else None,
        disk_requests=disk.max_requests,
    )
