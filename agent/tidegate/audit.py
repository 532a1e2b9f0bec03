# SPDX-License-Identifier: Apache-2.0
"""The append-only record, in JSON lines, of who changed what for whom and why (docs/audit.md)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pwd
import stat
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_UNSET = 0xFFFFFFFF  # a loginuid of nobody
#: A file covers this share of the retention at most, so that what is deleted with it is not much younger.
_SHARE = 10
_TIDY = 3600.0
#: A line that has no end for so many seconds will have none.
_SETTLES = 0.05


class Action(StrEnum):
    """What was done."""

    BAN = "ban"
    UNBAN = "unban"
    ALLOW = "allow"
    MODE = "mode"
    THRESHOLD = "threshold"  # a source is over its limit, or a ban was not made
    POOL = "pool"  # a proxy was told, or couldn't be
    BREAKER = "breaker"  # an endpoint of a pool went out or came back, or this node froze


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """Who did it; ``name`` is the user that logged in (pam_loginuid), else the uid's, or ``agent``."""

    uid: int
    pid: int
    name: str


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One line; ``subject`` as ``privacy.client_addresses`` lets it be shown, null where there is none."""

    time: str  # RFC 3339, UTC
    action: Action
    by: Actor
    subject: str | None
    reason: str
    details: dict[str, Any]


@dataclass(frozen=True)
class AuditHealth:
    """How many records were written and how many could not be; ``error`` is why the last one could not."""

    written: int
    lost: int
    error: str | None


def actor(pid: int, uid: int, proc: Path = Path("/proc")) -> Actor:
    """Return who is behind a peer of the control socket: past sudo, the one who has logged in."""
    login = uid
    with contextlib.suppress(OSError, ValueError):  # it has ended, or the kernel has no audit
        found = int((proc / str(pid) / "loginuid").read_text(encoding="ascii"))
        login = uid if found == _UNSET else found
    try:
        name = pwd.getpwuid(login).pw_name
    except KeyError:
        name = str(login)
    return Actor(uid=uid, pid=pid, name=name)


def agent() -> Actor:
    """Return the agent as the one who does something by itself."""
    return Actor(uid=os.geteuid(), pid=os.getpid(), name="agent")


class Audit:
    """Appends records to a file; never raises, and counts what it could not write.

    Each record is one write to a file opened with O_APPEND. A file that would grow beyond ``max_size`` bytes, or
    whose first record is older than a tenth of ``retention`` seconds, becomes FILE.1, that one FILE.2, and so on;
    ``files`` are kept in all, and none with a record older than the retention. ``now`` is in Unix seconds.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_size: int,
        files: int,
        retention: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._path, self._max_size, self._files, self._retention = path, max_size, files, retention
        self._now = now
        self._turn = threading.Lock()
        self._fd: int | None = None
        self._inode: tuple[int, int] | None = None
        self._torn = False  # the file's last line has no end
        self._first: float | None = None  # when the file's first record was made
        self._tidied = float("-inf")
        self._written, self._lost = 0, 0
        self._error: str | None = None
        self._untidy: str | None = None

    def record(
        self,
        action: Action,
        *,
        by: Actor,
        subject: str | None = None,
        reason: str = "",
        details: Mapping[str, Any] | None = None,
    ) -> bool:
        """Append a record; return whether it was written. Any thread may call."""
        with self._turn:
            return self._record(action, by, subject, reason, dict(details or {}))

    def _record(
        self, action: Action, by: Actor, subject: str | None, reason: str, details: dict[str, Any]
    ) -> bool:
        now = self._now()
        written_at = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        record = Record(time=written_at, action=action, by=by, subject=subject, reason=reason, details=details)
        line = _encoded(record)
        try:
            self._append(line + b"\n", now)
        except OSError as error:
            self._lost += 1
            self._error = (
                f"audit.file {self._path}: {error.strerror or error}; the last record is lost; "
                "make room, or set audit.file to a path that the agent may write"
            )
            self._forget()  # the next record tries anew
            return False
        self._written += 1
        self._error = None
        return True

    def tidy(self) -> None:
        """Begin a new file where this one's time is over, and delete those of which the retention has passed.

        For the agent to call now and then, as there may be no record for long; cheap unless an hour has passed.
        """
        with self._turn:
            self._tidy()

    def _tidy(self) -> None:
        now = self._now()
        if abs(now - self._tidied) < min(_TIDY, self._retention / _SHARE):
            return
        self._tidied = now
        self._untidy = None
        try:
            if self._path.exists():
                self._open()
        except OSError as error:
            self._complain(error)
        else:
            self._move_on(now, 0)
        self._delete_old(now)

    def health(self) -> AuditHealth:
        """Return what was written and lost since the agent's start."""
        return AuditHealth(self._written, self._lost, self._error or self._untidy)

    def close(self) -> None:
        """Close the file."""
        self._forget()

    def _append(self, line: bytes, now: float) -> None:
        self._open()
        if self._move_on(now, len(line)):
            self._delete_old(now)
        fd = self._open()
        if self._torn:
            line = b"\n" + line
        count = os.write(fd, line)
        if count < len(line):
            # The disk is full. What is there can't be taken back without a race with other writers.
            self._torn = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._torn = False
        if self._first is None:
            self._first = now

    def _open(self) -> int:
        """Return the descriptor of the file at the path, opened anew if that is another file than before."""
        if self._fd is not None:
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(self._path, follow_symlinks=False)
                if (status.st_dev, status.st_ino) == self._inode:
                    return self._fd
            self._forget()
        self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        fd = os.open(self._path, _FLAGS, 0o600)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "expected a regular file")
        self._fd, self._inode = fd, (status.st_dev, status.st_ino)
        self._first = _first_time(self._path)
        self._torn = _is_torn(fd)
        return fd

    def _forget(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
        self._fd = self._inode = self._first = None

    def _move_on(self, now: float, more: int) -> bool:
        """Begin a new file if it's time; where that can't be, the old one is written on, and it's said."""
        if self._fd is None or not self._is_due(now, more):
            return False
        try:
            return self._rotate()
        except OSError as error:
            self._complain(error)
            return False

    def _complain(self, error: OSError) -> None:
        self._untidy = (
            f"audit.file {self._path}: no new file begun or no old one deleted: {error.strerror or error}; "
            "let the agent write in its directory"
        )

    def _is_due(self, now: float, more: int) -> bool:
        assert self._fd is not None
        size = os.fstat(self._fd).st_size
        old = self._first is not None and now - self._first > self._retention / _SHARE
        return size > 0 and (old or size + more > self._max_size)

    def _rotate(self) -> bool:
        """Move the files on by one number; False where another writer does it at the moment."""
        assert self._fd is not None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        status = os.stat(self._path, follow_symlinks=False)
        if (status.st_dev, status.st_ino) == self._inode:  # else it has been done meanwhile
            if self._files == 1:
                self._path.unlink()
            for number in range(self._files - 1, 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    self._numbered(number - 1).rename(self._numbered(number))
        self._forget()  # which frees the lock
        return True

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path

    def _delete_old(self, now: float) -> None:
        """Delete the numbered files that are too many, or have a record older than the retention."""
        try:
            for path in self._path.parent.glob(f"{self._path.name}.*"):
                suffix = path.name.removeprefix(f"{self._path.name}.")
                if not suffix.isascii() or not suffix.isdecimal():
                    continue  # somebody else's
                first = _first_time(path)
                if int(suffix) >= self._files or (first is not None and now - first > self._retention):
                    path.unlink(missing_ok=True)
        except OSError as error:
            self._complain(error)


def _encoded(record: Record) -> bytes:
    """Encode a record, also one with text that isn't Unicode, from a file or another program."""
    try:
        return msgspec.json.encode(record)
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(record)).encode("ascii")


def _first_time(path: Path) -> float | None:
    """Return when the first record of a file was made; the file's own time where there's no telling."""
    try:
        with path.open("rb") as lines:
            first = lines.readline(65_536)
            if not first:
                return None
            try:
                return datetime.fromisoformat(msgspec.json.decode(first, type=_Time).time).timestamp()
            except (msgspec.DecodeError, ValueError):
                return os.fstat(lines.fileno()).st_mtime
    except OSError:
        return None


class _Time(msgspec.Struct, frozen=True):
    """What is read of a record."""

    time: str


def _is_torn(fd: int) -> bool:
    """Tell whether the last line of a file has no end, and isn't just being written by another process.

    A write that crosses a page shows its first part before the rest.
    """
    size = os.fstat(fd).st_size
    while size > 0 and os.pread(fd, 1, size - 1) != b"\n":
        time.sleep(_SETTLES)
        before, size = size, os.fstat(fd).st_size
        if size == before:
            return True
    return False
