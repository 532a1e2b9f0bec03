# SPDX-License-Identifier: Apache-2.0
"""CPU, steal, memory, stalls and OOM kills of the whole node: what psutil and the kernel's files say of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from tidegate.model.resources import NodeResources, Pressure
from tidegate.signals.cgroup_files import PRESSURES, Stalls, read, read_stalls, value


class NodeSample(NamedTuple):
    """One look at the node at ``at`` (monotonic seconds); seconds are since the boot, over all CPUs.

    ``busy`` and ``steal`` are parts of ``total``. ``oom_kills`` is the kernel's own count, ``stalls`` in the order
    of ``PRESSURES``.
    """

    at: float
    cpus: int
    total: float
    busy: float
    steal: float
    memory_total: int
    memory_available: int
    oom_kills: int | None
    stalls: tuple[Stalls | None, ...]


def sample(now: float, *, pressure: bool, proc: Path = Path("/proc")) -> NodeSample:
    """Look at the node; ``pressure`` says whether the kernel keeps stalls."""
    # Only now: it looks into /proc when it is imported, and has no use in the commands that don't measure.
    import psutil  # noqa: PLC0415

    cpu = psutil.cpu_times()
    memory = psutil.virtual_memory()
    # Guests are in user and nice already (proc(5), /proc/stat).
    total = sum(cpu) - cpu.guest - cpu.guest_nice
    vmstat = read(f"{proc}/vmstat", whole=True)
    stalls: tuple[Stalls | None, ...] = (None,) * len(PRESSURES)
    if pressure:
        stalls = tuple(read_stalls(f"{proc}/pressure/{resource}") for resource in PRESSURES)
    return NodeSample(
        at=now,
        cpus=os.cpu_count() or 1,
        total=total,
        busy=total - cpu.idle - cpu.iowait - cpu.steal,
        steal=cpu.steal,
        memory_total=memory.total,
        memory_available=memory.available,
        oom_kills=None if vmstat is None else value(vmstat, b"oom_kill"),
        stalls=stalls,
    )


def node_resources(before: NodeSample, now: NodeSample, *, virtual: bool, oom_kills: int) -> NodeResources:
    """Build the node's row from two looks; ``oom_kills`` since the agent's start.

    Bare metal has no steal, and there its counter is 0 as on a guest that lost nothing: ``virtual`` tells the two.
    """
    seconds, passed = now.at - before.at, now.total - before.total
    # Of what all CPUs did by the same clock, so that it is never more than there are. Waiting for I/O may be
    # counted back (proc(5)).
    busy, steal = max(now.busy - before.busy, 0.0), max(now.steal - before.steal, 0.0)
    return NodeResources(
        cpu=busy / passed * now.cpus if passed > 0 else None,
        steal=steal / passed if virtual and passed > 0 else None,
        steal_seconds=now.steal if virtual else None,
        memory_total=now.memory_total,
        memory_available=now.memory_available,
        oom_kills=oom_kills,
        pressure={
            resource: _pressure(earlier, stalls, seconds)
            for resource, earlier, stalls in zip(PRESSURES, before.stalls, now.stalls, strict=True)
            if stalls is not None
        }
        or None,
    )


def _pressure(before: Stalls | None, now: Stalls, seconds: float) -> Pressure:
    some = full = None
    if before is not None and seconds > 0:
        some = (now.some - before.some) / seconds
        full = None if now.full is None or before.full is None else (now.full - before.full) / seconds
    return Pressure(some_seconds=now.some, some=some, full_seconds=now.full, full=full)
