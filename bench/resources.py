# SPDX-License-Identifier: Apache-2.0
"""What it costs to read the cgroups of a thousand services."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from bench.agent import Agent
from bench.report import Figure
from lab.network import remove_cgroup
from tidegate.kernel.probe import probe

CGROUPS, WARM, SECONDS = 1000, 15, 20


def figures(directory: Path) -> list[Figure]:
    """Measure the agent beside so many services, each with a process that wakes once a second."""
    with services(CGROUPS), Agent(directory) as agent:
        agent.wait_for(f'service="bench-{CGROUPS - 1}.service"')
        time.sleep(WARM)  # the first seconds have more to read: limits that may come late
        before = agent.cpu()
        time.sleep(SECONDS)
        taken = (agent.cpu() - before) / SECONDS
        rows = agent.metrics().count("\ntidegate_service_cpu_seconds_total{")
        memory = agent.memory()
    return [
        Figure(
            f"Agent CPU with {CGROUPS:,} cgroups",
            f"{taken:.2%}",
            "2 %",
            f"of one CPU over {SECONDS} s, interval 1 s, {rows:,} services, each with a process that wakes once a "
            f"second, nobody scrapes; {memory / 2**20:.1f} MiB resident after a scrape",
        )
    ]


@contextlib.contextmanager
def services(count: int) -> Iterator[None]:
    """Have so many cgroups, in each hierarchy that the agent reads, with a process in each; gone afterwards."""
    top = f"tidegate-bench-{os.getpid()}"
    roots = [root / top for root in hierarchies()]
    children: list[int] = []
    try:
        for root in roots:
            root.mkdir()
        for n in range(count):
            places = [root / f"bench-{n}.service" for root in roots]
            for place in places:
                place.mkdir()
            children.append(sleeper(places))
        yield
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        for root in roots:
            remove_cgroup(root)


def hierarchies() -> list[Path]:
    """Return the roots of cgroup2 and of the v1 controllers that count what a service uses."""
    host = probe()
    v1 = [host.controllers[name] for name in ("memory", "cpu", "cpuacct") if name in host.controllers]
    return [Path(root) for root in dict.fromkeys([*v1, *([host.cgroup2] if host.cgroup2 else [])])]


def sleeper(places: list[Path]) -> int:
    """Start a process in these cgroups that wakes once a second; return its id."""
    child = os.fork()
    if child:
        return child
    try:
        for place in places:
            (place / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
        while True:
            time.sleep(1)
    finally:
        os._exit(1)
