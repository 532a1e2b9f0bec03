# SPDX-License-Identifier: Apache-2.0
"""Ejects endpoints of an nginx upstream: edits the file of its ``server`` statements, and has nginx reload.

The upstream in nginx's config includes that file, and nothing else of the config is touched::

    upstream inventory { include /etc/nginx/upstreams/inventory.conf; keepalive 32; }

Where there is no such file, one is made of the pool's endpoints at the first ejection. If nginx includes it, it
stays, without ejections, when all is put back: without it nginx would not start again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tidegate.config.pools import NginxDriver as Config
from tidegate.errors import DriverError
from tidegate.model.driver import Use
from tidegate.pools import files, nginx_servers
from tidegate.pools.driver import Discovery, Exchange, Wanted
from tidegate.pools.journal import Journal
from tidegate.pools.nginx_config import Settings
from tidegate.pools.nginx_process import TICK, Process, Workers
from tidegate.pools.nginx_reload import Change, reloader
from tidegate.pools.plan import is_done

#: Since then new connections outlive a reload long enough for their first request.
_GENTLE = (1, 27, 4)
_MANY_OLD = 8
#: Entries of the journal besides endpoints: there was no file; it is written, and not in force yet.
_WAS_MISSING, _RELOAD = "file", "reload"
_OURS = (Use.EJECTED, Use.TRIAL)

Uses = dict[str, Use]


class _File(NamedTuple):
    """What the file holds, and what tells this from any other time that it was written; None if there is none."""

    data: bytes | None
    stamp: tuple[int, int, int] | None
    changed: float


class _Running(NamedTuple):
    """How the workers that take requests use endpoints; not ``is_certain`` where they may have an older file."""

    uses: Uses
    is_certain: bool


class NginxDriver:
    """The servers of one upstream, in a file that nginx includes."""

    sticks = True
    period = 1.0

    def __init__(self, endpoints: Iterable[str], config: Config, journal: Journal) -> None:
        self.target = f"nginx {config.include}"
        self._endpoints, self._config, self._journal = tuple(endpoints), config, journal
        self._path = Path(config.include)
        self._reloader = reloader(config)
        self._nginx = self._reloader.nginx
        self._in_force: tuple[int, int, int] | None = None
        self._known: tuple[Uses, frozenset[Process]] | None = None
        self._doubt: Uses | None = None
        self._offset = _offset()
        self._undatable: tuple[int, int, int] | None = None

    def discover(self) -> Discovery:
        """Look at its version, its config and its workers."""
        self._nginx.forget()
        version = self._nginx.version()
        found = self._nginx.settings(self._path)
        master = self._nginx.master()
        warnings = tuple(self._warnings(version.number, found, master))
        return Discovery(version.text, warnings, old_workers=self.old_workers())

    def read(self) -> Uses:
        """Tell what the workers have that take requests, whatever the file says.

        Where that can't be told, as somebody has written the file and may have reloaded nginx in the same instant,
        whoever may be out by Tidegate's doing is ``TRIAL``, so that it is made certain by a reload of our own.
        """
        return dict(self._running().uses)

    def apply(self, out: Wanted) -> list[Exchange]:
        """Write the file, have nginx test its config, reload it, and wait until its new workers serve.

        Where nginx refuses, the file is put back.
        """
        running = self._running()
        file = self._load()
        wanted = self._edited(file.data, out)
        doubtful = not running.is_certain and (bool(out) or bool(self._journal.entries))
        change = self._change(out)
        differs = file.data is not None and wanted != file.data
        if differs or doubtful or not is_done(out, running.uses):
            self._make(change)
        self._forget(out)
        return change.exchanges

    def restore(self) -> list[Exchange]:
        """Take out all that Tidegate has written; also where nginx isn't running, which then starts without it."""
        try:
            return self.apply({})
        except DriverError as error:
            if not error.away:
                raise
        change = self._change({})
        if self._load().data is not None:
            change.write()
        self._forget({})
        return [*change.exchanges, Exchange("reload", "nginx isn't running: it reads the file when it starts")]

    def close(self) -> None:
        """Hold nothing."""

    def old_workers(self) -> tuple[int, int]:
        """Return how many workers of before a reload still have requests, and their resident bytes."""
        old = self._nginx.workers(self._nginx.master()).old
        return len(old), self._nginx.memory(old)

    # The file.

    def _load(self) -> _File:
        try:
            status = self._path.stat()
            data = files.read(self._path)
        except FileNotFoundError:
            return _File(None, None, 0.0)
        except OSError as error:
            raise DriverError(
                f"{self._path}: can't be read: {error.strerror or error}; let the agent read and write it"
            ) from error
        return _File(data, (status.st_ino, status.st_mtime_ns, status.st_ctime_ns), status.st_ctime)

    def _uses_of(self, data: bytes | None) -> Uses:
        return nginx_servers.uses(self._or_new(data), self._endpoints)

    def _or_new(self, data: bytes | None) -> bytes:
        return nginx_servers.generate(self._endpoints) if data is None else data

    def _edited(self, data: bytes | None, out: Wanted) -> bytes:
        ours = [key for key in self._journal.entries if key not in (_WAS_MISSING, _RELOAD)]
        return nginx_servers.edit(self._or_new(data), {*self._endpoints, *ours}, out)

    def _change(self, out: Wanted) -> Change:
        def edit(before: bytes | None) -> bytes:
            """Keep what is found, then say what is to be written."""
            uses = self._uses_of(before)
            fresh = [name for name in out if name not in self._journal and uses.get(name) is Use.ACTIVE]
            if fresh:
                found = self._or_new(before)
                entries = {name: nginx_servers.statement_text(found, name) for name in fresh}
                self._journal.put(
                    {**entries, _RELOAD: True, **({} if before is not None else {_WAS_MISSING: True})}
                )
            return self._edited(before, out)

        return Change(self._path, edit, like=self._nginx.path)

    def _make(self, change: Change) -> None:
        entries = set(self._journal.entries)
        try:
            self._reloader.make(change)
        except DriverError:
            if change.is_told:
                self._doubt = self._uses_of(change.after)
            elif self._load().data == change.before:
                self._journal.drop(*(self._journal.entries.keys() - entries))
            raise
        file = self._load()
        if file.data == change.after:
            self._settle(file, self._nginx.workers(self._nginx.master()).live)

    def _forget(self, out: Wanted) -> None:
        """Forget what is put back, or an operator's by now."""
        file = self._load()
        uses = self._uses_of(file.data)
        done = [key for key in self._journal.entries if key not in out or uses.get(key, Use.EJECTED) not in _OURS]
        kept = {key for key in self._journal.entries if key not in done}
        if kept and _WAS_MISSING in self._journal:
            done.remove(_WAS_MISSING)
        if not kept and _WAS_MISSING in self._journal:
            found = self._nginx.settings(self._path)
            if not found.upstreams and not found.elsewhere:
                self._remove()
        self._journal.drop(*done)

    def _remove(self) -> None:
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise DriverError(f"{self._path}: can't be removed: {error.strerror}; remove it yourself") from error

    # What is in force.

    def _running(self) -> _Running:
        try:
            workers = self._nginx.workers(self._nginx.master())
        except DriverError as error:
            if error.away:
                self._nginx.forget()  # its pid file may be another one when it comes again
            raise
        file = self._load()
        known, known_workers = self._known or ({}, frozenset())
        if file.stamp is not None and file.stamp == self._in_force:
            self._known = known, workers.live
            return _Running(known, is_certain=True)
        if workers.live & known_workers:
            return _Running(known, is_certain=True)  # a reload would have replaced them all
        uses = self._uses_of(file.data)
        if file.stamp is not None and self._is_younger(workers, file):
            self._settle(file, workers.live)
            return _Running(uses, is_certain=True)
        return _Running({name: self._doubtful(name, use, known) for name, use in uses.items()}, is_certain=False)

    def _settle(self, file: _File, live: frozenset[Process]) -> None:
        """Know that these workers have read this file."""
        self._in_force, self._known, self._doubt = file.stamp, (self._uses_of(file.data), live), None

    def _is_younger(self, workers: Workers, file: _File) -> bool:
        """Tell whether all workers were surely started after the file was written.

        A worker that has replaced a crashed one is young and has an old config all the same; that is seen only
        where another one has lived on.
        """
        offset = _offset()
        if abs(offset - self._offset) > TICK:  # the clock was set: the time of this file is of before
            self._offset, self._undatable = offset, file.stamp
        if file.stamp == self._undatable or self._doubt or _RELOAD in self._journal:
            return False
        if workers.starting or not workers.live:
            return False
        written = file.changed - offset + TICK  # at the latest, as the clock of files lags
        return all(worker.started * TICK >= written for worker in workers.live)

    def _doubtful(self, name: str, use: Use, known: Mapping[str, Use]) -> Use:
        """Say how an endpoint is used of which nobody knows whether the workers have what the file says."""
        possible = {use}
        if use is not Use.ABSENT or name in known:
            possible.add(known.get(name, Use.ACTIVE))
        if not known and name in self._journal:
            possible.add(Use.EJECTED)
        if self._doubt:
            possible.add(self._doubt[name])
        if len(possible) == 1:
            return use
        return Use.TRIAL if possible & set(_OURS) else known.get(name, Use.ACTIVE)

    # What is worth a look.

    def _warnings(self, version: tuple[int, ...], found: Settings, master: int) -> Iterator[str]:
        main = self._nginx.path
        if not found.upstreams:
            where = f", but {', '.join(found.elsewhere)}" if found.elsewhere else ""
            yield (
                f"{main}: no upstream includes {self._path}{where}: ejections have no effect; "
                f"write 'include {self._path};' into the upstream instead of its servers"
            )
        yield from self._warnings_of_file()
        if any(block == "http" for block, _ in found.upstreams):
            yield from _warnings_of_reloads(version, found, main)
        if not found.has_worker_shutdown_timeout:
            yield (
                f"{main}: workers of before a reload stay as long as any connection of theirs, and may pile up; "
                "add 'worker_shutdown_timeout 60s;' at its top"
            )
        old = self._nginx.workers(master).old
        if len(old) > _MANY_OLD:
            yield (
                f"{len(old)} workers of before a reload are still there, with "
                f"{self._nginx.memory(old) >> 20} MiB; each has connections that don't end"
            )
        try:
            if os.readlink(f"/proc/{master}/ns/mnt") != os.readlink("/proc/self/ns/mnt"):
                yield f"nginx (pid {master}) has other mounts than the agent: files must have the same names there"
        except OSError:
            yield f"the mounts of nginx (pid {master}) can't be looked at: the agent needs CAP_SYS_PTRACE"

    def _warnings_of_file(self) -> Iterator[str]:
        data = self._load().data
        if data is None:
            yield f"{self._path} isn't there: it is made of the pool's endpoints at the first ejection"
            return
        for server in nginx_servers.servers(data):
            if server.endpoint is None and not server.name.startswith("unix:"):
                yield f"{self._path}: server {server.name} is no ADDRESS:PORT: it is left alone"
        absent = [name for name, use in self._uses_of(data).items() if use is Use.ABSENT]
        if absent:
            yield f"{self._path}: no server statement for {', '.join(absent)}"


def _warnings_of_reloads(version: tuple[int, ...], found: Settings, main: Path) -> Iterator[str]:
    told = "a reload resets connections of clients on which a request is just coming in"
    if version < _GENTLE:
        yield (
            f"nginx {'.'.join(map(str, version))}: {told} (148 of 147,245 requests in 10 reloads); 1.27.4 and "
            "later don't with 'keepalive_min_timeout 300ms;' in http"
        )
    elif not found.has_keepalive_min_timeout:
        yield f"{main}: {told}; add 'keepalive_min_timeout 300ms;' in http"


def _offset() -> float:
    """Return what the clock of files is ahead of the one since boot, in seconds; another when it was set."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
