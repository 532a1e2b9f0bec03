# SPDX-License-Identifier: Apache-2.0
"""The agent: composes measurement, exporter and control socket, and runs the tick loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tidegate import __version__
from tidegate.advisor import Advisor
from tidegate.audit import Audit
from tidegate.config import Config, load
from tidegate.config.keys import Signals
from tidegate.control.server import ControlServer
from tidegate.errors import TidegateError
from tidegate.export.prometheus import Exporter, Tls
from tidegate.kernel.pins import PINS
from tidegate.lock import AgentLock
from tidegate.logs import configure
from tidegate.measurement import TABLES, Bounds, Measurement
from tidegate.model.snapshot import MapHealth, Ticks, View
from tidegate.privacy import Addresses
from tidegate.ratelimit import METHODS, STARTED_WITH, fields
from tidegate.schedule import Schedule

if TYPE_CHECKING:
    from tidegate.ratelimit.running import RunningLimiter

log = logging.getLogger("tidegate")

#: The first view comes after this many seconds, where the interval is longer.
FIRST_TICK = 0.25


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
        self._advisor = Advisor(config.advice, config.residency)
        self._limiter: RunningLimiter | None = None

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT, or until :meth:`stop`; leaves no program, link or socket behind."""
        config = self.config
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        socket = Path(config.control.socket)
        with contextlib.ExitStack() as stack:
            stack.enter_context(AgentLock(socket.with_name("agent.lock")))
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
            # In a thread: what asks the kernel over netlink has an event loop of its own.
            limiter = await asyncio.to_thread(limiter_of, config)
            self._limiter = stack.enter_context(limiter) if limiter else None
            server = ControlServer(
                socket,
                version=__version__,
                methods=self._limiter.methods() if self._limiter else dict.fromkeys(METHODS, _no_limiter),
                max_clients=config.control.max_clients,
                queue=config.control.queue,
            )
            await server.start()
            feed = self._limiter.feed if self._limiter else None
            if feed is not None:
                loop.add_reader(feed.fileno(), feed.read)
                stack.callback(loop.remove_reader, feed.fileno())
            try:
                log.info(
                    "started: version %s, metrics on %s, control on %s",
                    __version__,
                    config.metrics.listen,
                    socket,
                )
                await self._tick(measurement, server)
            finally:
                await server.close()
        log.info("stopped")

    def stop(self) -> None:
        """End the loop after the tick that is under way."""
        self._stop.set()

    def reload(self) -> None:
        """Read the config file again; a file with errors changes nothing."""
        try:
            new = load(self.config_file)
        except TidegateError as error:
            log.error("reload refused, the old config stays:\n%s", error)
            return
        old, self.config = self.config, new
        configure(new.logging.level, new.logging.format)
        self._advisor.configure(new.advice, new.residency)
        if self._limiter is not None:
            self._limiter.configure(new.rate_limit)
        if new.metrics != old.metrics:
            self._replace_exporter(old)
        if _for_the_next_start(new) != _for_the_next_start(old):
            log.warning(
                "reload: control, services.host_root, locations, signals (not interval), privacy, audit, and of "
                "rate_limit %s take effect at the next start",
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

    def _view(self, measurement: Measurement, ticks: Ticks) -> View:
        view = self._advisor.judge(measurement.measure(ticks))
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
    return *observing, *limiter, config.privacy, config.audit


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
    return Exporter(listen.host, listen.port, (*TABLES, *fields.TABLES), files)


def limiter_of(config: Config) -> RunningLimiter | None:
    """Start the limiter where the config names interfaces; else remove what an earlier one has left."""
    if not config.rate_limit.interfaces and not PINS.is_dir():
        return None
    # For nodes that limit alone.
    from tidegate.ratelimit.running import RunningLimiter, remove_leftovers  # noqa: PLC0415

    if config.rate_limit.interfaces:
        audit = config.audit
        return RunningLimiter(
            config.rate_limit,
            Addresses(config.privacy.client_addresses),
            Audit(Path(audit.file), max_size=audit.max_size, files=audit.files, retention=audit.retention),
        )
    try:
        remove_leftovers()
    except TidegateError as error:
        log.warning("rate limit: what an earlier agent left stays: %s", error)
    return None


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
        disk_rows=disk.max_rows if disk.enabled else None,
        disk_requests=disk.max_requests,
    )
