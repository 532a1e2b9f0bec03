# SPDX-License-Identifier: Apache-2.0
"""The driver of an HAProxy backend: it sets the state of servers over the admin socket."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from tidegate.config import pools as config_of
from tidegate.errors import DriverError
from tidegate.model.driver import Use
from tidegate.pools import haproxy_runtime as runtime
from tidegate.pools.driver import Discovery, Exchange, Wanted
from tidegate.pools.haproxy_runtime import Backend, Server, State
from tidegate.pools.journal import Journal

#: So many names stand in a warning.
_LISTED = 5


class Setting(msgspec.Struct, frozen=True):
    """What a server was told; ``limit`` is the maxconn of a trial, None where that was left as it was."""

    state: State
    limit: int | None = None

    def is_of(self, server: Server) -> bool:
        """Tell whether a server is as it was told."""
        if self.state is not server.state:
            return False
        return self.state is not State.READY or self.limit in (None, server.maxconn)


class Entry(msgspec.Struct, frozen=True):
    """The journal's entry of a server: what was found, and what it was told.

    ``previous`` is what it was told before that, while it isn't known whether the last has arrived.
    """

    endpoint: str
    admin: int
    weight: int
    maxconn: int
    told: Setting
    previous: Setting | None = None

    @property
    def settings(self) -> list[Setting]:
        """What the server may be by Tidegate's own doing."""
        return [self.told] if self.previous is None else [self.told, self.previous]

    def is_of(self, server: Server) -> bool:
        """Tell whether a server is as it is by Tidegate; else HAProxy has forgotten, or it is another's doing."""
        return any(setting.is_of(server) for setting in self.settings)

    def limits(self, server: Server) -> bool:
        """Tell whether a server's maxconn is that of a trial."""
        return any(setting.limit == server.maxconn for setting in self.settings if setting.limit is not None)


class Step(NamedTuple):
    """What becomes of one server: the commands, and its entry then, None where nothing is left to put back."""

    commands: tuple[str, ...]
    entry: Entry | None


