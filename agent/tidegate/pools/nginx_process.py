# SPDX-License-Identifier: Apache-2.0
"""The running nginx: its program and its config, its master and workers, and the test of its config.

Workers keep the config that they were started with, so what is in force is a question of which workers there are.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tidegate.config.pools import NginxDriver as Config
from tidegate.errors import DriverError
from tidegate.pools import files
from tidegate.pools.driver import Exchange
from tidegate.pools.nginx_config import Settings, settings

TICK = 1 / os.sysconf("SC_CLK_TCK")
#: A file's times are of a clock that lags by up to a tick, as do the start times of processes.
RESOLUTION = 2 * TICK
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TEST_TIMEOUT = 60.0
_NSENTER = "nsenter"


class Process(NamedTuple):
    """A process of nginx: ``started`` in clock ticks since boot tells it from a later one with the same pid."""

    pid: int
    started: int


class Workers(NamedTuple):
    """Those that take requests, those that end after their last one, and whether some are just being started."""

    live: frozenset[Process]
    old: frozenset[Process]
    starting: bool


class Version(NamedTuple):
    """What ``nginx -V`` says."""

    text: str
    number: tuple[int, ...]
    prefix: Path
    pid: str


class Nginx:
    """One nginx as a driver's config names it; what is known of it is looked up once, until ``forget``."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._version: Version | None = None
        self._pid_file: Path | None = None

    @property
    def path(self) -> Path:
        """Its main config file."""
        return self.prefix / self._config.config

    @property
    def prefix(self) -> Path:
        """What its relative names are below."""
        return Path(self._config.prefix) if self._config.prefix else self.version().prefix

    def forget(self) -> None:
        """Look again at the next call: another one may come."""
        self._version = self._pid_file = None

    def version(self) -> Version:
        """Ask the program for its version."""
        if self._version is None:
            said = self._run([self._config.program, "-V"], timeout=10.0)
            found = re.search(r"version: (\S+?/([0-9]+(?:\.[0-9]+)*)\S*)", said.stderr)
            if not found:
                raise DriverError(
                    f"{self._config.program}: expected nginx, which tells its version on -V, found: "
                    f"{said.stderr.strip()[:200] or f'exit code {said.returncode}'}; set 'program' of the driver"
                )
            built = dict(re.findall(r"--(prefix|pid-path)=(\S+)", said.stderr))
            number = tuple(int(part) for part in found[2].split("."))
            prefix = Path(built.get("prefix", "/usr/local/nginx"))
            self._version = Version(found[1], number, prefix, built.get("pid-path", "logs/nginx.pid"))
        return self._version

    def settings(self, include: Path) -> Settings:
        """Read its config."""
        try:
            return settings(self.path, include)
        except RecursionError as error:
            raise DriverError(f"{self.path}: blocks are nested too deeply to be read") from error

    def pid_file(self) -> Path:
        """Return where its master writes its pid."""
        if self._pid_file is None:
            named = self.settings(Path("/nonexistent")).pid
            self._pid_file = self.prefix / (named or self.version().pid)
        return self._pid_file

    def master(self) -> int:
        """Return the pid of the master process; raises DriverError, ``away`` where there is none."""
        path = self.pid_file()
        try:
            text = files.read(path)[:32].strip()
        except FileNotFoundError:
            text = b""
        pid = int(text) if text.isdigit() else 0
        if not pid or ": master process" not in title(pid):
            what = f"pid {pid} is no master process of nginx" if pid else "no pid"
            raise DriverError(
                f"nginx isn't running: {path}: expected the pid of its master, found {what}; start nginx",
                away=True,
            )
        return pid

    def workers(self, master: int) -> Workers:
        """Return the workers of a master."""
        live, old, starting = set(), set(), False
        for pid in _children(master):
            started, name = started_at(pid), title(pid)
            if started is None or not name:
                continue  # ended
            if name.endswith(": worker process is shutting down"):
                old.add(Process(pid, started))
            elif name.endswith(": worker process"):
                live.add(Process(pid, started))
            elif ": master process" in name:
                starting = True  # forked just now, without a name of its own yet
        return Workers(frozenset(live), frozenset(old), starting)

    def memory(self, processes: Iterable[Process]) -> int:
        """Return the resident bytes of processes; what they share counts in each."""
        total = 0
        for process in processes:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                total += int(Path(f"/proc/{process.pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE
        return total

    def test(self, master: int) -> Exchange:
        """Have the config tested where the master lives, whose listening sockets the test opens.

        Raises DriverError with what nginx says.
        """
        argv = [self._config.program, "-t", "-q", "-c", str(self.path)]
        argv += ["-p", f"{self._config.prefix}/"] if self._config.prefix else []
        said = self._run([*_enter(master), *argv], timeout=_TEST_TIMEOUT)
        exchange = Exchange(" ".join(argv), said.stderr.strip() or f"exit code {said.returncode}")
        if said.returncode:
            raise DriverError(
                f"nginx refuses its config: {exchange.answer}; mend that, until then nothing can be changed",
                exchanges=[exchange],
            )
        return exchange

    def _run(self, argv: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                argv,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                timeout=timeout,
            )
        except OSError as error:
            remedy = "install util-linux" if argv[0] == _NSENTER else "set 'program' of the driver to nginx"
            raise DriverError(f"{argv[0]}: can't be run: {error.strerror or error}; {remedy}") from error
        except subprocess.TimeoutExpired as error:
            raise DriverError(
                f"{' '.join(argv)}: no end after {timeout:g} s; nginx may be waiting for the DNS to resolve names"
            ) from error


def title(pid: int) -> str:
    """Return what a process calls itself; nothing where there is none, or only its remains."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return text.replace(b"\0", b" ").strip().decode(errors="replace")


def started_at(pid: int) -> int | None:
    """Return when a process was started, in clock ticks since boot (proc(5), stat 22); None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(text.rpartition(")")[2].split()[19])


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        return [int(child) for child in text.split()]
    except (FileNotFoundError, ProcessLookupError):
        return _children_by_all(pid)


def _children_by_all(pid: int) -> list[int]:
    """Look at all processes: not every kernel lists children."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            text = (directory / "stat").read_text(encoding="utf-8", errors="replace")
            if int(text.rpartition(")")[2].split()[1]) == pid:
                found.append(int(directory.name))
    return found


def _enter(master: int) -> list[str]:
    """Return what runs a command in the master's network namespace, if that is another one."""
    theirs = f"/proc/{master}/ns/net"
    try:
        if os.readlink(theirs) == os.readlink("/proc/self/ns/net"):
            return []
    except OSError as error:
        raise DriverError(
            f"nginx: {theirs} can't be read: {error.strerror}; the agent needs CAP_SYS_PTRACE, or to be root",
            away=isinstance(error, FileNotFoundError),
        ) from error
    return [_NSENTER, f"--net={theirs}"]
