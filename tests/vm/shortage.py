# SPDX-License-Identifier: Apache-2.0
"""Services of the guest that lack CPU and memory, on cgroup2 alone: what its files count, what was measured."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from tests.vm.traffic import move_to
from tidegate.measurement import Measurement
from tidegate.model.resources import ResourceRow

KILLS, CPUS, MEMORY = 3, 0.2, 30 << 20
_HUNGRY, _SLOW, _GONE = "hungry.service", "slow.service", "gone.service"
_BUSY = 1.0
_SETTLES = 20.0


class Shortage(msgspec.Struct, frozen=True, kw_only=True):
    """One side's count; ``gone`` are the kills of a cgroup that was removed right after, as the test made them.

    ``stalls`` are the seconds in which tasks of the slow service waited for the CPU, None where no PSI is kept.
    """

    kills: int | None
    gone: int | None
    node_kills: int | None
    memory_limit: int | None
    cpu_limit: float | None
    cpu_seconds: float | None
    throttled_seconds: float | None
    stalls: float | None


def run_short(root: Path, measurement: Measurement) -> tuple[Shortage, Shortage]:
    """Have services run short; return what the kernel's files say and what was measured."""
    (root / "cgroup.subtree_control").write_text("+cpu +memory", "ascii")
    hungry, slow, gone = (root / name for name in (_HUNGRY, _SLOW, _GONE))
    for cgroup in (hungry, slow, gone):
        cgroup.mkdir()
    for cgroup in (hungry, gone):
        (cgroup / "memory.max").write_text(str(MEMORY), "ascii")
    (slow / "cpu.max").write_text(f"{int(CPUS * 100_000)} 100000", "ascii")
    kills = sum(_signal(_start(hungry, _eat)) == 9 for _ in range(KILLS))
    lost = int(_signal(_start(gone, _eat)) == 9)
    gone.rmdir()
    _signal(_start(slow, _burn))
    counted = _counted(hungry, slow, kills, lost)
    end = time.monotonic() + _SETTLES
    measured = _measured(measurement)
    while measured != counted and time.monotonic() < end:
        time.sleep(0.2)
        counted, measured = _counted(hungry, slow, kills, lost), _measured(measurement)
    return counted, measured


def _counted(hungry: Path, slow: Path, kills: int, lost: int) -> Shortage:
    cpu = _numbers(slow / "cpu.stat")
    events = _numbers(hungry / "memory.events")
    assert events["oom_kill"] == kills
    try:
        stalls = int((slow / "cpu.pressure").read_text("ascii").split("total=")[1].split()[0]) / 1e6
    except OSError:
        stalls = None
    return Shortage(
        kills=kills,
        gone=lost,
        node_kills=_numbers(Path("/proc/vmstat"))["oom_kill"],
        memory_limit=int((hungry / "memory.max").read_text("ascii")),
        cpu_limit=CPUS,
        cpu_seconds=round(cpu["usage_usec"] / 1e6, 6),
        throttled_seconds=round(cpu["throttled_usec"] / 1e6, 6),
        stalls=None if stalls is None else round(stalls, 6),
    )


def _measured(measurement: Measurement) -> Shortage:
    view = measurement.measure()
    rows = {row.service: row for row in view.resources or ()}
    hungry, slow, gone = (rows.get(name) for name in (_HUNGRY, _SLOW, _GONE))
    node = view.node.resources
    return Shortage(
        kills=hungry.oom_kills if hungry else None,
        gone=gone.oom_kills if gone else None,
        node_kills=node.oom_kills if node else None,
        memory_limit=hungry.memory_limit if hungry else None,
        cpu_limit=slow.cpu_limit if slow else None,
        cpu_seconds=_rounded(slow, lambda row: row.cpu_seconds),
        throttled_seconds=_rounded(slow, lambda row: row.throttled_seconds),
        stalls=_rounded(slow, lambda row: row.pressure["cpu"].some_seconds if row.pressure else None),
    )


def _rounded(row: ResourceRow | None, of: Callable[[ResourceRow], float | None]) -> float | None:
    """Return a value in whole microseconds, in which the kernel counts."""
    value = None if row is None else of(row)
    return None if value is None else round(value, 6)


def _start(cgroup: Path, work: Callable[[], None]) -> int:
    child = os.fork()
    if not child:
        try:
            move_to(cgroup)
            work()
        finally:
            os._exit(0)
    return child


def _signal(child: int) -> int:
    """Wait for a process; return the signal that ended it, or 0."""
    status = os.waitpid(child, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def _eat() -> None:
    block = bytearray(4 * MEMORY)
    for at in range(0, len(block), 4096):
        block[at] = 1


def _burn() -> None:
    end = time.monotonic() + _BUSY
    while time.monotonic() < end:
        pass


def _numbers(file: Path) -> dict[str, int]:
    pairs = (line.split() for line in file.read_text("ascii").splitlines())
    return {key: int(number) for key, number in pairs}
