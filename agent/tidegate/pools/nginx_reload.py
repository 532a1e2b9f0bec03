# SPDX-License-Identifier: Apache-2.0
"""Changes of files that nginx includes, and the reloads that bring them into force, once for all its drivers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from weakref import WeakValueDictionary

from tidegate.config.pools import NginxDriver as Config
from tidegate.errors import DriverError
from tidegate.pools import files
from tidegate.pools.driver import Exchange
from tidegate.pools.nginx_process import RESOLUTION, Nginx, title

#: New workers are waited for this long, or so many times as long as the test of the config took: a reload does the
#: same work once more.
_PATIENCE, _TIMES = 5.0, 4.0
_BETWEEN, _GLANCE = 1.0, 0.005


class Change:
    """A file that is to be written before a reload: ``edit`` makes of what it holds what it shall hold.

    ``edit`` is called when its turn has come; None stands for a file that isn't there. ``before`` and ``after``
    tell what was done, ``error`` why it was not, or was undone. With ``is_told`` nginx may have read it.
    """

    def __init__(self, path: Path, edit: Callable[[bytes | None], bytes], like: Path) -> None:
        self.path, self.edit, self.like = path, edit, like
        self.before: bytes | None = None
        self.after = b""
        self.exchanges: list[Exchange] = []
        self.error: DriverError | None = None
        self.is_done = self.is_told = False

    def write(self) -> None:
        """Write the file, if it has to be."""
        try:
            self.before = files.read(self.path)
        except FileNotFoundError:
            self.before = None
        self.after = self.edit(self.before)
        if self.after != self.before:
            like = self.like if self.before is None else self.path
            files.replace(self.path, self.after, like=like, expected=self.before)
            self.exchanges.append(Exchange(f"write {self.path}", f"{len(self.after)} bytes"))

    def undo(self, error: DriverError) -> None:
        """Put back what was there, unless somebody else has written meanwhile."""
        self.error = DriverError(
            str(error),
            away=error.away,
            exchanges=[*self.exchanges, *(Exchange(*each) for each in error.exchanges)],
        )
        try:
            if self.before is None:
                self.path.unlink(missing_ok=True)
            elif self.before != self.after:
                files.replace(self.path, self.before, expected=self.after)
        except (OSError, DriverError) as second:
            self.error = DriverError(f"{error}; and then: {second}", exchanges=self.error.exchanges)


class Reloader:
    """Reloads one nginx for all drivers that share it: not more than once a second, with all that has come up.

    The first change after a quiet second goes at once.
    """

    def __init__(self, nginx: Nginx) -> None:
        self.nginx = nginx
        self._leads, self._adds = threading.Lock(), threading.Lock()
        self._waiting: list[Change] = []
        self._last = -_BETWEEN

    def make(self, change: Change) -> None:
        """Write a change, test the config, and reload; return once new workers serve with it.

        Raises DriverError where that failed; the file is then as it was.
        """
        with self._adds:
            self._waiting.append(change)
        with self._leads:
            if not change.is_done:
                self._lead()
        if change.error is not None:
            raise change.error

    def _lead(self) -> None:
        """Do what waits, for others too."""
        time.sleep(max(0.0, self._last + _BETWEEN - time.monotonic()))
        taken: list[Change] = []
        written: list[Change] = []
        failed: DriverError | None = DriverError("nginx: the reload was broken off")
        try:
            master = self.nginx.master()
            began = time.monotonic()
            while fresh := self._take():
                taken += fresh
                written += self._written(fresh, master)
            if written:
                self._reload(master, written, time.monotonic() - began)
            failed = None
        except DriverError as error:
            failed = error
        finally:
            taken += self._take() if failed else []
            for change in taken:
                if failed and change in written:
                    change.undo(failed)
                elif failed:
                    change.error = change.error or failed
                change.is_done = True

    def _take(self) -> list[Change]:
        with self._adds:
            taken, self._waiting = self._waiting, []
        return taken

    def _written(self, changes: list[Change], master: int) -> list[Change]:
        """Write what can be, tested together; where that fails, each by itself."""
        written = []
        for change in changes:
            try:
                change.write()
                written.append(change)
            except DriverError as error:
                change.error = error
        if not written:
            return []
        try:
            tested = self.nginx.test(master)
        except DriverError as error:
            for change in reversed(written):
                change.undo(error)
            if len(written) == 1:
                return []
            for change in written:
                change.error, change.exchanges = None, []
            return [one for change in written for one in self._written([change], master)]
        for change in written:
            change.exchanges.append(tested)
        return written

    def _reload(self, master: int, changes: list[Change], tested: float) -> None:
        # Else nobody could tell from their times that the workers are younger than the files.
        newest = max(files.changed_at(change.path) for change in changes)
        time.sleep(min(max(0.0, newest + RESOLUTION - time.time()), RESOLUTION))
        before = self.nginx.workers(master)
        known = before.live | before.old
        try:
            os.kill(master, signal.SIGHUP)
        except OSError as error:
            raise DriverError(
                f"nginx: pid {master} can't be sent SIGHUP: {error.strerror}; the agent needs CAP_KILL",
                away=isinstance(error, ProcessLookupError),
            ) from error
        self._last = began = time.monotonic()
        for change in changes:
            change.is_told = True
        deadline = began + max(_PATIENCE, _TIMES * tested)
        while True:
            now = self.nginx.workers(master)
            if now.live and not now.starting and now.live.isdisjoint(known):
                break
            if not title(master):
                raise DriverError(f"nginx: its master (pid {master}) has ended at the reload", away=True)
            if time.monotonic() > deadline:
                raise DriverError(
                    f"nginx: no new workers {deadline - began:.1f} s after SIGHUP to pid {master}: the old ones "
                    "go on, and the file is put back; its error_log says why",
                    exchanges=[Exchange(f"kill -HUP {master}", "no new workers")],
                )
            time.sleep(_GLANCE)
        took = time.monotonic() - began
        for change in changes:
            change.exchanges.append(
                Exchange(f"kill -HUP {master}", f"{len(now.live)} new workers after {took:.3f} s")
            )


_reloaders: WeakValueDictionary[tuple[str, str, str | None], Reloader] = WeakValueDictionary()
_reloaders_lock = threading.Lock()


def reloader(config: Config) -> Reloader:
    """Return the one reloader of an nginx in this process."""
    key = (config.program, config.config, config.prefix)
    with _reloaders_lock:
        found = _reloaders.get(key)
        if found is None:
            found = _reloaders[key] = Reloader(Nginx(config))
        return found
