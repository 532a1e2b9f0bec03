# SPDX-License-Identifier: Apache-2.0
"""Receives log lines on a datagram socket: never waits, bounded in each turn, and counts what is lost."""

from __future__ import annotations

import contextlib
import grp
import os
import socket
import stat
import struct
import time
from collections import Counter
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from tidegate.errors import UnavailableError
from tidegate.feeds import nginx, upstreams
from tidegate.model import feed

T = TypeVar("T")

#: nginx's own bound on what it escapes lies above any datagram that UDP can carry.
LARGEST = 64 * 1024
#: Datagrams of one turn; the rest waits in the kernel's queue for the next.
TURN = 512
_RECEIVE_BUFFER = 4 << 20
_SO_MEMINFO = 55  # include/uapi/asm-generic/socket.h
_DROPS = 8  # SK_MEMINFO_DROPS
_MEMINFO = struct.Struct("=9I")
#: What isn't read yet also counts against the sender's buffer: 208 KiB by default hold so many lines of 2 KiB, the
#: longest that nginx writes into an error log.
_SENDERS_BUFFER = 48
_QUEUE = Path("/proc/sys/net/unix/max_dgram_qlen")
#: Whose processes may write to the socket, besides root's: nginx's workers on Debian and of nginx.org.
GROUPS = ("www-data", "nginx")


class Lines(NamedTuple, Generic[T]):
    """Lines of one kind: the config's key of their socket, and how one is read at monotonic seconds.

    ``parse`` returns an event, or which of ``reasons`` there is that it is none; it never raises.
    """

    key: str
    parse: Callable[[bytes, float], T | StrEnum]
    reasons: type[StrEnum]


REFUSALS: Lines[feed.Event] = Lines("rate_limit.feed.listen", nginx.parse, nginx.Passed)
TRIES: Lines[tuple[upstreams.Try, ...]] = Lines("breaker.feed.listen", upstreams.parse, upstreams.Passed)


class Datagrams(Generic[T]):
    """A datagram socket at ``listen``, an absolute path or ``(host, port)``; close it at the end.

    ``lines`` says what comes there. ``fileno()`` is for a loop's readers. Raises UnavailableError where the
    address can't be used.
    """

    def __init__(
        self,
        listen: Path | tuple[str, int],
        lines: Lines[T],
        *,
        groups: Sequence[str] = GROUPS,
        clock: Callable[[], float] = time.monotonic,
        queue: Path = _QUEUE,
    ) -> None:
        self._listen, self._clock = listen, clock
        self._key, self._parse, reasons = lines
        self._inode: tuple[int, int] | None = None
        self._counts: Counter[str] = Counter(dict.fromkeys((*reasons, "truncated", "events"), 0))
        self._dropped, self._full = 0, 0
        if isinstance(listen, Path):
            self._socket = _bind_path(listen, groups, self._key)
            status = listen.stat()
            self._inode = (status.st_dev, status.st_ino)
            self._queue = _number(queue)
        else:
            self._socket = _bind_port(*listen, self._key)
            self._queue = None

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._socket.fileno()

    def read(self, most: int = TURN) -> list[T]:
        """Return the events among what has arrived, of at most so many datagrams."""
        events: list[T] = []
        received = 0
        now = self._clock()
        while received < most:
            try:
                datagram, _, flags, _ = self._socket.recvmsg(LARGEST)
            except BlockingIOError:
                break
            received += 1
            if flags & socket.MSG_TRUNC:
                self._counts["truncated"] += 1
                continue
            found = self._parse(datagram, now)
            if isinstance(found, StrEnum):
                self._counts[found] += 1
            else:
                events.append(found)
                self._counts["events"] += 1
        # A Unix socket's queue is full at one above its bound (unix_recvq_full), and all that is read in one turn.
        if self._queue is not None and received > min(self._queue, _SENDERS_BUFFER, most - 1):
            self._full += 1
        return events

    def counts(self) -> dict[str, int]:
        """Return how many datagrams were events, and how many were not, by reason."""
        return {str(reason): count for reason, count in self._counts.items()}

    def dropped(self) -> int | None:
        """Return how many datagrams the kernel dropped as they weren't read in time.

        None for a Unix socket: there the sender is told that the queue is full, and nginx writes the line nowhere.
        """
        if self._inode is None:
            info = self._socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
            # The kernel's count has 32 bits; what it grew by is added up.
            grown = (_MEMINFO.unpack(info)[_DROPS] - self._dropped) & 0xFFFFFFFF
            self._dropped += grown
            return self._dropped
        return None

    def full(self) -> int | None:
        """Return how often a Unix socket's queue may have been full, so that nginx lost lines; None for UDP.

        0 means that none was lost. More counts the turns in which as much was read as the queue holds.
        """
        return None if self._queue is None else self._full

    def complaint(self, least: int = 128) -> str | None:
        """Return what would mend a queue that is too short for a burst of lines, None where it is not."""
        if self._queue is None or self._queue >= least:
            return None
        return (
            f"{self._key} {self._listen}: its queue holds {self._queue} lines, and nginx drops a line "
            f"that finds it full; sysctl -w net.unix.max_dgram_qlen={least} and start the agent again"
        )

    def close(self) -> None:
        """Close the socket and remove its file, if it is still this one's."""
        self._socket.close()
        if isinstance(self._listen, Path):
            with contextlib.suppress(OSError):
                status = self._listen.stat()
                if (status.st_dev, status.st_ino) == self._inode:
                    self._listen.unlink()


def _bind_port(host: str, port: int, key: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        _widen(made)
        made.bind((host, port))
    except OSError as error:
        made.close()
        raise UnavailableError(
            f"{key} {host}:{port}: {error.strerror}; set it to an address of this host and a port that is free"
        ) from error
    return made


def _bind_path(path: Path, groups: Sequence[str], key: str) -> socket.socket:
    """Bind with mode 0660 for the first of the groups that this host has; a file that a dead agent left goes."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    before = os.umask(0o026)  # a worker must get through the directory
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.umask(0o177)
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(path.lstat().st_mode):
                path.unlink()
        _widen(made)
        made.bind(os.fspath(path))
        gid = _first(groups)
        if gid is not None:
            os.chown(path, -1, gid)
            path.chmod(0o660)
    except OSError as error:
        made.close()
        raise UnavailableError(
            f"{key} {path}: {error.strerror or error}; "
            "run as root, or set it to a path of your own that is no other file"
        ) from error
    finally:
        os.umask(before)
    return made


def _widen(made: socket.socket) -> None:
    """Ask for room for a burst; root gets it above the system's bound."""
    try:
        made.setsockopt(socket.SOL_SOCKET, 33, _RECEIVE_BUFFER)  # SO_RCVBUFFORCE
    except PermissionError:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)


def _first(groups: Sequence[str]) -> int | None:
    for name in groups:
        with contextlib.suppress(KeyError):
            return grp.getgrnam(name).gr_gid
    return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
