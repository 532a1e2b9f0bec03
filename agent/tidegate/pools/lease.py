# SPDX-License-Identifier: Apache-2.0
"""What puts proxies back when the agent dies or hangs: a child that waits for its word, and then acts for it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

from tidegate.pools import guard

log = logging.getLogger("tidegate")


class Lease:
    """Held by word to a child process, at least every ``seconds``; without it, what ``journal`` tells is put back.

    ``lock`` is the agent's lock: who else holds it by then does that himself. The child is out of the agent's
    session, so that it outlives its end.
    """

    def __init__(self, seconds: float, journal: Path, lock: Path) -> None:
        self._seconds, self._journal, self._lock = seconds, journal, lock
        self.child: subprocess.Popen[bytes] | None = None
        self._begun = False

    def begin(self) -> None:
        """Start the child; it is no error to call this again."""
        self._begun = True
        self.renew()

    def renew(self) -> None:
        """Give word; a child that is gone is started anew."""
        if not self._begun:
            return
        if self.child is not None and self.child.poll() is not None:
            log.error("pools: the lease's child has ended with %s; another is started", self.child.returncode)
            self._forget()
        if self.child is None:
            self.child = self._start()
        self._say(guard.WORD)

    def end(self, *, is_whole: bool) -> None:
        """End the child; where not all ``is_whole``, it still has its turn."""
        if self.child is not None:
            if is_whole:
                self._say(guard.DONE)
            self._forget()

    def _start(self) -> subprocess.Popen[bytes] | None:
        command = [sys.executable, "-m", "tidegate.cli.main", "pools", "restore"]
        command += ["--journal", str(self._journal), "--lock", str(self._lock), "--instead-of", str(os.getpid())]
        # Isolated and without site: the child is as small as Python gets.
        argv = [sys.executable, "-I", "-S", guard.__file__, str(self._seconds), *command]
        try:
            child = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True, cwd="/"
            )
        except OSError as error:
            log.error(
                "pools: no child for the lease: %s; an agent that dies would leave proxies as they are", error
            )
            return None
        assert child.stdin is not None
        os.set_blocking(child.stdin.fileno(), False)  # one that is stopped must not stop the agent
        return child

    def _say(self, word: bytes) -> None:
        if self.child is not None and self.child.stdin is not None:
            try:
                os.write(self.child.stdin.fileno(), word)
            except BlockingIOError:
                return  # it has more than enough to read
            except OSError as error:
                log.error("pools: the lease's child can't be told: %s", error)

    def _forget(self) -> None:
        if self.child is not None and self.child.stdin is not None:
            self.child.stdin.close()
        self.child = None