class HaproxyDriver:
    """The endpoints of a pool as servers of one backend, by their addresses.

    A trial has the server ready with ``maxconn`` at the permits. Where HAProxy's config gives the server a
    ``minconn`` that equals them, HAProxy takes both for one from then on, and ``minconn`` comes back as
    ``maxconn`` until the next reload: it has no command that shows or sets ``minconn``.
    """

    sticks = True
    period = 0.5

    def __init__(
        self,
        endpoints: Iterable[str],
        config: config_of.HaproxyDriver,
        journal: Journal,
        timeout: float = runtime.TIMEOUT,
    ) -> None:
        self.target = f"haproxy {config.socket} backend {config.backend}"
        self._endpoints = tuple(endpoints)
        self._config, self._journal, self._timeout = config, journal, timeout
        self._number: int | None = None

    def discover(self) -> Discovery:
        """Look at the process, at the socket's level and at the backend."""
        text = self._ask("show info")
        with self._of_target():
            found = runtime.info(text)
        level = self._ask("show cli level").strip()
        refusals = []
        if level != "admin":
            refusals.append(
                f"{self._config.socket} is of level {runtime.said(level)}: 'set server' needs 'stats socket ... "
                "level admin'"
            )
        backend = self._look()
        warnings = list(warnings_of(backend, self._config, self._endpoints))
        if found.get("Nbproc", "1") != "1":
            warnings.append(f"nbproc is {found['Nbproc']}: the socket is of one process, the others aren't told")
        return Discovery(found["Version"], tuple(warnings), tuple(refusals))

    def read(self) -> dict[str, Use]:
        """Ask for the states of the backend's servers."""
        entries = self._entries()
        uses: dict[str, list[Use]] = {endpoint: [] for endpoint in self._endpoints}
        for server in self._look().servers:
            if server.endpoint in uses:
                uses[server.endpoint].append(use_of(server, entries.get(server.name)))
        return {endpoint: _of_all(found) for endpoint, found in uses.items()}

    def apply(self, out: Wanted) -> list[Exchange]:
        """Set the servers that differ, all of them together."""
        entries = self._entries()
        return self._take(steps_of(self._look(), self._config, self._endpoints, entries, out), entries)

    def restore(self) -> list[Exchange]:
        """Put back what was found."""
        return self.apply({})

    def close(self) -> None:
        """Hold nothing: each exchange has its own connection."""

    def _take(self, steps: Mapping[str, Step], entries: Mapping[str, Entry]) -> list[Exchange]:
        after = {name: step.entry for name, step in steps.items() if step.entry is not None}
        changing = {name: after[name] for name, step in steps.items() if step.commands and name in after}
        self._journal.put(msgspec.to_builtins(changing))
        exchanges: list[Exchange] = []
        for line in runtime.lines("; ".join(step.commands) for step in steps.values() if step.commands):
            try:
                exchanges.append(Exchange(line, self._ask(line)))
            except DriverError as error:
                raise DriverError(str(error), away=error.away, exchanges=(*exchanges, *error.exchanges)) from error
            if exchanges[-1].answer.strip():
                raise DriverError(
                    f"{self.target}: {line!r:.200}: expected no word, HAProxy said: "
                    f"{runtime.said(exchanges[-1].answer)}; the socket needs 'level admin'",
                    exchanges=exchanges,
                )
        done = {name: msgspec.structs.replace(entry, previous=None) for name, entry in after.items()}
        self._journal.put(msgspec.to_builtins(done))
        self._journal.drop(*(name for name in entries if name not in done))
        return exchanges

    def _look(self) -> Backend:
        name = self._config.backend
        for _ in range(2):
            if self._number is None:
                text = self._ask(runtime.show_servers(name))
                with self._of_target():
                    self._number = runtime.backend_number(text, name)
            text = self._ask(runtime.show_backend(name, self._number))
            with self._of_target():
                backend = runtime.read_backend(text, name)
            if backend is not None:
                return backend
            self._number = None  # another process, whose numbers differ
        raise DriverError(
            f"{self.target}: expected 'show servers state' and 'show stat' to tell of the same servers, found "
            "others twice; it is asked again"
        )

    def _ask(self, command: str) -> str:
        return runtime.exchange(self._config.socket, command, self._timeout)

    @contextlib.contextmanager
    def _of_target(self) -> Iterator[None]:
        """Have errors of what is read there say where."""
        try:
            yield
        except DriverError as error:
            raise DriverError(f"{self.target}: {error}", exchanges=error.exchanges) from error

    def _entries(self) -> dict[str, Entry]:
        try:
            return msgspec.convert(dict(self._journal.entries), dict[str, Entry])
        except msgspec.ValidationError as error:
            raise DriverError(
                f"{self.target}: its journal: expected what this program writes, found: {error}; look at the "
                "states of the servers yourself, then remove the file"
            ) from error


def steps_of(
    backend: Backend,
    config: config_of.HaproxyDriver,
    endpoints: Iterable[str],
    entries: Mapping[str, Entry],
    out: Wanted,
) -> dict[str, Step]:
    """Return what becomes of the pool's servers, and of those that the journal tells of; of no others."""
    eject = ejects_by(backend, config)
    permits = _shares(backend.servers, {endpoint: out[endpoint] for endpoint in endpoints if endpoint in out})
    mine = frozenset(endpoints)
    return {
        server.name: plan(config.backend, server, entries.get(server.name), permits.get(server.name), eject)
        for server in backend.servers
        if server.is_sound and (server.endpoint in mine or server.name in entries)
    }


def use_of(server: Server, entry: Entry | None) -> Use:
    """Tell how HAProxy uses a server, and whose doing it is by the journal's entry."""
    is_ours = entry is not None and entry.is_of(server)
    if is_ours and server.state is not State.READY:
        return Use.EJECTED
    if server.state is not State.READY or server.is_passed_over:
        return Use.HELD
    if server.has_failed:
        return Use.FAILED
    return Use.TRIAL if is_ours else Use.ACTIVE


