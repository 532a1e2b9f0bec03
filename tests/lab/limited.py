# SPDX-License-Identifier: Apache-2.0
"""Cgroups with limits, at one path of every hierarchy that this machine has, and what their own files say."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from lab.network import remove_cgroup
from tidegate.kernel.probe import probe

HOST = probe()
CONTROLLERS = ("memory", "cpu", "cpuacct")


def roots() -> list[Path]:
    """Return where the hierarchies are that matter here; controllers of cgroup2 are enabled below its root."""
    assert HOST.cgroup2 is not None
    unified = Path(HOST.cgroup2)
    for name in {"memory", "cpu"} - set(HOST.controllers):
        (unified / "cgroup.subtree_control").write_text(f"+{name}", encoding="ascii")
    return list(
        dict.fromkeys([unified, *(Path(HOST.controllers[n]) for n in CONTROLLERS if n in HOST.controllers)])
    )


class Limited:
    """A cgroup; a context manager that ends what runs in it and removes it from every hierarchy.

    With ``only`` it is made in the hierarchies of these v1 controllers alone.
    """

    def __init__(self, path: str, *, only: Sequence[str] = ()) -> None:
        self.path = path
        self.roots = [Path(HOST.controllers[name]) for name in only] or roots()

    def __enter__(self) -> Self:
        for root in self.roots:
            directory = root / self.path.lstrip("/")
            directory.parent.mkdir(exist_ok=True)
            if root == Path(HOST.cgroup2 or "") and not HOST.controllers:
                (directory.parent / "cgroup.subtree_control").write_text("+memory +cpu", encoding="ascii")
            directory.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """End and remove all of it; twice is harmless."""
        for root in self.roots:
            directory = root / self.path.lstrip("/")
            remove_cgroup(directory)
            with contextlib.suppress(OSError):  # others may be in it
                directory.parent.rmdir()

    def limit_memory(self, size: int) -> None:
        """Set the limit; without swap, where there is any."""
        if "memory" in HOST.controllers:
            self._write("memory", "memory.limit_in_bytes", size)
        else:
            self._write("memory", "memory.max", size)

    def limit_cpu(self, cpus: float) -> None:
        """Let it use so many CPUs, in periods of 50 ms."""
        if "cpu" in HOST.controllers:
            self._write("cpu", "cpu.cfs_period_us", 50_000)
            self._write("cpu", "cpu.cfs_quota_us", int(cpus * 50_000))
        else:
            self._write("cpu", "cpu.max", f"{int(cpus * 50_000)} 50000")

    def start(self, code: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Run Python code that begins in this cgroup."""
        join = "".join(
            f"open({str(root / self.path.lstrip('/') / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
            for root in self.roots
        )
        return subprocess.Popen(
            [sys.executable, "-c", f"import os, sys\n{join}{code}", *arguments], text=True, **options
        )

    def read(self, controller: str, file: str) -> str:
        """Read one of its files."""
        return self._file(controller, file).read_text(encoding="ascii")

    def value(self, controller: str, file: str, key: str) -> int:
        """Read one number of a file with keys."""
        return dict(_pairs(self.read(controller, file)))[key]

    def oom_kills(self) -> int:
        """Return how many of its processes the kernel has killed, by its own count of this cgroup."""
        file = "memory.oom_control" if "memory" in HOST.controllers else "memory.events"
        return self.value("memory", file, "oom_kill")

    def cpu_seconds(self) -> float:
        """Return the CPU time that it has used."""
        if "cpuacct" in HOST.controllers:
            return int(self.read("cpuacct", "cpuacct.usage")) / 1e9
        return self.value("cpu", "cpu.stat", "usage_usec") / 1e6

    def throttled(self) -> tuple[int, int, float]:
        """Return periods, those in which it was stopped, and for how many seconds."""
        stopped = ("throttled_time", 1e9) if "cpu" in HOST.controllers else ("throttled_usec", 1e6)
        found = dict(_pairs(self.read("cpu", "cpu.stat")))
        return found["nr_periods"], found["nr_throttled"], found[stopped[0]] / stopped[1]

    def memory(self) -> int:
        """Return what it is charged."""
        file = "memory.usage_in_bytes" if "memory" in HOST.controllers else "memory.current"
        return int(self.read("memory", file))

    def _file(self, controller: str, file: str) -> Path:
        return Path(HOST.controllers.get(controller, HOST.cgroup2 or ""), self.path.lstrip("/"), file)

    def _write(self, controller: str, file: str, value: object) -> None:
        self._file(controller, file).write_text(str(value), encoding="ascii")


def _pairs(text: str) -> Iterator[tuple[str, int]]:
    for line in text.splitlines():
        key, number = line.split()
        yield key, int(number)


def kernel_kills() -> int:
    """Return how many processes the kernel has killed for want of memory since the boot."""
    return dict(_pairs(Path("/proc/vmstat").read_text(encoding="ascii")))["oom_kill"]
