# SPDX-License-Identifier: Apache-2.0
"""What a driver found before it wrote: one file for each pool and driver, on disk before the first write."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from tidegate.errors import DriverError

_LARGEST = 16 << 20
#: Who writes has done so by then, or hangs.
_PATIENCE, _AGAIN = 5.0, 0.01


class Kept(msgspec.Struct, kw_only=True):
    """The file: whose it is, as the config has it, and what was found, by key."""

    pool: str
    driver: str
    endpoints: tuple[str, ...]
    config: dict[str, Any]
    entries: dict[str, Any] = {}


class Journal:
    """The journal of one driver of one pool, at ``path``; there is a file while there is something to put back.

    ``kept`` says whose it is. Raises DriverError where the file can't be read or written: then nothing may be
    written to the proxy either. Without a path it is kept in memory alone, for what doesn't outlive its writer.
    """

    def __init__(self, path: Path | None, kept: Kept) -> None:
        self._path, self._kept = path, kept
        self._read_at: tuple[int, int] | None = None
        self.refresh()

    def __getitem__(self, key: str) -> Any:
        return self._kept.entries[key]

    def __contains__(self, key: object) -> bool:
        return key in self._kept.entries

    @property
    def entries(self) -> Mapping[str, Any]:
        """What was found, by key: values as JSON has them."""
        return self._kept.entries

    def get(self, key: str, default: Any = None) -> Any:
        """Return what was found, or a default."""
        return self._kept.entries.get(key, default)

    def put(self, found: Mapping[str, Any]) -> None:
        """Keep what was found, over what is known by the same keys; on disk when this returns."""
        if any(self._kept.entries.get(key, _MISSING) != value for key, value in found.items()):
            self._write({**self._kept.entries, **found})

    def drop(self, *keys: str) -> None:
        """Forget what has been put back; keys that aren't known are no error."""
        if any(key in self._kept.entries for key in keys):
            self._write({key: value for key, value in self._kept.entries.items() if key not in keys})

    def clear(self) -> None:
        """Forget all."""
        self.drop(*self._kept.entries)

    def refresh(self) -> None:
        """Take what another process has written meanwhile."""
        if self._path is None:
            return
        try:
            status = self._path.stat()
            if (status.st_ino, status.st_mtime_ns) == self._read_at:
                return
            self._kept.entries = read(self._path).entries
            self._read_at = status.st_ino, status.st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            if self._read_at is not None:
                self._kept.entries, self._read_at = {}, None
        except OSError as error:
            raise self._error("can't be read", error) from error

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Keep others that have this journal from writing meanwhile; those of other drivers go on.

        Raises DriverError where another one writes for too long.
        """
        if self._path is None:
            yield
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            name = self._path.with_name(f".{self._path.name}.lock")
            lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._error("its directory can't be used", error) from error
        try:
            self._lock(lock)
            self.refresh()
            yield
        finally:
            os.close(lock)

    def _lock(self, lock: int) -> None:
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() >= end:
                    raise DriverError(
                        f"journal {self._path}: another process has written by it for {_PATIENCE:g} s, so the "
                        "proxy is left as it is; it is tried again"
                    ) from error
                time.sleep(_AGAIN)
            else:
                return

    def _write(self, entries: dict[str, Any]) -> None:
        kept = msgspec.structs.replace(self._kept, entries=entries)
        if self._path is None:
            self._kept = kept
            return
        temporary = self._path.with_name(f".{self._path.name}.new")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if entries:
                with open(temporary, "wb", opener=_private) as file:
                    file.write(msgspec.json.encode(kept))
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(self._path)
                status = self._path.stat()
                self._read_at = status.st_ino, status.st_mtime_ns
            else:
                self._path.unlink(missing_ok=True)
                self._read_at = None
            _sync(self._path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise self._error("can't be written, so the proxy is left as it is", error) from error
        self._kept = kept

    def _error(self, what: str, error: OSError) -> DriverError:
        return DriverError(
            f"journal {self._path}: {what}: {error.strerror or error}; make room, or set breaker.journal to a "
            "directory that the agent may write"
        )


_MISSING = object()


def read(path: Path) -> Kept:
    """Read a journal; raises OSError, or DriverError where it is none."""
    with path.open("rb") as file:
        text = file.read(_LARGEST)
    try:
        return msgspec.json.decode(text, type=Kept)
    except msgspec.DecodeError as error:
        raise DriverError(
            f"journal {path}: expected what this program writes, found: {error}; look at the proxy's endpoints "
            "yourself, then remove the file"
        ) from error


def file_name(kept: Kept) -> str:
    """Return the name of a journal: of two pools, drivers, or sections of the config never the same."""
    digest = hashlib.sha256(msgspec.json.encode(kept.config, order="sorted")).hexdigest()[:8]
    return f"{_escaped(kept.pool)}.{_escaped(kept.driver)}.{digest}.json"


def _escaped(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", lambda found: f"%{ord(found[0]):02x}", text)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _sync(directory: Path) -> None:
    """Have a rename in a directory survive a crash."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