#: Of several servers of one endpoint the first of these says how it is used.
_FOREMOST = (Use.ACTIVE, Use.TRIAL, Use.EJECTED, Use.HELD, Use.FAILED)


def _of_all(uses: Iterable[Use]) -> Use:
    return min(uses, key=_FOREMOST.index, default=Use.ABSENT)


def plan(backend: str, server: Server, entry: Entry | None, permits: int | None, eject: State) -> Step:
    """Return what makes a server be out (``permits`` 0), half open, or as it was found (None).

    What isn't Tidegate's doing stays: then only a trial's limit is taken back.
    """
    ours = entry if entry is not None and entry.is_of(server) else None
    maxconn = entry.maxconn if entry is not None and entry.limits(server) else server.maxconn
    if permits is None or use_of(server, entry) is Use.HELD:
        told = None
        state, limit = (State.READY if ours else server.state), maxconn
    else:
        told = Setting(eject) if permits == 0 else Setting(State.READY, _limit(maxconn, permits))
        state, limit = told.state, maxconn if told.limit is None else told.limit
    commands = []
    if state is not server.state:
        commands.append(runtime.set_state(backend, server.name, state))
    if limit != server.maxconn:
        # Before it gets requests, or when it gets none any more.
        commands.insert(0 if state is State.READY else 1, runtime.set_maxconn(backend, server.name, limit))
    if told is None:
        return Step(tuple(commands), None)
    found = ours or Entry(server.endpoint, server.admin, server.weight, maxconn, told)
    previous = next((setting for setting in found.settings if setting.is_of(server) and setting != told), None)
    return Step(tuple(commands), msgspec.structs.replace(found, maxconn=maxconn, told=told, previous=previous))


def _limit(maxconn: int, permits: int) -> int | None:
    return permits if maxconn == 0 or maxconn > permits else None


def _shares(servers: Iterable[Server], out: Wanted) -> dict[str, int]:
    """Return the permits of each server: those of one endpoint share them, but each gets one."""
    found = [server for server in servers if server.endpoint in out]
    counts = Counter(server.endpoint for server in found)
    return {
        server.name: max(out[server.endpoint] // counts[server.endpoint], min(out[server.endpoint], 1))
        for server in found
    }


def ejects_by(backend: Backend, config: config_of.HaproxyDriver) -> State:
    """Return what takes a server out: drained it would still serve clients who are bound to it."""
    if config.eject != "auto":
        return State(config.eject)
    return State.MAINT if _binds_clients(backend, config.backend) else State.DRAIN


def _binds_clients(backend: Backend, name: str) -> bool:
    return backend.has_cookies or name in backend.tables


def warnings_of(backend: Backend, config: config_of.HaproxyDriver, endpoints: Iterable[str]) -> Iterator[str]:
    """Say what is worth a look in a backend."""
    servers = backend.servers
    if ejects_by(backend, config) is State.DRAIN:
        if _binds_clients(backend, config.backend):
            yield "a cookie or a table binds clients to servers: a drained one serves its own; 'eject: maint'"
        elif backend.tables:
            yield (
                f"if the backend sticks by a table of another proxy ({_some(sorted(backend.tables))}), a drained "
                "server serves its own clients; 'eject: maint'"
            )
    for what, names in {
        "whose name may not be written to the socket, or isn't theirs alone, so that they are left alone": [
            repr(server.name)[:80] for server in servers if not server.is_sound
        ],
        "resolved by DNS: they are followed by the address that they have now": [
            server.name for server in servers if server.fqdn
        ],
        "with an agent-check, which may take them back": [server.name for server in servers if server.has_agent],
    }.items():
        if names:
            yield f"servers {what}: {_some(names)}"
    known = {server.endpoint for server in servers}
    if absent := [endpoint for endpoint in endpoints if endpoint not in known]:
        yield f"no server of the backend is at {_some(absent)}"
    yield "after a reload of HAProxy, its old workers go on with the states that they had until they end"


def _some(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
