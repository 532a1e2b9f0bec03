# SPDX-License-Identifier: Apache-2.0
"""What the agent takes itself: its process's CPU time and memory, the runs of its BPF programs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from tidegate.kernel.objects import Program, ProgramInfo
from tidegate.model.snapshot import ProgramHealth

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Usage(NamedTuple):
    """What this process has taken until ``at`` (monotonic seconds)."""

    at: float
    cpu_seconds: float
    rss_bytes: int | None


def usage(statm: Path = Path("/proc/self/statm")) -> Usage:
    """Read the CPU time and the resident memory of this process.

    Not by psutil, which reads more files for the same.
    """
    try:
        rss = int(statm.read_text(encoding="ascii").split()[1]) * _PAGE
    except OSError:  # no /proc
        rss = None
    return Usage(time.monotonic(), time.process_time(), rss)


def share(before: Usage, now: Usage) -> float | None:
    """Return which share of one CPU was taken between two readings."""
    return (now.cpu_seconds - before.cpu_seconds) / (now.at - before.at) if now.at > before.at else None


def program_share(
    before: Mapping[str, ProgramHealth], now: Mapping[str, ProgramHealth], interval: float
) -> float | None:
    """Return which share of one CPU the programs took between two readings; None where either is not measured."""
    if interval <= 0 or not now:
        return None
    taken = 0.0
    for name, program in now.items():
        earlier = before[name].seconds if name in before else None
        if program.seconds is None or earlier is None:
            return None
        taken += program.seconds - earlier
    return taken / interval


def read_programs(programs: Iterable[Program], statistics: bool) -> dict[str, ProgramHealth]:
    """Ask the kernel for the counts of programs; ``statistics`` says whether it is known to time them."""
    return program_health({program.name: program.info() for program in programs if program.is_loaded}, statistics)


def program_health(infos: Mapping[str, ProgramInfo], statistics: bool) -> dict[str, ProgramHealth]:
    """Turn what the kernel said into counts; runs are None where nobody has it count them.

    Whether another process holds BPF_ENABLE_STATS is told nowhere, but then there are runs.
    """
    counted = statistics or any(info.runs for info in infos.values())
    return {
        name: ProgramHealth(
            runs=info.runs if counted else None,
            seconds=info.run_time_ns / 1e9 if counted else None,
            misses=info.recursion_misses,
        )
        for name, info in infos.items()
    }
