# SPDX-License-Identifier: Apache-2.0
"""One agent per node: a lock file that the kernel frees when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Self

from tidegate.errors import TidegateError, UnavailableError


class AgentLock:
    """Holds ``path`` locked, with this process's id in it; a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(mode=0o751, parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UnavailableError(
                f"lock {path}: {error.strerror}; run as root, or set control.socket to a directory that you own"
            ) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise TidegateError(
                f"lock {path}: another agent runs on this node, pid {holder}; "
                "look at it with 'tidegate top', or stop it first"
            ) from error
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Free the lock; the file stays, because removing it would race with the next agent."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
