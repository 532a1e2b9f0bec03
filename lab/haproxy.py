# SPDX-License-Identifier: Apache-2.0
"""A real HAProxy on a host, in master-worker mode, whose config can be changed while it works."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lab.lab import Host
from lab.network import enter

HAPROXY = "/usr/sbin/haproxy"
PATIENCE = 10.0

#: In the foreground. The socket is below the directory, so it is reached from every namespace.
_GLOBAL = """\
global
    stats socket {socket} mode 600 level {level}
    nbthread 2
"""


class Haproxy:
    """A running HAProxy with a cgroup of its own, NAME.service; ``config`` is what stands behind ``global``."""

    def __init__(self, host: Host, name: str, config: str, level: str = "admin", program: str = HAPROXY) -> None:
        self.unit = f"{name}{host.lab.tag}.service"
        self.directory = Path(host.lab.stack.enter_context(tempfile.TemporaryDirectory(prefix="tglab-")))
        self.socket = self.directory / "admin.sock"
        self._host, self._level, self._program = host, level, program
        self._cgroup = host.lab.cgroup / self.unit
        self._cgroup.mkdir()
        self._process: subprocess.Popen[str] | None = None
        host.lab.stack.callback(self.stop)
        self.write(config)
        self.start()

    def write(self, config: str) -> None:
        """Write the config; it is read at the start and on :meth:`reload`."""
        top = _GLOBAL.format(socket=self.socket, level=self._level)
        (self.directory / "haproxy.cfg").write_text(top + config, encoding="utf-8")

    def start(self) -> None:
        """Start it, and wait until it serves."""
        argv = [self._program, "-W", "-f", str(self.directory / "haproxy.cfg")]
        with (self.directory / "log").open("w", encoding="utf-8") as log:
            options = {"stderr": log, "stdout": log, "start_new_session": True}
            self._process = self._host.lab.popen(enter(self._host.namespace, argv, self._cgroup), options)
        self._wait(lambda: self.worker() is not None)

    def reload(self) -> None:
        """Have the config read by a new worker, and wait until that one answers."""
        assert self._process is not None
        before = self.worker()
        self._process.send_signal(signal.SIGUSR2)
        self._wait(lambda: self.worker() not in (None, before))

    def stop(self) -> None:
        """End it at once, with the connections that it has."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(PATIENCE)
            self.kill()

    def kill(self) -> None:
        """End the master and all workers as a crash does."""
        assert self._process is not None
        for pid in (self._cgroup / "cgroup.procs").read_text(encoding="ascii").split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        self._process.kill()
        self._process.wait()

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """Have the worker do nothing until the end of the block."""
        worker = self.worker()
        assert worker is not None
        os.kill(worker, signal.SIGSTOP)
        try:
            self._wait(lambda: _is_stopped(worker))
            yield
        finally:
            os.kill(worker, signal.SIGCONT)

    def ask(self, command: str) -> str:
        """Send a line to its socket and return the answer."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(str(self.socket))
            connection.sendall(f"{command}\n".encode())
            answer = bytearray()
            while more := connection.recv(1 << 16):
                answer += more
        return answer.decode()

    def worker(self) -> int | None:
        """Return the pid of the worker that answers, None if there is none."""
        with contextlib.suppress(OSError):
            for line in self.ask("show info").splitlines():
                if line.startswith("Pid: "):
                    return int(line.removeprefix("Pid: "))
        return None

    def _wait(self, done: Callable[[], bool]) -> None:
        assert self._process is not None
        end = time.monotonic() + PATIENCE
        while not done():
            code = self._process.poll()
            if code is not None or time.monotonic() > end:
                said = (self.directory / "log").read_text(encoding="utf-8")
                raise RuntimeError(f"lab: haproxy of {self.unit} doesn't come up (exit code {code}): {said}")
            time.sleep(0.01)


def _is_stopped(pid: int) -> bool:
    """Tell whether all threads of a process have stopped, which they do some time after the signal (proc(5))."""
    tasks = Path(f"/proc/{pid}/task").glob("*/stat")
    return all(task.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "T" for task in tasks)
